"""Erase a concept from the activations (LEACE), so that no linear probe can find it, and see what the behaviour loses.

Idea: take out of a layer's activations exactly what tells two sets of texts apart linearly, by the smallest edit that
does it, layer after layer. If the behaviour changes more than under random edits of the same rank, the model used what
was erased; if it does not, the concept was readable there but not used, or it is used in another form.

Source: Belrose et al., arXiv 2306.03819: theorem 3.4 (no linear probe does better than a constant exactly when the
class means are equal), theorem 4.3 (the least-squares edit), section 5 (concept scrubbing: layer after layer, each
fitted on what the earlier ones left). Formulas: `causal/erasure.py`. p = (1 + b) / (1 + B), b of B random edits of
rank 1 at the same layers and positions that change the metric as much.

Does not show: that the concept is gone: other probes than linear ones may still find it, and so may later layers at
other positions. What goes with the concept in the texts is erased with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..causal.behaviour import BehaviourChange, behaviour_change, beside_random, in_words
from ..causal.directions import like
from ..causal.erased_probes import LayerErasure, Sides, probed
from ..causal.erasure import Eraser, leace
from ..causal.grids import together
from ..causal.labelled import Labelled, TwoSets, activations, few_examples, fit_and_held_out
from ..causal.measured import bound_metrics, encoded, failed, last_logits
from ..causal.neutral import NeutralLoss, neutral_tokens, total_loss
from ..causal.steering import random_vectors
from ..causal.units import chosen_layers
from ..errors import BadArguments
from ..figures import Bars, Figure, Lines, Series
from ..measures.statistics import Clusters
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site, check_site
from ..prompts.encoding import EncodedPrompts
from ..result import Estimate, Result, SelfTest
from ..technique import Arguments as Common
from ..technique import Bos, Context, Layers, Metric, PromptsArgument, Split

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "Erasing a concept"
QUESTIONS = (
    "Does the model use what a probe can read here?",
    "Can this concept be taken out of the activations with little else?",
    "What does the behaviour lose when the model cannot tell these two kinds of text apart?",
)
EraseSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
ENOUGH = 19  # random edits: the smallest p is then .05


class Arguments(TwoSets, Common):
    """Arguments of erase_concept."""

    prompts: PromptsArgument | None = Field(
        default=None, description="Task whose behaviour is measured; without texts also the two sets."
    )
    split: Split = "discovery"
    bos: Bos = None
    site: EraseSite = Field(default="resid_post", description="Kind of place that is erased, at each layer.")
    layers: Layers = None
    shrinkage: bool = Field(
        default=True, description="Shrunk covariance, for few texts; false: the smallest edit on the fitted texts."
    )
    penalty: float = Field(default=1.0, gt=0, le=1e6, description="L2 penalty of the probes.")
    metric: Metric = "logit_diff"
    controls: int = Field(default=20, ge=0, le=200, description="Random edits of rank 1 beside the task's behaviour.")
    neutral_text: tuple[str | tuple[int, ...], ...] = Field(
        default=(), max_length=32, description="Texts that should not suffer; erased at every position."
    )


class EraseResult(Result):
    """Probes before and after, and what the behaviour lost."""

    layers: tuple[LayerErasure, ...] = Field(description="In the order they were erased, each after the earlier ones.")
    site: str = Field(description="Kind of place.")
    position: str = Field(description="Positions that were read and erased.")
    majority: float = Field(description="Share of the commoner label among the held-out examples.")
    fitted_on: int = Field(description="Examples of the fit part.")
    tested_on: int = Field(description="Examples of the held-out part.")
    task: BehaviourChange | None = Field(description="The task's prompts under all erasures; absent without prompts.")
    neutral: NeutralLoss | None = Field(description="Loss on neutral text, erased at every position.")
    neutral_random: float | None = Field(description="Loss there under a random edit, mean of at most three.")
    arrays: tuple[str, ...] = Field(description="Arrays kept: offset, read, write [layer, d_model], and layers.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this run.")


class Layered(NamedTuple):
    """One layer's activations and its eraser."""

    site: Site
    eraser: Eraser
    fit: ndarray  # [n, D], after the earlier erasures, before this one
    test: ndarray


