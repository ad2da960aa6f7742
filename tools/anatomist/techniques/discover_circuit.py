"""Find a circuit, the parts that do a task, and put it to the test on prompts it was not found on.

Idea: score every head and MLP (or every edge between them) by what the behaviour loses without it, keep the best, and
run the model with everything else carrying a corrupted prompt. How much of the behaviour is left, at every size, is the
evidence; the same for the rest of the model, the ranking upside down, and random circuits alike is what it is worth.

Source: Wang et al., arXiv 2211.00593, section 4 (faithfulness, completeness, minimality); Syed et al., arXiv
2310.10348 (EAP); Hanna et al., arXiv 2403.17806 (EAP-IG, faithfulness over overlap); Mueller et al., arXiv 2504.13151,
section 3.2 (CPR, CMD). f(C) = (m(C) - m(empty)) / (m(M) - m(empty)), m the metric's mean over the data set.

Does not show: the circuit. Other sets can do as well (compare the random and inverted ones), parts outside may back it
up, and what each part computes is not shown. Faithfulness holds for this corruption, metric and kind of prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..causal.attribution import Completeness, Saturated, Way, saturation_warnings
from ..causal.circuit_evaluation import Asked, Bench, Verdict, Whole, curves_of, judged, pruned, smallest
from ..causal.circuit_parts import CircuitParts, FirstOrder, Level, Method, Task, Tick, doubted, exact, parts_at
from ..causal.circuit_picture import circuit_panel, curve_panel, rivals_panel
from ..causal.circuit_words import in_words, warnings_of
from ..causal.faithfulness import Curve, Ranking, ranked, rediscovered
from ..causal.measured import encoded, failed, last_logits
from ..causal.recheck import Recheck, compared, doubts, to_recheck
from ..errors import BadArguments, BadPrompts
from ..figures import Figure
from ..measures.metrics import UNITS
from ..measures.statistics import Clusters
from ..model.protocol import Model
from ..prompts.encoding import EncodedPrompts
from ..result import Frozen, Result, SelfTest
from ..technique import Context, Metric, OnPrompts

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "Circuit discovery and evaluation"
QUESTIONS = (
    "Which circuit does this task, and how faithful is it?",
    "How many heads or edges does the behaviour need?",
    "Is my circuit better than random circuits of its size?",
    "Is the circuit complete, minimal and stable?",
)
LISTED = 200  # parts named in the result
ALL_CHECKED = 100  # up to so many parts, every estimate is re-checked exactly
DRAWS = 50  # bootstrap re-discoveries
MOST_EXACT = 2000  # parts that are scored by a pass each
MADE = {
    "exact": "each part corrupted alone",
    "eap": "gradient at the clean run (attribution patching, EAP)",
    "eap_ig": "gradient averaged over {steps} midpoints between the embeddings (EAP-IG)",
}


class Arguments(OnPrompts):
    """Arguments of discover_circuit."""

    level: Level = Field(
        default="nodes",
        description="nodes: heads and MLPs, on every backend; edges: between them, q, k and v of a head apart.",
    )
    method: Method = Field(
        default="eap_ig",
        description="How parts are scored: exact (a pass a part, at most 2000), eap, or eap_ig with `steps`.",
    )
    steps: int = Field(default=5, ge=1, le=100, description="Steps of method eap_ig; no other uses them.")
    ranking: Ranking = Field(default="absolute", description="By magnitude, or by signed contribution.")
    size: int | None = Field(
        default=None, ge=1, description="Parts in it; absent: found by halving to reach `target` on discovery prompts."
    )
    target: float = Field(default=0.85, gt=0, le=1, description="Faithfulness to reach where no size is given.")
    controls: int = Field(default=20, ge=0, le=1000, description="Random circuits that it is held against.")
    minimality: int = Field(default=20, ge=0, le=1000, description="Parts that are taken out one at a time.")
    top: int = Field(default=20, ge=1, le=2000, description="Largest estimates that are re-checked exactly.")
    sample: int = Field(default=20, ge=0, le=2000, description="Others re-checked at random.")
    metric: Metric = "logit_diff"


class CircuitMember(Frozen):
    """One part of the circuit."""

    name: str = Field(description="'L9H6', 'L9MLP', or an edge: 'L0H1 -> L1H2.k'.")
    kind: str = Field(description="head or mlp; for edges what they enter: q, k, v, mlp or logits.")
    contribution: float = Field(description="Its score on the discovery prompts, in the metric's unit.")


class CircuitResult(Result):
    """A circuit, and how far it can be believed."""

    level: str = Field(description="nodes or edges.")
    made: str = Field(description="How parts were scored.")
    ablation: str = Field(description="What parts outside a circuit carry.")
    metric: str = Field(description="Name of the metric.")
    unit: str = Field(description="Its unit.")
    of: int = Field(description="Parts that the model has.")
    size: int = Field(description="Parts in the circuit.")
    dropped: int = Field(description="Edges taken out again since they lie on no way from the embedding to the logits.")
    members: tuple[CircuitMember, ...] = Field(description="At most 200, the largest contributions first.")
    chosen: str = Field(description="How the size was chosen.")
    discovery_prompts: int = Field(description="Prompts it was found on.")
    held_out_prompts: int = Field(description="Prompts it was tested on.")
    whole: Whole = Field(description="The ends of the scale on the held-out prompts.")
    verdict: Verdict = Field(description="The circuit and its rivals on the held-out prompts.")
    curves: tuple[Curve, ...] = Field(
        description="f over sizes on the held-out prompts. CPR is that of 'signed', CMD that of 'absolute'; then the "
        "inverted ranking and random ones."
    )
    stability: float | None = Field(description="Mean Jaccard overlap with bootstrap re-discoveries of the same size.")
    recheck: Recheck | None = Field(description="Estimates against exact contributions; absent for method exact.")
    saturated: tuple[Saturated, ...] = Field(description="Heads whose attention moves without the gradient seeing it.")
    gradient_completeness: Completeness | None = Field(description="Whether the gradient accounts for the whole gap.")
    self_tests: tuple[SelfTest, ...] = Field(description="Identities checked on this model and these prompts.")


class Sets(NamedTuple):
    """Prompts to find on and prompts to test on."""

    discovery: Task
    held_out: Task
    note: str | None


def sets_of(context: Context, arguments: Arguments) -> Sets:
    """The two parts of a generated set, or of the given prompts with no cluster in both.

    Raises:
        BadArguments: held-out prompts to discover on.
        BadPrompts: nothing to test on, or parts that the metric needs are absent.
    """
    if arguments.split != "discovery":
        raise BadArguments("a circuit is found on discovery prompts and tested on held-out ones: leave `split` out.")
    names = (arguments.metric,)
    found = encoded(context.prompts, context.model, arguments.bos, names, corrupted=True)
    if context.held_out is not None:
        kept_back = encoded(context.held_out, context.model, arguments.bos, names, corrupted=True)
        return Sets(_task(context, arguments, found), _task(context, arguments, kept_back), None)
    first, second = _halves(found)
    note = (
        f"No part of these prompts was kept back: the circuit was found on {len(first)} of them and tested on the "
        f"other {len(second)}, with other names but the same templates. make_prompts keeps a template back as well."
    )
    halves = [_task(context, arguments, found.rows(rows)) for rows in (first, second)]
    return Sets(halves[0], halves[1], note)


def _task(context: Context, arguments: Arguments, prompts: EncodedPrompts) -> Task:
    return Task.of(prompts, arguments.metric, context.model)


def _halves(prompts: EncodedPrompts) -> tuple[list[int], list[int]]:
    """Every other cluster on each side."""
    clusters = list(dict.fromkeys(prompts.clusters))
    if len(clusters) < 2:
        raise BadPrompts(
            f"{prompts.n} prompts of one cluster cannot be parted into some to find a circuit on and others to test it "
            "on; give more prompts, or take them from make_prompts."
        )
    second = set(clusters[1::2])
    sides = [[i for i, c in enumerate(prompts.clusters) if (c in second) is side] for side in (False, True)]
    return sides[0], sides[1]


def run(context: Context, arguments: Arguments) -> CircuitResult:
    """Score the parts, choose a circuit, test it.

    Raises:
        BadPrompts, BadArguments: see `sets_of` and `parts_of`; or the whole model does not differ from the empty
            circuit, or the best edges are not joined.
        Unsupported: edges on a model whose parts are not known.
    """
    model, seed = context.model, arguments.seed
    sets = sets_of(context, arguments)
    parts = parts_of(context, arguments)
    gradients, contributions = scored(parts, sets.discovery, arguments, context)
    context.keep("contributions", contributions, axes=("prompt", "part"), unit=UNITS[arguments.metric])
    scores = contributions.numpy()
    mean = scores.mean(0)
    order = ranked(mean, arguments.ranking)
    found_on = Bench(parts, sets.discovery, seed, _phase(context, "choosing the size"))
    size = arguments.size or smallest(found_on, order, arguments.target)
    circuit = pruned(order[:size], parts)
    if not circuit:
        raise BadArguments(
            f"the {size} best edges do not join the embedding to the logits: no circuit of that size carries anything. "
            "Take a larger size, or leave it out."
        )
    recheck = None
    if gradients is not None:
        recheck = _rechecked(context, arguments, parts, sets.discovery, mean, gradients)
    bench = Bench(parts, sets.held_out, seed, _phase(context, "testing on held-out prompts"))
    curves = curves_of(bench, mean, arguments.ranking, seed)
    verdict = judged(bench, circuit, order, Asked(arguments.controls, arguments.minimality, seed))
    clusters = sets.discovery.prompts.clusters
    overlaps = rediscovered(scores, clusters, order[:size], arguments.ranking, draws=DRAWS, seed=seed)
    stability = sum(overlaps) / len(overlaps) if len(set(clusters)) > 1 else None
    tests = parts.tests(sets.held_out)
    return CircuitResult(
        summary=_summary(arguments, parts, circuit, verdict, curves, stability),
        warnings=(
            *failed(tests),
            *_seen(arguments, gradients),
            *(doubts(recheck) if recheck else ()),
            *warnings_of(verdict, arguments.target, stability, len(circuit), len(parts.names)),
            *((sets.note,) if sets.note else ()),
            *sets.discovery.prompts.warnings,
        ),
        level=arguments.level,
        made=MADE[arguments.method].format(steps=arguments.steps),
        ablation="activations of the paired corrupted prompt",
        metric=arguments.metric,
        unit=UNITS[arguments.metric],
        of=len(parts.names),
        size=len(circuit),
        dropped=size - len(circuit),
        members=_members(parts, circuit, mean),
        chosen="given" if arguments.size else f"by halving: reaches f = {arguments.target:g} on discovery prompts",
        discovery_prompts=sets.discovery.prompts.n,
        held_out_prompts=sets.held_out.prompts.n,
        whole=_whole(model, bench, sets.held_out),
        verdict=verdict,
        curves=curves,
        stability=stability,
        recheck=recheck,
        saturated=gradients.saturated if gradients else (),
        gradient_completeness=gradients.completeness if gradients else None,
        self_tests=tests,
    )


def parts_of(context: Context, arguments: Arguments) -> CircuitParts:
    """The parts of the model.

    Raises:
        BadArguments: a size larger than there are parts, or too many to score each exactly.
        Unsupported: edges on a model whose parts are not known.
    """
    parts = parts_at(arguments.level, context.model, context.budget_bytes)
    n = len(parts.names)
    if arguments.size is not None and arguments.size > n:
        raise BadArguments(f"size {arguments.size}: there are {n} {arguments.level}; take fewer.")
    if arguments.method == "exact" and n > MOST_EXACT:
        raise BadArguments(
            f"method 'exact' would take {n:,} passes a prompt, one for each of the {arguments.level}; at most "
            f"{MOST_EXACT} are scored so. Take 'eap_ig', which re-checks the largest and a sample exactly, or level "
            "'nodes'."
        )
    return parts


def scored(
    parts: CircuitParts, on: Task, arguments: Arguments, context: Context
) -> tuple[FirstOrder | None, Tensor]:
    """Contributions [prompts, parts] on the discovery prompts, and what the gradients saw where they made them.

    Raises:
        BadArguments: kl, whose gradient at its own reference is 0.
    """
    if arguments.method == "exact":
        return None, exact(parts, on, range(len(parts.names)), _phase(context, "scoring parts")).T
    if arguments.metric == "kl" and arguments.method == "eap":
        raise BadArguments("the gradient of 'kl' at its own reference run is 0: take method 'exact' or 'eap_ig'.")
    found = parts.first_order(on, _steps(arguments), _phase(context, "scoring parts"))
    return found, found.values


def _steps(arguments: Arguments) -> int:
    return arguments.steps if arguments.method == "eap_ig" else 0


def _phase(context: Context, what: str) -> Tick:
    return lambda done, total, _: context.progress(done, total, what)


def _rechecked(
    context: Context, arguments: Arguments, parts: CircuitParts, on: Task, mean: ndarray, found: FirstOrder
) -> Recheck:
    """Some of the estimates beside exact contributions: all of them where there are few."""
    chosen = to_recheck(
        mean.tolist(), top=len(mean) if len(mean) <= ALL_CHECKED else arguments.top, sample=arguments.sample,
        doubted=doubted(parts, found.saturated, mean.tolist()), seed=arguments.seed,
    )  # fmt: skip
    values = exact(parts, on, list(chosen), _phase(context, "re-checking estimates")).numpy()
    clusters = Clusters(on.prompts.clusters, seed=arguments.seed)
    return compared(parts.names, chosen, mean.tolist(), values, clusters)


def _seen(arguments: Arguments, found: FirstOrder | None) -> tuple[str, ...]:
    if found is None:
        return ()
    return saturation_warnings(found.saturated, found.completeness, Way(_steps(arguments)), found.looked)


def _members(parts: CircuitParts, circuit: Sequence[int], mean: ndarray) -> tuple[CircuitMember, ...]:
    best = sorted(circuit, key=lambda i: -abs(mean[i]))[:LISTED]
    return tuple(
        CircuitMember(name=parts.names[i], kind=parts.kinds[i], contribution=float(mean[i])) for i in best
    )


def _whole(model: Model, bench: Bench, on: Task) -> Whole:
    corrupted = on.metric(last_logits(model, on.runs[1])).double().cpu().numpy()
    whole, empty, other = (
        bench.clusters.means(x).estimate() for x in (bench.scale.whole, bench.scale.empty, corrupted)
    )
    return Whole(model=whole, empty=empty, corrupted=other)


def plot(result: CircuitResult) -> Figure:
    """Faithfulness over sizes, the circuit itself, and the circuit beside its rivals."""
    members = [(m.name, m.contribution) for m in result.members]
    drawn = circuit_panel(members, result.size, result.unit)
    return Figure(
        title=f"A circuit of {result.size} of {result.of} {result.level}",
        caption=f"Scored by {result.made} on {result.discovery_prompts} prompts; f on {result.held_out_prompts} "
        f"held-out prompts, outside: {result.ablation}; {result.metric} {result.whole.model} whole, "
        f"{result.whole.empty} empty. f is not clipped.",
        panels=(curve_panel(result.curves), drawn, rivals_panel(result.verdict)),
    )


def _summary(
    arguments: Arguments, parts: CircuitParts, circuit: Sequence[int], v: Verdict, curves: Sequence[Curve],
    stability: float | None,
) -> str:  # fmt: skip
    stable = "" if stability is None else f" Found again on resampled prompts: Jaccard {stability:.2f}."
    heads = "" if v.same_layers is None else in_words("with other heads of the same layers", v.same_layers)
    return (
        f"A circuit of {len(circuit)} of {len(parts.names)} {arguments.level} has held-out faithfulness "
        f"{v.faithfulness}{in_words('random circuits alike', v.random)}{heads}; the rest without it "
        f"{v.complement.mean:.2f}, the inverted ranking {v.inverted.mean:.2f}. CPR {curves[0].cpr.mean:.2f} (signed), "
        f"CMD {curves[1].cmd.mean:.2f} (absolute).{stable} It is a circuit, not the circuit: others may do as well, "
        "and what its parts compute is not shown."
    )
