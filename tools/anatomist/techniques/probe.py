"""Train a linear probe at every layer on labelled texts, and test it against what a probe can do without the model.

Idea: if a property can be read linearly off the activations at a layer, a linear model trained on some examples finds
it on others. A probe can also learn by heart, or use what any network or the bare words would give: so it is run beside
a control task, shuffled labels, unseen token types, the embedding, an untrained twin, a bag of words and the majority.

Source: Alain & Bengio, arXiv 1610.01644 (linear probes per layer); Hewitt & Liang, arXiv 1909.03368 (control task:
every word type gets a random label; selectivity = accuracy - control accuracy); Belinkov, arXiv 2102.12452 (what probes
do not show). Objectives: `measures/linear_models.py`.

Does not show: that the model uses what can be read (patch or erase to find out), nor that the direction of a probe is
the model's own: many directions classify alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..causal.probe_tests import Data, Plan, Test, chance_p, columns, fit_all, plan_of
from ..causal.probing import Fitter, Method, Probe, blind_probe, counts, read_features
from ..causal.tables import Quantities, quantities
from ..causal.units import chosen_layers
from ..errors import BadArguments, WouldNotFit
from ..figures import Bars, Figure, Lines, Series
from ..measures.decoding import Statistic
from ..measures.statistics import Intervals
from ..model.protocol import Model
from ..model.sites import Site, check_site
from ..model.tokens import PositionSpec
from ..prompts.examples import Example, encode_examples
from ..result import Estimate, Frozen, Grid, Result, grid
from ..technique import Arguments as Base
from ..technique import Bos, Context, Layers

if TYPE_CHECKING:
    from numpy import ndarray

TITLE = "Linear probes"
QUESTIONS = (
    "Is a property linearly readable from the activations, and from which layer on?",
    "Can a probe decode this label, or does it only memorise words?",
    "Which layer represents a number or a class?",
)
SIGNIFICANT = 0.05
FEW_GROUPS = 8  # test groups under which an interval says little
FEW_EXAMPLES = 32  # test examples under which a share is coarse
EMBED = "embed"  # the level before the first layer
NOT_DRAWN = ("auroc", "selectivity", "lowest split", "highest split")
FREE = 0.02  # gap of accuracies under which two are called alike


class Arguments(Base):
    """Arguments of probe."""

    examples: Annotated[tuple[Example, ...], Field(min_length=8, max_length=20_000)] = Field(
        description="Labelled texts: {text, label, group, position}; label a text (class) or a number."
    )
    method: Method | None = Field(
        default=None, description="Absent: logistic for classes, ridge for numbers. difference_of_means: nearest mean."
    )
    site: Literal["resid_post", "resid_mid", "attn_out", "mlp_out"] = Field(
        default="resid_post", description="Place read after each layer."
    )
    layers: Layers = None
    position: PositionSpec = Field(
        default="last", description="Where texts are read: an integer, 'last', a token's text; 'mean' of all tokens."
    )
    minimum: float = Field(
        default=0.05, ge=0, lt=1, description="Least gain over the majority that counts, in accuracy or R2."
    )
    splits: int = Field(default=3, ge=1, le=10, description="Random splits; the first is analysed, all give a range.")
    null_models: int = Field(default=1, ge=0, le=3, description="Untrained models of the same configuration.")
    bos: Bos = None


class Reading(Frozen):
    """One number with what it is."""

    name: str = Field(description="What was scored.")
    value: Estimate = Field(description="On test examples, in the result's unit; intervals over groups.")


class Sizes(Frozen):
    """How the examples were split."""

    train: int = Field(description="Examples that train.")
    validation: int = Field(description="Examples that choose the penalty.")
    test: int = Field(description="Examples that test.")
    test_groups: int = Field(description="Groups in the test part; none of them is in another part.")
    types: int = Field(description="Distinct token types that are read (whole texts for 'mean').")
    seen: int = Field(description="Test examples whose type is in the training part too.")


class ProbeResult(Result):
    """Probes of every layer, their controls and baselines."""

    method: Method = Field(description="The linear model.")
    unit: Literal["accuracy", "R2"] = Field(description="Unit of the scores.")
    classes: tuple[str, ...] = Field(description="Class names in the order of the kept weights; empty for numbers.")
    sizes: Sizes = Field(description="How the examples were split, by group.")
    scores: Quantities = Field(description="Scores and controls at every layer, on test examples.")
    p: Grid = Field(description="Per layer: chance of the score with test labels dealt anew by group, over all layers.")
    decodable: tuple[str, ...] = Field(
        description="Layers with p < .05 whose interval is above the majority by more than `minimum`."
    )
    best: str = Field(description="Layer with the best score on the validation part (not on the test part).")
    best_readings: tuple[Reading, ...] = Field(description="All quantities of that layer, with intervals.")
    baselines: tuple[Reading, ...] = Field(description="Majority (mean, for numbers) and bag of words.")
    gains: tuple[Reading, ...] = Field(description="Best layer minus each baseline, paired over the same examples.")
    penalties: tuple[float | None, ...] = Field(description="Per layer, the penalty chosen on the validation part.")


def run(context: Context, arguments: Arguments) -> ProbeResult:
    """Read all layers in one pass, fit probes and controls at each, and test them on groups that were not trained on.

    Raises:
        BadArguments: labels or a method that do not fit together, or no split with every class in every part.
        BadSite, BadPosition, BadPrompts: from the examples and the model.
        WouldNotFit: what is kept of the examples, or an untrained model, is over the budget.
    """
    data = _data(context.model, arguments)
    names, sites = _levels(context.model, arguments)
    plan = plan_of(data, arguments.splits)
    twins, no_twin = _twins(context, arguments)
    n, steps = data.examples.n, 1 + len(twins) + len(sites)

    def features(model: Model, place: int) -> ndarray:
        def read(done: int, total: int) -> None:
            context.progress(place * n + done, steps * n, f"reading {model.info.name}")

        return read_features(model, data.examples, sites, context.budget_bytes, read)

    def fitted(done: int) -> None:
        context.progress((1 + len(twins) + done) * n, steps * n, "fitting")

    own = features(context.model, 0)
    untrained = [features(twin(), 1 + i) for i, twin in enumerate(twins)]
    fits = fit_all(data, plan, own, untrained, fitted)
    _keep(context, fits.real)
    test = Test.of(data, plan.parts.test, data.examples.groups)
    found, p = columns(data, plan, fits), chance_p(test, fits.real)
    majority = blind_probe(data.y, plan.parts, data.n_classes)
    words = Fitter(counts(data.examples), plan.parts, data.method, data.n_classes).fit(data.y)
    best = _best(data, plan, fits.real)
    above = _minus(test, fits.real, majority)
    decodable = tuple(
        name for i, name in enumerate(names)
        if p[i] < SIGNIFICANT and above.low is not None and above.low[i] > arguments.minimum
    )  # fmt: skip
    baselines = {"majority" if data.n_classes else "mean": majority, "bag of words": words}
    readings = tuple(Reading(name=name, value=values.estimate(best)) for name, values in found.items())
    gains = _gains(test, fits.real[best], baselines | _others(names, best, fits.real, fits.untrained))
    unit = "accuracy" if data.n_classes else "R2"
    result = ProbeResult(
        summary="",
        warnings=(*no_twin, *plan.notes, *_warnings(data, plan, gains, readings, bool(decodable))),
        method=data.method,
        unit=unit,
        classes=data.classes,
        sizes=_sizes(data, plan, test),
        scores=quantities("score", unit, names, found),
        p=grid("p over all layers", "probability", [("layer", names)], map(float, p)),
        decodable=decodable,
        best=names[best],
        best_readings=readings,
        baselines=tuple(_reading(name, test, test.score([probe])) for name, probe in baselines.items()),
        gains=gains,
        penalties=tuple(probe.penalty for probe in fits.real),
    )
    return result.model_copy(update={"summary": _summary(result, len(names), arguments)})


def plot(result: ProbeResult) -> Figure:
    """Scores and controls by layer, and the best layer against what needs no model."""
    shown = [n for n in result.scores.names if n not in NOT_DRAWN]
    floor = result.baselines[0]
    lines = Lines(
        title=f"{result.unit} by layer; dashed: {floor.name}", x_title="after layer", x=result.scores.layers,
        y_title=result.unit, series=tuple(_line(result, name) for name in shown), reference=floor.value.mean,
    )  # fmt: skip
    bars = [r for r in result.best_readings if r.name in shown] + list(result.baselines)
    second = Bars(
        title=f"Layer {result.best} (chosen on the validation part)", value_title=result.unit,
        labels=tuple(r.name for r in bars), values=tuple(r.value.mean for r in bars),
        low=tuple(r.value.low for r in bars), high=tuple(r.value.high for r in bars), reference=floor.value.mean,
    )  # fmt: skip
    s = result.sizes
    return Figure(
        title="Linear probes",
        caption=f"{result.method.replace('_', ' ')}, {s.train} training, {s.validation} validation, {s.test} test "
        f"examples, {s.test_groups} test groups; intervals over groups. What can be read, not what is used.",
        panels=(lines, second),
    )


def _line(result: ProbeResult, name: str) -> Series:
    """The score with its band; the others as lines, for overlapping bands hide each other."""
    series = result.scores.series(name)
    return series if name == "score" else series.model_copy(update={"low": None, "high": None})


def _data(model: Model, arguments: Arguments) -> Data:
    import numpy as np

    examples = encode_examples(arguments.examples, model, position=arguments.position, bos=arguments.bos)
    words = isinstance(examples.labels[0], str)
    method: Method = arguments.method or ("logistic" if words else "ridge")
    if words == (method == "ridge"):
        kind, fitting = ("texts", "logistic or difference_of_means") if words else ("numbers", "ridge")
        raise BadArguments(f"the labels are {kind} and the method is {method!r}; use {fitting}, or leave method out.")
    classes = tuple(sorted({str(label) for label in examples.labels})) if words else ()
    if words and len(classes) < 2:
        raise BadArguments(f"every label is {examples.labels[0]!r}; a probe needs at least two classes.")
    y = [classes.index(str(x)) for x in examples.labels] if words else [float(x) for x in examples.labels]
    return Data(examples, np.asarray(y), classes, method, arguments.seed)


def _levels(model: Model, arguments: Arguments) -> tuple[list[str], list[Site]]:
    """The embedding, then each layer; names and places."""
    layers = chosen_layers(arguments.layers, model.info.shape)
    sites = [check_site(Site(arguments.site, layer), model.info.shape) for layer in layers]
    return [EMBED, *(str(site.layer) for site in sites)], [Site("resid_pre", 0), *sites]


def _twins(context: Context, arguments: Arguments) -> tuple[list[Callable[[], Model]], tuple[str, ...]]:
    """Untrained models to be made one by one; what to say where there is none.

    Raises:
        WouldNotFit: one more model of this size is over the budget.
    """
    info, draw = context.model.info, context.random_twin
    if not arguments.null_models:
        return [], ("No untrained model was probed: random features of the same shape may score as high.",)
    if draw is None or info.configuration is None:
        return [], (f"{info.name} has no configuration to draw an untrained model from: that baseline is missing.",)
    if info.weight_bytes > context.budget_bytes:
        raise WouldNotFit(
            f"an untrained model like {info.name} needs {info.weight_bytes / 2**20:,.0f} MiB beside it; "
            f"{context.budget_bytes / 2**20:,.0f} MiB may be used. Pass null_models=0 to go without, or unload a model."
        )
    return [partial(draw, seed) for seed in range(1, arguments.null_models + 1)], ()


def _keep(context: Context, probes: Sequence[Probe]) -> None:
    from torch import tensor

    weights, biases = ([getattr(p.linear, part).tolist() for p in probes] for part in ("weight", "bias"))
    context.keep("weights", tensor(weights), axes=("layer", "class", "d_model"), unit="score per unit of activation")
    context.keep("bias", tensor(biases), axes=("layer", "class"), unit="score")


def _best(data: Data, plan: Plan, probes: Sequence[Probe]) -> int:
    """The layer with the highest score on the validation part; of equals the one with the smallest loss."""
    scores = Test.of(data, plan.parts.validation, data.examples.groups).value(probes)
    return max(range(len(probes)), key=lambda i: (scores[i], -probes[i].loss))


def _minus(test: Test, probes: Sequence[Probe], other: Probe) -> Intervals:
    """Scores minus another probe's, paired over the same draws."""
    own, base = test.score(probes), test.score([other])
    return test.intervals(lambda weights: own(weights) - base(weights))


