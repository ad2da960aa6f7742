"""Steer the model: add a direction to its activations, at several strengths, and score what it then says.

Idea: if a direction carries a concept that the model uses, adding it should move the behaviour towards the concept,
more with more of it, the other way with the sign turned, and more than adding any vector of the same length; and it
should cost little where the concept is beside the point.

Source: Turner et al., arXiv 2308.10248 (activation addition); Rimsky et al., arXiv 2312.06681, section 3 (difference of
means added at every position, both signs, several strengths); Wu et al., arXiv 2501.17148 (AxBench: prompting and
difference of means as baselines). With M the metric per prompt: change = mean of M(steered) - M(unsteered);
p = (1 + b) / (1 + B), b of B random directions of the same length whose change is at least as large in magnitude.

Does not show: that the model itself writes or reads the direction when it is left alone: a vector can push the output
without being one of the model's own. A change at one strength may come from breaking the model: read the cost too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..causal.directions import DirectionRef, Vector, dictionary_named, direction_of, like
from ..causal.dose_response import SteeredAt, corrected_p, dose, loss_response, response
from ..causal.measured import encoded, failed, last_logits
from ..causal.neutral import neutral_tokens, total_loss
from ..causal.steered_text import Push, Sample, samples, with_instruction
from ..causal.steering import (
    Lever,
    lever_at,
    losses,
    random_vectors,
    steered_values,
)
from ..causal.units import chosen_layers
from ..causal.vocabulary import token_choice
from ..errors import BadArguments, BadPrompts
from ..figures import Figure, Lines
from ..measures.metrics import NEEDS, UNITS, Metric, MetricName, metric_for
from ..measures.statistics import Clusters
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts, Part, encode
from ..prompts.prompt_set import PromptSet
from ..result import Estimate, Result, SelfTest
from ..technique import Context, OnPrompts, Positions, Progress
from ..technique import Metric as MetricArgument

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "Steering"
QUESTIONS = (
    "Does adding this direction make the model say it?",
    "How strongly can I steer before the text breaks?",
    "Is this direction better than a random one, or than an instruction in the prompt?",
)
SteerSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
ENOUGH = 20  # random directions
COSTLY = 0.5  # nats a token on neutral text


class Arguments(OnPrompts):
    """Arguments of steer."""

    direction: DirectionRef = Field(
        description="{run, array, layer}, {tokens, minus, side}, {values} or {sae, feature}: what is added."
    )
    beside: tuple[DirectionRef, ...] = Field(
        default=(), max_length=4, description="Other directions scored at the same length, like a difference of means."
    )
    site: SteerSite = Field(default="resid_post", description="Kind of place it is added to.")
    layers: tuple[int, ...] = Field(min_length=1, max_length=64, description="Layers, each tried by itself.")
    together: bool = Field(default=False, description="Add it at all the layers at once instead.")
    positions: Positions = Field(default="all", description="Where it is added: 'all', or integers, 'last', roles.")
    strengths: tuple[float, ...] = Field(
        default=(0.25, 0.5, 1.0), min_length=1, max_length=12, description="Above 0; each is run with both signs."
    )
    unit: Literal["median_norm", "absolute"] = Field(
        default="median_norm",
        description="A strength of 1 adds a vector as long as the median activation there, or the direction as it is.",
    )
    controls: int = Field(default=ENOUGH, ge=0, le=200, description="Random directions of the same length.")
    metric: MetricArgument | None = Field(
        default=None, description="Metric at the last token; absent: logit_diff, or logprob of `targets`."
    )
    targets: tuple[str | int, ...] = Field(
        default=(), description="Tokens whose joint log-probability is the metric, where prompts have no answers."
    )
    instruction: str | tuple[int, ...] | None = Field(
        default=None, description="Put before each prompt as the baseline that steering must be compared with."
    )
    samples: int = Field(default=3, ge=0, le=16, description="Prompts that are continued; 0 for none.")
    new_tokens: int = Field(default=16, ge=1, le=200, description="Tokens a continuation.")
    keywords: tuple[str, ...] = Field(default=(), description="Strings whose presence in continuations is counted.")
    neutral_text: tuple[str | tuple[int, ...], ...] = Field(
        default=(), max_length=32, description="Texts on which steering should cost little; absent: the prompts."
    )

    @property
    def sae(self) -> str | None:
        """The dictionary whose feature is meant, which the host then loads."""
        return dictionary_named((self.direction, *self.beside))


class SteerResult(Result):
    """Dose-response of a direction, with what it must be compared with."""

    direction: str = Field(description="The direction, in words.")
    beside: tuple[str, ...] = Field(description="The directions of `beside`, in words.")
    metric: str = Field(description="What was measured.")
    unit: str = Field(description="Its unit.")
    base: Estimate = Field(description="The metric, unsteered.")
    instruction: Estimate | None = Field(description="Change of the metric by the instruction; absent if none given.")
    places: tuple[SteeredAt, ...] = Field(description="One per layer, or one for all together.")
    neutral: str = Field(description="What the cost was measured on.")
    neutral_loss: float = Field(description="Loss there, unsteered, nats a token.")
    samples: tuple[Sample, ...] = Field(description="Continuations; greedy.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this model and these prompts.")


def run(context: Context, arguments: Arguments) -> SteerResult:
    """Score every strength, sign and control at every place, then continue some prompts.

    Raises:
        BadArguments: strengths that are not above 0, a direction that cannot be used, or nothing to measure.
        BadPrompts, BadSite, BadPosition: from the prompts and the places.
    """
    model = context.model
    strengths = _strengths(arguments)
    layers = chosen_layers(arguments.layers, model.info.shape)
    prompts, metric = _prompts(context, arguments, context.prompts)
    wanted, *others = (direction_of(context, ref) for ref in (arguments.direction, *arguments.beside))
    groups = [layers] if arguments.together else [(layer,) for layer in layers]
    levers = [
        lever_at(model, prompts, arguments.site, group, arguments.positions, context.budget_bytes) for group in groups
    ]
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    base = metric(last_logits(model, prompts.clean)).double().cpu().numpy()
    neutral = _neutral(context, arguments, prompts)
    before = total_loss(model, neutral) / (sum(neutral.lengths) - neutral.n_rows)
    places: list[SteeredAt] = []
    tests: list[SelfTest] = [_nothing_added(context, levers[0], metric, base)]
    for done, lever in enumerate(levers):
        context.progress(done, len(levers) + 1, f"steering at {lever.where}")
        place, found = _at(context, arguments, lever, metric, clusters, strengths, wanted, others, neutral, before)
        places.append(place)
        tests += found
    context.progress(len(levers), len(levers) + 1, "continuing prompts")
    pushes = _pushes(context, arguments, levers, wanted, strengths) if arguments.samples else []
    said = samples(model, pushes, arguments.new_tokens, arguments.keywords, seed=arguments.seed)
    instructed = _instructed(context, arguments, base, clusters)
    result = SteerResult(
        summary="",
        direction=wanted.name,
        beside=tuple(o.name for o in others),
        metric=metric.name if not arguments.targets else "logprob of the targets",
        unit=UNITS[metric.name],
        base=clusters.means(base).estimate(),
        instruction=instructed,
        places=tuple(places),
        neutral=f"{len(arguments.neutral_text)} given texts" if arguments.neutral_text else "the prompts' own tokens",
        neutral_loss=before,
        samples=said,
        self_tests=tuple(tests),
    )
    warnings = (*failed(tests), *_warnings(result, arguments, clusters), *prompts.warnings)
    return result.model_copy(update={"summary": _summary(result), "warnings": warnings})


def plot(result: SteerResult) -> Figure:
    """Dose-response of both signs with the band of random directions, and the cost, at each place."""
    panels = [panel for place in result.places[:6] for panel in (_response(result, place), loss_response(place))]
    return Figure(
        title=f"Steering with {result.direction}",
        caption=f"{result.metric} ({result.unit}); unsteered {result.base}; negative strengths subtract the direction. "
        f"Bands: 95% cluster bootstrap; for random directions their whole range. Cost on {result.neutral}.",
        panels=tuple(panels),
        columns=2,
    )


def _response(result: SteerResult, place: SteeredAt) -> Lines:
    return response(place, result.base, result.metric, result.unit, result.beside, result.instruction)


def _strengths(arguments: Arguments) -> tuple[float, ...]:
    if any(s <= 0 for s in arguments.strengths) or len(set(arguments.strengths)) < len(arguments.strengths):
        raise BadArguments(
            f"strengths {list(arguments.strengths)}: give each once and above 0; both signs are run in any case."
        )
    return tuple(sorted(arguments.strengths))


def _prompts(context: Context, arguments: Arguments, given: PromptSet | None) -> tuple[EncodedPrompts, Metric]:
    """The prompts and what is measured on them.

    Raises:
        BadArguments: both a metric and targets.
        BadPrompts: no prompts, or without the answers that the metric needs.
    """
    model = context.model
    if arguments.targets:
        if arguments.metric is not None:
            raise BadArguments("`targets` are measured by their log-probability: leave `metric` out, or the targets.")
        if given is None:
            raise BadPrompts("there are no prompts; give a handle from make_prompts or a list of prompts.")
        prompts = encode(given, model, bos=arguments.bos)
        return prompts, Metric("logprob", (token_choice(model, arguments.targets, "targets"),) * prompts.n)
    name: MetricName = arguments.metric or "logit_diff"
    need: list[Part] = [*NEEDS[name]]
    prompts = encoded(given, model, arguments.bos, (name,), corrupted=False)
    assert all(getattr(prompts, "answers" if part == "answer" else "wrongs") for part in need)
    reference = None
    if name == "kl":
        reference = model.run(prompts.clean, logits_at=prompts.clean.last).logits
    return prompts, metric_for(name, prompts, reference=reference)


def _neutral(context: Context, arguments: Arguments, prompts: EncodedPrompts) -> Tokens:
    if arguments.neutral_text:
        return neutral_tokens(context.model, arguments.neutral_text, bos=arguments.bos)
    long = [row for row, n in enumerate(prompts.clean.lengths) if n > 1][:8]
    if not long:
        raise BadPrompts("prompts of one token have no loss to measure the cost on; give `neutral_text`.")
    return prompts.clean.rows(long)


def _size(arguments: Arguments, strength: float, lever: Lever, vector: Tensor) -> float:
    """Length of what is added."""
    return strength * (lever.median_norm if arguments.unit == "median_norm" else float(vector.norm()))


def _at(
    context: Context, arguments: Arguments, lever: Lever, metric: Metric, clusters: Clusters,
    strengths: Sequence[float], wanted: Vector, others: Sequence[Vector], neutral: Tokens, before: float,
) -> tuple[SteeredAt, tuple[SelfTest, ...]]:  # fmt: skip
    """All strengths at one place, as one sweep over conditions; and the sweep's checks of itself."""
    model = context.model
    unit = wanted.vector / wanted.vector.norm()
    drawn = random_vectors(like(model), arguments.controls, arguments.seed)
    sizes = [_size(arguments, s, lever, wanted.vector) for s in strengths]
    units = [unit, -unit, *(o.vector / o.vector.norm() for o in others), *drawn]
    conditions = [size * u for size in sizes for u in units]
    found = steered_values(
        model, lever, metric, conditions, context.budget_bytes, _ticker(context, lever), seed=arguments.seed
    )
    values = found.values.reshape(len(sizes), len(units), -1)
    changes = values - found.base
    few = drawn[:3]
    pushed = [size * u for size in sizes for u in (unit, *few)]
    added = losses(model, lever, neutral, pushed, context.budget_bytes)
    doses = tuple(
        dose(strengths[i], sizes[i], values[i, 0], changes[i], len(others), clusters,
              [loss.mean - before for loss in added[i * (1 + len(few)) : (i + 1) * (1 + len(few))]])
        for i in range(len(sizes))
    )  # fmt: skip
    place = SteeredAt(
        where=lever.where,
        median_norm=lever.median_norm,
        cosine=lever.cosine(unit),
        doses=doses,
        p=corrected_p(changes[:, 0].mean(-1), changes[:, 2 + len(others) :].mean(-1)) if drawn else None,
    )
    return place, found.tests