def run(context: Context, arguments: Arguments) -> EraseResult:
    """Fit layer after layer, probe before and after, and run the task with everything erased.

    Raises:
        BadArguments: 'mean' as position, too few texts, or sets that do not differ.
        BadPrompts, BadSite, BadPosition: from the texts and places.
    """
    model = context.model
    if arguments.position == "mean":
        raise BadArguments("a mean over positions is no place that can be erased; take 'all', 'last' or a position.")
    sites = [
        check_site(Site(arguments.site, n), model.info.shape) for n in chosen_layers(arguments.layers, model.info.shape)
    ]
    given = bool(arguments.positive or arguments.negative)
    parts = fit_and_held_out(
        model, arguments, None if given else context.prompts, None if given else context.held_out,
        bos=arguments.bos, seed=arguments.seed,
    )  # fmt: skip
    total = 2.0 * len(sites) + 2
    plain = [activations(model, part, sites, context.budget_bytes) for part in parts]
    found: list[Layered] = []
    for i, site in enumerate(sites):
        context.progress(i + 1, total, f"erasing {site}")
        found.append(_erase(context, arguments, parts, site, found))
    layers: list[LayerErasure] = []
    for i, layered in enumerate(found):
        context.progress(len(sites) + i + 1, total, f"probing {layered.site}")
        layers.append(_probe(arguments, parts, layered, *(p[layered.site] for p in plain)))
    _keep(context, found)
    task = _task(context, arguments, found)
    neutral, random = _neutral(context, arguments, found)
    tests = (_means_equal(layers), _edit_agrees(context, parts[0], found))
    labels = parts[1].per_example()[0]
    majority = max(sum(labels), len(labels) - sum(labels)) / len(labels)
    return EraseResult(
        summary=_summary(layers, task, majority, neutral),
        warnings=(*failed(tests), *_warnings(arguments, layers, task, parts, majority)),
        layers=tuple(layers),
        site=arguments.site,
        position="every position" if arguments.position == "all" else f"position {arguments.position}",
        majority=majority,
        fitted_on=len(parts[0].of_example),
        tested_on=len(labels),
        task=task,
        neutral=neutral,
        neutral_random=random,
        arrays=("offset", "read", "write", "layers"),
        self_tests=tests,
    )


def plot(result: EraseResult) -> Figure:
    """Probes over layers before and after, the size of the edit, and the behaviour beside random edits."""
    x = tuple(float(layer.layer) for layer in result.layers)
    fresh = tuple(None if layer.fresh is None else layer.fresh.mean for layer in result.layers)
    probes = Lines(
        title="Held-out accuracy of a linear probe", x_title="layer", x=x, y_title="accuracy",
        reference=result.majority,
        series=(
            _series("before", [layer.before for layer in result.layers]),
            _series("after erasure", [layer.after for layer in result.layers]),
            Series(name="after, probe and test on new texts", values=fresh),
            Series(name="after a random edit", values=tuple(layer.random for layer in result.layers)),
        ),
    )  # fmt: skip
    sizes = Lines(
        title="Share of the variance that the edit takes", x_title="layer", x=x, y_title="share",
        series=(
            Series(name="LEACE", values=tuple(layer.size for layer in result.layers)),
            Series(name="difference of means", values=tuple(layer.size_mean_projection for layer in result.layers)),
        ),
    )  # fmt: skip
    panels: list[Lines | Bars] = [probes, sizes]
    if result.task is not None:
        panels.append(beside_random(result.task, "erasure", "random edits"))
    return Figure(
        title=f"Erasing a concept from {result.site}",
        caption=f"LEACE at {result.position}, layer after layer; fitted on {result.fitted_on} examples, tested on "
        f"{result.tested_on}; dashed: majority {result.majority:.2f}. Linear probes only.",
        panels=tuple(panels),
    )


