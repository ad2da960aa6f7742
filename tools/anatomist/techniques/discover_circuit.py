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
from ..causal.circuit_evaluation import (
    Asked,
    Bench,
    Verdict,
    Whole,
    curves_of,
    judged,
    pruned,
    smallest,
)
from ..causal.circuit_parts import CircuitParts, Level, Method, Seen, Task, Tick, exact, parts_at, seen
from ..causal.circuit_picture import circuit_panel, curve_panel
from ..causal.faithfulness import STABLE, Curve, Ranking, ranked, rediscovered
from ..causal.measured import encoded, failed, last_logits
from ..causal.recheck import Recheck, compared, doubts, to_recheck
from ..errors import BadArguments, BadPrompts
from ..figures import Bars, Figure
from ..measures.metrics import UNITS
from ..measures.statistics import Clusters
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
        default="eap_ig", description="How parts are scored: exact (a pass a part), eap, or eap_ig with `steps`."
    )
    steps: int = Field(default=5, ge=1, le=100, description="Steps of method eap_ig; no other uses them.")
    ranking: Ranking = Field(default="absolute", description="By magnitude, or by signed contribution.")
    size: int | None = Field(
        default=None, ge=1, description="Parts in it; absent: the fewest that reach `target` on discovery prompts."
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
    completeness: Completeness | None = Field(description="Whether the gradient accounts for the whole gap.")
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
    if arguments.split == "held_out":
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
        BadPrompts, BadArguments: see `sets_of`; or the whole model does not differ from the empty circuit.
        Unsupported: edges on a model whose parts are not known.
    """
    model, budget, seed = context.model, context.budget_bytes, arguments.seed
    sets = sets_of(context, arguments)
    parts = parts_at(arguments.level, model, budget)
    if arguments.size is not None and arguments.size > len(parts.names):
        raise BadArguments(f"size {arguments.size}: there are {len(parts.names)} {arguments.level}; take fewer.")
    contributions = scored(parts, sets.discovery, arguments, context)
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
    bench = Bench(parts, sets.held_out, seed, _phase(context, "testing on held-out prompts"))
    curves = curves_of(bench, mean, arguments.ranking, seed)
    verdict = judged(bench, circuit, order, Asked(arguments.controls, arguments.minimality, seed))
    clusters = sets.discovery.prompts.clusters
    overlaps = rediscovered(scores, clusters, order[:size], arguments.ranking, draws=DRAWS, seed=seed)
    stability = sum(overlaps) / len(overlaps) if len(set(clusters)) > 1 else None
    looked, recheck = _checked(context, arguments, parts, sets.discovery, mean)
    tests = parts.tests(sets.held_out)
    return CircuitResult(
        summary=_summary(arguments, parts, circuit, verdict, curves, stability),
        warnings=(
            *failed(tests),
            *_seen_warnings(arguments, looked),
            *(doubts(recheck) if recheck else ()),
            *_warnings(arguments, verdict, stability, len(circuit), len(parts.names)),
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
        chosen="given" if arguments.size else f"the fewest that reach f = {arguments.target:g} on discovery prompts",
        discovery_prompts=sets.discovery.prompts.n,
        held_out_prompts=sets.held_out.prompts.n,
        whole=_whole(context, bench, sets.held_out),
        verdict=verdict,
        curves=curves,
        stability=stability,
        recheck=recheck,
        saturated=looked.saturated if looked else (),
        completeness=looked.completeness if looked else None,
        self_tests=tests,
    )


def scored(parts: CircuitParts, on: Task, arguments: Arguments, context: Context) -> Tensor:
    """Contributions [prompts, parts] on the discovery prompts.

    Raises:
        BadArguments: kl, whose gradient at its own reference is 0.
    """
    if arguments.method == "exact":
        return exact(parts, on, range(len(parts.names)), _phase(context, "scoring parts")).T
    if arguments.metric == "kl" and arguments.method == "eap":
        raise BadArguments("the gradient of 'kl' at its own reference run is 0: take method 'exact' or 'eap_ig'.")
    return parts.first_order(on, _steps(arguments), _phase(context, "scoring parts"))


def _steps(arguments: Arguments) -> int:
    return arguments.steps if arguments.method == "eap_ig" else 0


def _phase(context: Context, what: str) -> Tick:
    return lambda done, total, _: context.progress(done, total, what)


def _checked(
    context: Context, arguments: Arguments, parts: CircuitParts, on: Task, mean: ndarray
) -> tuple[Seen | None, Recheck | None]:
    """What the gradients saw, and some of their estimates beside exact contributions."""
    if arguments.method == "exact":
        return None, None
    few = len(mean) <= ALL_CHECKED
    chosen = to_recheck(
        mean.tolist(), top=len(mean) if few else arguments.top, sample=arguments.sample, seed=arguments.seed
    )
    values = exact(parts, on, list(chosen), _phase(context, "re-checking estimates")).numpy()
    clusters = Clusters(on.prompts.clusters, seed=arguments.seed)
    looked = seen(context.model, on, _steps(arguments), context.budget_bytes, _phase(context, "looking for saturation"))
    return looked, compared(parts.names, chosen, mean.tolist(), values, clusters)


def _seen_warnings(arguments: Arguments, looked: Seen | None) -> tuple[str, ...]:
    if looked is None:
        return ()
    return saturation_warnings(looked.saturated, looked.completeness, Way(_steps(arguments)), looked.looked)


def _members(parts: CircuitParts, circuit: Sequence[int], mean: ndarray) -> tuple[CircuitMember, ...]:
    best = sorted(circuit, key=lambda i: -abs(mean[i]))[:LISTED]
    return tuple(
        CircuitMember(name=parts.names[i], kind=parts.kinds[i], contribution=float(mean[i])) for i in best
    )


def _whole(context: Context, bench: Bench, on: Task) -> Whole:
    assert on.prompts.corrupted is not None
    corrupted = on.metric(last_logits(context.model, on.prompts.corrupted)).double().cpu().numpy()
    model, empty, other = (
        bench.clusters.means(x).estimate() for x in (bench.scale.whole, bench.scale.empty, corrupted)
    )
    return Whole(model=model, empty=empty, corrupted=other)


def plot(result: CircuitResult) -> Figure:
    """Faithfulness over sizes, the circuit itself, and the circuit beside its rivals."""
    v = result.verdict
    rivals = sorted(v.random, reverse=True)
    beside = Bars(
        title="held-out faithfulness of the circuit and its rivals",
        value_title="faithfulness f",
        labels=("circuit", "all the rest", "inverted", *(f"random {i + 1}" for i in range(len(rivals)))),
        values=(v.faithfulness.mean, v.complement.mean, v.inverted.mean, *rivals),
        groups=("circuit", "rest", "inverted", *("random" for _ in rivals)),
        reference=1.0,
    )
    members = [(m.name, m.contribution) for m in result.members]
    return Figure(
        title=f"A circuit of {result.size} of {result.of} {result.level}",
        caption=f"Scored by {result.made} on {result.discovery_prompts} prompts; f on {result.held_out_prompts} "
        f"held-out prompts, outside: {result.ablation}; {result.metric} {result.whole.model} whole, "
        f"{result.whole.empty} empty. f is not clipped.",
        panels=(curve_panel(result.curves), circuit_panel(members, result.unit), beside),
    )


def _summary(
    arguments: Arguments, parts: CircuitParts, circuit: Sequence[int], v: Verdict, curves: Sequence[Curve],
    stability: float | None,
) -> str:  # fmt: skip
    controls = "" if v.p is None else (
        f"; {len(v.random)} random circuits of that size {v.random_mean:.2f} on average, at most {max(v.random):.2f} "
        f"(p = {v.p:.2g})"
    )  # fmt: skip
    stable = "" if stability is None else f" Found again on resampled prompts: Jaccard {stability:.2f}."
    return (
        f"A circuit of {len(circuit)} of {len(parts.names)} {arguments.level} has held-out faithfulness "
        f"{v.faithfulness}{controls}; the rest without it {v.complement.mean:.2f}, the inverted ranking "
        f"{v.inverted.mean:.2f}. CPR {curves[0].cpr.mean:.2f} (signed), CMD {curves[1].cmd:.2f} (absolute).{stable} It "
        "is a circuit, not the circuit: others may do as well, and what its parts compute is not shown."
    )


def _warnings(
    arguments: Arguments, v: Verdict, stability: float | None, size: int, of: int
) -> tuple[str, ...]:
    found: list[str] = []
    f = v.faithfulness.mean
    if size == of:
        found.append(f"No circuit smaller than the whole model reaches f = {arguments.target:g}.")
    if f > 1.05:
        found.append(f"f is {f:.2f}: parts left out work against the behaviour, so the circuit overshoots the model.")
    if f < 0:
        found.append(f"f is {f:.2f}: on held-out prompts the circuit does worse than nothing at all.")
    if v.p is not None and v.p > 0.05:
        as_good = sum(r >= f for r in v.random)
        found.append(
            f"{as_good} of {len(v.random)} random circuits like it are at least as faithful (p = {v.p:.2g}): the size "
            "and the kinds of parts may do it, not these parts."
        )
    if v.inverted.mean >= f and size < of:
        found.append("The inverted ranking is at least as faithful: the scores do not find what does the task.")
    if v.complement.mean > 0.5 and size < of:
        found.append(
            f"The rest of the model keeps f = {v.complement.mean:.2f} without the circuit: enough, but not needed; "
            "something outside does the same work."
        )
    if v.minimality.idle:
        found.append(f"Not minimal: {len(v.minimality.idle)} of {v.minimality.checked} parts can go without loss.")
    if stability is not None and stability < STABLE:
        found.append(f"UNSTABLE: circuits found on resampled prompts overlap by {stability:.2f} (Jaccard) only.")
    return tuple(found)