def _ticker(context: Context, lever: Lever) -> Progress:
    """Progress within one place: it can be cancelled, the bar moves from place to place."""
    return lambda done, total, what: context.progress(done, total, f"steering at {lever.where}")


def _nothing_added(context: Context, lever: Lever, metric: Metric, base: ndarray) -> SelfTest:
    zero = like(context.model) * 0
    found = steered_values(context.model, lever, metric, [zero], context.budget_bytes)
    difference = float(abs(found.values[0] - base).max())
    return SelfTest(
        name="adding a vector of zeros changes nothing", expected=0.0, found=difference, tolerance=1e-3,
        passed=difference <= 1e-3,
    )  # fmt: skip


def _instructed(context: Context, arguments: Arguments, base: ndarray, clusters: Clusters) -> Estimate | None:
    """Change of the metric when the instruction stands before each prompt."""
    if arguments.instruction is None or context.prompts is None:
        return None
    given = with_instruction(context.prompts, arguments.instruction)
    prompts, metric = _prompts(context, arguments, given)
    if metric.name == "kl":
        raise BadArguments("kl compares with the same prompt unsteered: take another metric for `instruction`.")
    values = metric(last_logits(context.model, prompts.clean)).double().cpu().numpy()
    return clusters.means(values - base).estimate()