def _series(name: str, found: Sequence[Estimate]) -> Series:
    return Series(
        name=name, values=tuple(e.mean for e in found), low=tuple(e.low for e in found),
        high=tuple(e.high for e in found),
    )  # fmt: skip


def _labels(part: Labelled) -> ndarray:
    import numpy as np

    return np.array(part.per_example()[0])


def _erase(
    context: Context, arguments: Arguments, parts: Sequence[Labelled], site: Site, earlier: Sequence[Layered]
) -> Layered:
    """Fit the eraser of one layer on what the earlier ones left."""
    edits = _edits(context.model, earlier)
    fit, test = (
        activations(context.model, part, [site], context.budget_bytes, edits=edits)[site].astype(float)
        for part in parts
    )
    found = leace(fit, _labels(parts[0]), shrinkage=arguments.shrinkage, like=like(context.model))
    return Layered(site, found, fit, test)


def _edits(model: Model, layers: Sequence[Layered], vectors: Sequence[Tensor] | None = None) -> list[Edit]:
    """The erasures as edits at all positions; with `vectors` random edits of rank 1 about the same means instead."""
    blank = like(model)
    found = []
    for i, layered in enumerate(layers):
        value = layered.eraser.value(blank)
        if vectors is not None:
            value = value.new_tensor([value[0].tolist(), *[vectors[i].tolist()] * 2])
        found.append(Edit(site=layered.site, rule="erase", value=value))
    return found


def _probe(
    arguments: Arguments, parts: Sequence[Labelled], layered: Layered, fit: ndarray, test: ndarray
) -> LayerErasure:
    """One layer probed; `fit` and `test` are the activations without any erasure."""
    groups = [part.per_example()[1] for part in parts]
    sides = [
        Sides(plain, left, _labels(part), g)
        for plain, left, part, g in zip((fit, test), (layered.fit, layered.test), parts, groups, strict=True)
    ]
    layer = layered.site.layer or 0
    return probed(layer, layered.eraser, *sides, penalty=arguments.penalty, seed=arguments.seed)


def _keep(context: Context, found: Sequence[Layered]) -> None:
    blank = like(context.model)
    for name in ("offset", "read", "write"):
        rows = [getattr(layered.eraser, name).tolist() for layered in found]
        context.keep(name, blank.new_tensor(rows), axes=("layer", "d_model"), unit="residual")
    context.keep("layers", blank.new_tensor([f.site.layer for f in found]).long(), axes=("layer",), unit="layer")


def _task(context: Context, arguments: Arguments, found: Sequence[Layered]) -> BehaviourChange | None:
    """The task's behaviour under all erasures and under random edits."""
    if context.prompts is None:
        return None
    model = context.model
    prompts = encoded(context.prompts, model, arguments.bos, (arguments.metric,), corrupted=False)
    (metric,) = bound_metrics((arguments.metric,), prompts, model, prompts.clean)
    places = _places(prompts, arguments)
    before = last_logits(model, prompts.clean)
    after = last_logits(model, prompts.clean, _edits(model, found), places)
    controls = []
    for i in range(arguments.controls):
        context.progress(2 * len(found) + i / arguments.controls, 2 * len(found) + 2, "random edits")
        vectors = random_vectors(like(model), len(found), arguments.seed + 1 + i)
        controls.append(last_logits(model, prompts.clean, _edits(model, found, vectors), places))
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    return behaviour_change(metric, prompts, before, after, clusters, controls)


def _places(prompts: EncodedPrompts, arguments: Arguments) -> tuple[tuple[int, ...], ...] | None:
    return None if arguments.position == "all" else together(prompts.columns((arguments.position,)))