def _others(
    names: Sequence[str], best: int, probes: Sequence[Probe], untrained: Sequence[Sequence[Probe]]
) -> dict[str, Probe]:
    found = {} if best == 0 else {names[0]: probes[0]}
    return found | ({"untrained": untrained[0][best]} if untrained else {})


def _gains(test: Test, probe: Probe, others: dict[str, Probe]) -> tuple[Reading, ...]:
    return tuple(
        Reading(name=f"minus {name}", value=_minus(test, [probe], other).estimate(0)) for name, other in others.items()
    )


def _reading(name: str, test: Test, statistic: Statistic) -> Reading:
    return Reading(name=name, value=test.intervals(statistic).estimate(0))


def _sizes(data: Data, plan: Plan, test: Test) -> Sizes:
    return Sizes(
        train=len(plan.parts.train), validation=len(plan.parts.validation), test=len(plan.parts.test),
        test_groups=test.clusters.count, types=len(set(data.examples.types)), seen=len(plan.seen),
    )  # fmt: skip


def _warnings(
    data: Data, plan: Plan, gains: Sequence[Reading], readings: Sequence[Reading], any_layer: bool
) -> tuple[str, ...]:
    found, groups = [], len({data.examples.groups[row] for row in plan.parts.test})
    if groups < FEW_GROUPS or len(plan.parts.test) < FEW_EXAMPLES:
        found.append(
            f"The test part has {len(plan.parts.test)} examples in {groups} groups: intervals are rough. Give more."
        )
    if len(set(data.examples.groups)) == data.examples.n:
        found.append(
            "No groups were given: texts that share a template or words may stand on both sides of the split, and a "
            "probe then scores by what they share. Give each example its `group`."
        )
    alike = [r.name.removeprefix("minus ") for r in gains if r.value.low is None or r.value.low <= 0]
    if any_layer and alike:
        found.append(f"The best layer is not clearly better than: {', '.join(alike)}. The model may add nothing to it.")
    by_name = {r.name: r.value for r in readings}
    score, control, unseen = (by_name.get(name) for name in ("score", "control", "unseen types"))
    if score and control and score.mean - control.mean < (score.mean - gains_floor(gains, score)) / 2:
        found.append(
            f"Low selectivity: random labels per word are learnt to {control.mean:.2f}. The probe is strong enough to "
            "know words by heart; trust the score on unseen types, or a simpler probe."
        )
    if score and unseen and unseen.high is not None and unseen.high < score.mean - FREE:
        found.append(f"On token types that were not trained on it falls from {score.mean:.2f} to {unseen.mean:.2f}.")
    return tuple(found)


def gains_floor(gains: Sequence[Reading], score: Estimate) -> float:
    """The majority's own score."""
    return score.mean - gains[0].value.mean


def _summary(result: ProbeResult, layers: int, arguments: Arguments) -> str:
    score = result.best_readings[0].value
    others = "; ".join(f"{r.name} {r.value.mean:.2f}" for r in (*result.best_readings[1:], *result.baselines))
    where = f"{len(result.decodable)} of {layers} levels" if result.decodable else f"none of {layers} levels"
    return (
        f"{result.unit} of a linear probe is highest (by the validation part) at layer {result.best}: {score}. Beside "
        f"it: {others}. Above the {result.baselines[0].name} by more than {arguments.minimum:g} and beyond chance over "
        f"all layers: {where}. A probe shows what can be read, not that the model uses it."
    )