def _pushes(
    context: Context, arguments: Arguments, levers: Sequence[Lever], wanted: Vector, strengths: Sequence[float]
) -> list[Push]:
    """Without steering, with the instruction, and with every strength of either sign and of a random direction."""
    rows = list(range(min(arguments.samples, levers[0].tokens.n_rows)))
    unit = wanted.vector / wanted.vector.norm()
    (random,) = random_vectors(like(context.model), 1, arguments.seed)
    found = [Push("unsteered", levers[0].rows(rows), None)]
    if arguments.instruction is not None and context.prompts is not None:
        told = encode(with_instruction(context.prompts, arguments.instruction), context.model, bos=arguments.bos)
        found.append(Push("instruction", Lever.nowhere(told.clean.rows(rows)), None))
    for lever in levers:
        for strength in strengths:
            size = _size(arguments, strength, lever, wanted.vector)
            for how, vector in (("+", unit), ("-", -unit), ("random +", random)):
                found.append(Push(f"{how}{strength:g}", lever.rows(rows), size * vector))
    return found


def _summary(result: SteerResult) -> str:
    best = max(result.places, key=lambda p: max(abs(d.change.mean) for d in p.doses))
    dose = max(best.doses, key=lambda d: abs(d.change.mean))
    random = ""
    if dose.random:
        span = f"{min(dose.random):+.3g} to {max(dose.random):+.3g}"
        random = f", random directions {span}, p = {dose.p:.3g}; over all strengths there p = {best.p:.3g}"
    told = "" if result.instruction is None else f" The instruction: {result.instruction.mean:+.3g}."
    return (
        f"{result.metric} is {result.base} unsteered. Largest change, at {best.where} and strength {dose.strength:g}: "
        f"{dose.change.mean:+.3g} {result.unit} (wrong sign {dose.wrong_sign.mean:+.3g}{random}); it costs "
        f"{dose.loss_added:+.2f} nats a token on {result.neutral}.{told} Steering shows what the direction can do to "
        "the model, not that the model uses it by itself."
    )