def _neutral(
    context: Context, arguments: Arguments, found: Sequence[Layered]
) -> tuple[NeutralLoss | None, float | None]:
    """Loss on neutral text before, under all erasures, and under random edits."""
    if not arguments.neutral_text:
        return None, None
    model = context.model
    texts = neutral_tokens(model, arguments.neutral_text, bos=arguments.bos)
    counted = sum(texts.lengths) - texts.n_rows
    before, after = (total_loss(model, texts, e) / counted for e in ((), _edits(model, found)))
    random = [
        total_loss(model, texts, _edits(model, found, random_vectors(like(model), len(found), arguments.seed + 1 + i)))
        for i in range(min(3, arguments.controls))
    ]
    written = "activations without the concept, at every position"
    neutral = NeutralLoss(tokens=counted, before=before, after=after, written=written)
    return neutral, sum(random) / len(random) / counted if random else None


def _means_equal(layers: Sequence[LayerErasure]) -> SelfTest:
    worst = max(layer.gap_after for layer in layers)
    return SelfTest(
        name="after erasure the class means of the fitted examples are equal (over the median norm)", expected=0.0,
        found=worst, tolerance=1e-6, passed=worst <= 1e-6,
    )  # fmt: skip


def _edit_agrees(context: Context, fit: Labelled, found: Sequence[Layered]) -> SelfTest:
    """The model's own activations under the edits against the arithmetic on what was read."""
    import numpy as np

    last = found[-1]
    inside = activations(context.model, fit, [last.site], context.budget_bytes, edits=_edits(context.model, found))
    wanted = last.eraser(last.fit)
    gap = float(np.linalg.norm(inside[last.site] - wanted) / np.linalg.norm(wanted))
    tolerance = 1e-4 if context.model.info.dtype in ("float32", "float64") else 0.05
    return SelfTest(
        name="the edit in the model does what the arithmetic says", expected=0.0, found=gap, tolerance=tolerance,
        passed=gap <= tolerance,
    )  # fmt: skip


def _summary(
    layers: Sequence[LayerErasure], task: BehaviourChange | None, majority: float, neutral: NeutralLoss | None
) -> str:
    best = max(layers, key=lambda layer: layer.before.mean)
    lost = "" if task is None else f" {in_words(task, 'Behaviour with everything erased', 'random edits of rank 1')}"
    cost = "" if neutral is None else f" Neutral text: {neutral.before:.3f} to {neutral.after:.3f} nats a token."
    return (
        f"At layer {best.layer} a linear probe is right on {best.before.mean:.1%} of held-out examples before erasure "
        f"and on {best.after.mean:.1%} after (majority {majority:.1%}); the edit takes {best.size:.2%} of the variance "
        f"there.{lost}{cost} Only linear traces are erased; what other readers find is not known."
    )


def _warnings(
    arguments: Arguments, layers: Sequence[LayerErasure], task: BehaviourChange | None, parts: Sequence[Labelled],
    majority: float,
) -> tuple[str, ...]:
    said = [*few_examples(parts), *dict.fromkeys(w for p in parts for w in p.warnings)]
    if task is None:
        said.append("No task prompts were given: whether the model uses what was erased is not known.")
    elif len(task.random) < ENOUGH:
        said.append(f"{len(task.random)} random edits: p cannot be below {1 / (1 + len(task.random)):.2g}.")
    elif task.p is not None and task.p > 0.05:
        said.append(f"Random edits of the same rank change the behaviour as much (p = {task.p:.2g}).")
    if not arguments.neutral_text:
        said.append("No neutral text was given: what the erasure costs elsewhere is not known.")
    if all(layer.before.low is not None and layer.before.low <= majority for layer in layers):
        said.append("No layer's probe is clearly above the majority before erasure: there was little to erase.")
    left = [layer.layer for layer in layers if layer.fresh is not None and (layer.fresh.low or 0) > majority]
    if left:
        said.append(
            f"Probes trained on new texts still find the concept after erasure at layers {', '.join(map(str, left))}: "
            "the eraser was fitted on too few texts, or these differ from them. Use more texts."
        )
    return tuple(said)