def _warnings(result: SteerResult, arguments: Arguments, clusters: Clusters) -> tuple[str, ...]:
    found: list[str] = []
    if arguments.controls < ENOUGH:
        found.append(f"{arguments.controls} random directions are few: {ENOUGH} or more show what any vector does.")
    if arguments.instruction is None:
        found.append("No instruction was given: whether steering does more than asking in the prompt is not known.")
    if not arguments.neutral_text:
        found.append("The cost was measured on the prompts' own tokens: give `neutral_text` to see it elsewhere.")
    for place in result.places:
        if same := [d.strength for d in place.doses if d.change.mean * d.wrong_sign.mean > 0 and _moves(d.change)]:
            found.append(
                f"{place.where}: both signs move the metric the same way at strength "
                f"{', '.join(f'{s:g}' for s in same)}: that is what breaking the model looks like, not a direction "
                "with two ends."
            )
        if costly := [d.strength for d in place.doses if d.loss_added > COSTLY]:
            found.append(
                f"{place.where}: from strength {min(costly):g} on steering costs more than {COSTLY:g} nats a token on "
                f"{result.neutral}."
            )
        if place.p is not None and place.p > 0.05:
            found.append(f"{place.where}: no better than random directions of the same length (p = {place.p:.2g}).")
    if clusters.count < 2:
        found.append("There is one cluster of prompts: no intervals.")
    return tuple(found)


def _moves(change: Estimate) -> bool:
    return change.low is not None and change.high is not None and not change.low <= 0 <= change.high
