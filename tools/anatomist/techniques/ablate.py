"""Ablate parts of the model, one by one and together, and measure what the behaviour loses.

Idea: take a part's contribution away and see whether the behaviour needs it. What "away" means is a choice: zero
(nothing), mean (what it usually says at that position), resample (what it says on another prompt). Sets are ablated
jointly and held against random sets of the same size and layers: removing anything costs something.

Source: Wang et al., arXiv 2211.00593, section 2.3 (mean ablation over prompts of one template); Chan et al., "Causal
scrubbing" (2022), https://www.alignmentforum.org/posts/JvZhhzycHu2Yd57RN (resampling); Li & Janson, arXiv 2409.09951,
section 2 (what each ablation measures); McGrath et al., arXiv 2307.15771 (self-repair). With M the metric on the clean
prompts: change = mean of M(ablated) - M(intact); fraction lost = -mean change / mean M(intact);
p = (1 + b) / (1 + B), b of B random sets with at least as large a change, or of B parts put in the place
of one, beside the same rest, that carry at least as much (`causal/each_part.py`); the largest counts.

Does not show: what a part computes, or that it is enough; a small effect does not show that a part is unused, for later
layers repair what is missing; zero also removes what a part says on every prompt alike, and can break the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from ..causal.effects import MetricEffects, StandOut, in_words, metric_effects, stand_out, too_few
from ..causal.feature_ablation import BECOMES, FeatureParts, feature_parts
from ..causal.features import chosen_dictionary
from ..causal.grids import CellGrid, by_layer_and_head, in_a_row, together
from ..causal.joint import (
    NOT_JOINT,
    FurtherSweeps,
    JointCells,
    JointEffect,
    beside_controls,
    few_controls,
    joint_cells,
    joint_effects,
    joint_in_words,
)
from ..causal.measured import SweepCost, bound_metrics, cost_of, encoded, failed, metric_names
from ..causal.neutral import NeutralLoss, neutral_loss
from ..causal.replacements import cross_fitted_means, deranged, overall_means, resampled
from ..causal.units import LETTERS, chosen_layers, chosen_units, unit_name
from ..errors import BadArguments
from ..figures import Bars, Figure, Heatmap
from ..measures.metrics import UNITS
from ..measures.statistics import Clusters
from ..model.sites import Shape, Site, check_site
from ..model.sweep_plan import Cell
from ..prompts.encoding import EncodedPrompts
from ..result import Result, SelfTest
from ..technique import Ablation, Context, Heads, Layers, Metric, OnPrompts, Positions

if TYPE_CHECKING:
    from ..model.sweep import SweepPlan

TITLE = "Ablation"
QUESTIONS = (
    "Does the model need these heads for the behaviour?",
    "What happens when a head, an MLP or a whole circuit is removed?",
    "Do the parts I found matter more than random ones?",
    "Which single heads or layers is the behaviour most hurt without?",
)
PartSite = Literal["head", "attn_out", "mlp_out", "neuron", "q", "k", "v"]
AblateSite = Literal["head", "attn_out", "mlp_out", "neuron", "q", "k", "v", "feature"]
FEW_REFERENCES = 8  # prompts; a mean over fewer is rough
MOST_CELLS = 20_000


class Arguments(OnPrompts):
    """Arguments of ablate."""

    site: AblateSite = Field(default="head", description="Kind of part.")
    layers: Layers = None
    heads: Heads = Field(
        default=None,
        description="Heads L23H3 (k, v: L23KV1; neurons: L23N17; features: L9F12); all of `layers` if absent.",
    )
    sae: str = Field(default="", description="SAE of site 'feature'.")
    positions: Positions = Field(
        default="all", description="Where: 'all', integers, 'last', roles, token texts."
    )
    ablation: Ablation = "mean"
    metric: Metric = "logit_diff"
    more_metrics: tuple[Metric, ...] = Field(default=(), description="Further metrics from the same pass.")
    together: bool | None = Field(
        default=None,
        description="Also the whole choice jointly, beside random sets; absent: if parts are named.",
    )
    controls: int = Field(default=20, ge=0, le=1000, description="Random sets beside the joint ablation.")
    neutral_text: tuple[str, ...] = Field(
        default=(), max_length=32, description="Texts on which the joint ablation should cost little; gives their loss."
    )


class AblationResult(Result):
    """What each part and the whole set cost the behaviour."""

    site: str = Field(description="Kind of part.")
    ablation: str = Field(description="zero, mean or resample.")
    written: str = Field(description="What replaced the activations, and over which prompts it was taken.")
    effects: tuple[MetricEffects, ...] = Field(
        description="Parts one by one, per metric, the primary first; fraction = share of the baseline lost."
    )
    stand_out: tuple[StandOut, ...] = Field(description="At most ten parts, largest first, that survive Holm at .05.")
    joint: tuple[JointEffect, ...] = Field(description="The set ablated together, per metric; empty if not asked for.")
    neutral: NeutralLoss | None = Field(description="Cost of the joint ablation on neutral text.")
    positions: str = Field(description="Positions that were ablated.")
    tokens: tuple[str, ...] = Field(description="Tokens of the first prompt.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this model and these prompts.")
    cost: SweepCost = Field(description="How it was computed and what it cost.")


class Chosen(NamedTuple):
    """The cells: parts one by one, then the whole set, then the random sets."""

    singles: CellGrid
    together: JointCells
    features: FeatureParts | None = None

    @property
    def joint(self) -> tuple[Cell, ...]:
        return self.together.cells

    @property
    def cells(self) -> tuple[Cell, ...]:
        return (*self.singles.cells, *self.joint)

    @property
    def layers(self) -> list[Site]:
        """Whole sites of which any cell, drawn now or later, writes a part."""
        drawn = (site for one in self.together.others for site in one)
        every = {site.whole for site in (*drawn, *(site for cell in self.cells for site in cell.sites))}
        return sorted(every, key=lambda s: s.layer or 0)


def cells_of(arguments: Arguments, shape: Shape, prompts: EncodedPrompts) -> Chosen:
    """The parts to ablate and the random sets beside them.

    Raises:
        BadArguments: parts that the site does not have, too many, or too few others to draw controls from.
        BadSite, BadPosition: a place the model or the prompts do not have.
    """
    assert arguments.site != "feature"
    check_site(Site(arguments.site, 0), shape)
    positions = None if arguments.positions == "all" else together(prompts.columns(arguments.positions))
    sites = _sites(arguments.site, arguments, shape)
    if len(sites) > MOST_CELLS:
        raise BadArguments(f"{len(sites)} parts are chosen, at most {MOST_CELLS}; choose `layers` or `heads`.")
    by_head = arguments.site in ("head", "q", "k", "v")
    singles = by_layer_and_head(sites, shape, positions) if by_head else in_a_row(sites, positions, "part")
    named = arguments.heads is not None or arguments.layers is not None
    if not (named if arguments.together is None else arguments.together):
        if arguments.neutral_text:
            raise BadArguments("neutral_text is for the joint ablation: name the parts, or set together=true.")
        return Chosen(singles, NOT_JOINT)
    joint = joint_cells(
        arguments.site, sites, shape, positions, controls=arguments.controls, seed=arguments.seed
    )
    return Chosen(singles, joint)


def features_of(context: Context, arguments: Arguments, prompts: EncodedPrompts) -> Chosen:
    """Features of a dictionary as the parts.

    Raises:
        BadArguments: no dictionary, no features, or layers besides.
        BadPrompts: no other prompt to take a mean or sample from.
    """
    if arguments.heads is None or arguments.layers is not None:
        raise BadArguments("name the features in `heads` (L15F12), and leave `layers` out: encode_sae lists them.")
    if arguments.neutral_text:
        raise BadArguments("neutral_text is for heads, neurons and outputs; steer measures what a feature costs.")
    positions = None if arguments.positions == "all" else together(prompts.columns(arguments.positions))
    parts = feature_parts(
        context.model, chosen_dictionary(context.dictionary), prompts, arguments.heads, positions,
        ablation=arguments.ablation, together=arguments.together is not False, controls=arguments.controls,
        seed=arguments.seed, budget_bytes=context.budget_bytes,
    )  # fmt: skip
    return Chosen(parts.singles, parts.together, parts)


def _sites(kind: PartSite, arguments: Arguments, shape: Shape) -> tuple[Site, ...]:
    if kind in LETTERS:
        if kind == "neuron" and arguments.heads is None:
            raise BadArguments("name the neurons in `heads` (L3N17), or ablate whole layers with site 'mlp_out'.")
        return chosen_units(kind, arguments.heads, arguments.layers, shape)
    if arguments.heads is not None:
        raise BadArguments(f"{kind} has no heads: choose `layers`, or site 'head'.")
    return tuple(Site(kind, layer) for layer in chosen_layers(arguments.layers, shape))


def run(context: Context, arguments: Arguments) -> AblationResult:
    """Ablate every part on every clean prompt, and the whole set.

    Raises:
        BadPrompts: an answer that a metric needs is absent, or no other prompt to take a mean or sample from.
        BadArguments, BadSite, BadPosition: see `cells_of`.
    """
    from ..model.sweep import sweep  # torch, only where a model is
    from ..model.sweep_tests import into_itself

    model, budget = context.model, context.budget_bytes
    names = metric_names(arguments.metric, arguments.more_metrics)
    prompts = encoded(context.prompts, model, arguments.bos, names, corrupted=False)
    by_feature = arguments.site == "feature"
    chosen = features_of(context, arguments, prompts) if by_feature else cells_of(arguments, model.info.shape, prompts)
    plan, written, warnings = _plan(context, arguments, prompts, chosen)
    result = sweep(model, plan, context.progress, budget)
    tests = (into_itself(model, plan, budget, context.progress), *result.self_tests)
    context.keep("values", result.values, axes=("metric", "cell", "prompt"), unit="each metric's own")
    values, base = result.values.double().numpy(), result.base_values.double().numpy()
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    n = len(chosen.singles.cells)
    effects = tuple(
        metric_effects(chosen.singles, name, UNITS[name], values[m, :n], base[m], None, clusters)
        for m, name in enumerate(names)
    )
    found = stand_out(
        [chosen.singles.name(c) for c in range(n)], (values[0, :n] - base[0]).T, prompts.clusters,
        effects[0].fraction, chosen.singles.where, seed=arguments.seed,
    )  # fmt: skip
    further = FurtherSweeps(model, lambda sets: _other_sets(plan, chosen, sets), context.progress, budget)
    joint = joint_effects(
        chosen.together, names, values - base[:, None], base, base * 0, clusters, further, by_part=True,
        name=chosen.features.name if chosen.features else unit_name,
    )  # fmt: skip
    return AblationResult(
        summary=_summary(arguments, effects[0], found, joint, n, clusters),
        warnings=(*failed(tests), *warnings, *_warnings(effects, clusters, n, joint), *prompts.warnings),
        site=arguments.site,
        ablation=arguments.ablation,
        written=written,
        effects=effects,
        stand_out=found,
        joint=joint,
        neutral=_neutral(context, arguments, prompts, chosen) if arguments.neutral_text else None,
        positions=_positions(arguments),
        tokens=prompts.clean.strings[0],
        self_tests=tests,
        cost=cost_of(model, plan, result, *further.results),
    )


def _plan(
    context: Context, arguments: Arguments, prompts: EncodedPrompts, chosen: Chosen
) -> tuple[SweepPlan, str, tuple[str, ...]]:
    """The sweep, what it writes in words, and warnings."""
    from ..model.sweep import SweepPlan

    model, names = context.model, metric_names(arguments.metric, arguments.more_metrics)
    base = prompts.clean
    metrics = bound_metrics(names, prompts, model, base)
    if (features := chosen.features) is not None:
        plan = SweepPlan(
            base=base, values=features.values, cells=chosen.cells, metrics=metrics, read_at=base.last, rule="add",
            seed=arguments.seed,
        )  # fmt: skip
        assert context.dictionary is not None
        name = context.dictionary.info.name
        written = f"f d of each feature of {name} becomes {BECOMES[arguments.ablation]}; the rest and its error stay"
        return plan, written, (*features.warnings, *context.dictionary.info.cautions)
    if arguments.ablation == "zero":
        plan = SweepPlan(
            base=base, cells=chosen.cells, metrics=metrics, read_at=base.last, rule="zero", seed=arguments.seed
        )
        return plan, "zeros", ()
    sites = chosen.layers
    if arguments.ablation == "resample":
        other = deranged(prompts, arguments.seed)
        source = base.rows(other)
        plan = SweepPlan(
            base=base, source=source, cells=chosen.cells, metrics=metrics, read_at=base.last, rule="resample",
            seed=arguments.seed,
        )  # fmt: skip
        if source.lengths != base.lengths:
            values, rows = resampled(model, prompts, sites, other, context.budget_bytes)
            plan = replace(plan, source=None, values=values, value_rows=rows)
        return plan, "activations of another prompt of the same template at matched positions, drawn by the seed", ()
    means = cross_fitted_means(model, prompts, sites, arguments.seed, context.budget_bytes)
    plan = SweepPlan(
        base=base, values=means.values, value_rows=means.value_rows, cells=chosen.cells, metrics=metrics,
        read_at=base.last, rule="mean", seed=arguments.seed,
    )  # fmt: skip
    few = (f"The smallest reference for a mean has {means.fewest} prompt(s): give more prompts of each template.",)
    written = (
        "per matched position, the mean over the half of the prompts of the same template that shares no names with "
        f"the prompt (at least {means.fewest})"
    )
    return plan, written, few if means.fewest < FEW_REFERENCES else ()


def _other_sets(plan: SweepPlan, chosen: Chosen, sets: Sequence[tuple[Any, ...]]) -> SweepPlan:
    """The same ablation of other sets of parts."""
    if chosen.features is None:
        return replace(plan, cells=chosen.together.of(sets))
    cells, values = chosen.features.away(sets)
    return replace(plan, cells=cells, values=values)


def _neutral(context: Context, arguments: Arguments, prompts: EncodedPrompts, chosen: Chosen) -> NeutralLoss:
    sites = chosen.joint[0].sites
    values = None
    if arguments.ablation != "zero":
        whole = sorted({site.whole for site in sites}, key=lambda s: s.layer or 0)
        values = overall_means(context.model, prompts, whole, context.budget_bytes)
    return neutral_loss(context.model, arguments.neutral_text, sites, values, bos=arguments.bos)


def plot(result: AblationResult) -> Figure:
    """Parts one by one, and the set beside random sets."""
    first = result.effects[0]
    panels: list[Heatmap | Bars] = [_singles(e) for e in result.effects]
    panels += [panel for joint in result.joint for panel in beside_controls(joint)]
    return Figure(
        title=f"{result.ablation} ablation of {result.site}",
        caption=f"Mean change of the metric when ablated at {result.positions}; intact {first.metric} {first.base}. "
        f"Written: {result.written}.",
        panels=tuple(panels),
    )


def _singles(effects: MetricEffects) -> Heatmap | Bars:
    title = f"{effects.metric}: change when ablated alone ({effects.unit})"
    if len(effects.change.axes) == 2:
        return Heatmap(title=title, grid=effects.change)
    return Bars(
        title=title, value_title=f"change of {effects.metric} ({effects.unit})",
        labels=effects.change.axes[0].labels, values=effects.change.values or (),
        low=None if effects.low is None else effects.low.values,
        high=None if effects.high is None else effects.high.values,
    )  # fmt: skip


def _positions(arguments: Arguments) -> str:
    if arguments.positions == "all":
        return "every position"
    return f"positions {', '.join(map(str, arguments.positions))} together"


def _summary(
    arguments: Arguments, effects: MetricEffects, found: Sequence[StandOut], joint: Sequence[JointEffect], cells: int,
    clusters: Clusters,
) -> str:  # fmt: skip
    whole = f" {joint_in_words(joint[0], 'the baseline lost')}" if joint else ""
    return (
        f"Intact {effects.metric} is {effects.base}. One by one ({arguments.ablation} ablation): "
        f"{in_words(found, cells, effects.unit, clusters.count)}{whole} A large effect shows that the behaviour needs "
        "the part on these prompts; a small one does not show that it is unused, for later layers may repair it."
    )


def _warnings(
    effects: Sequence[MetricEffects], clusters: Clusters, cells: int, joint: Sequence[JointEffect]
) -> tuple[str, ...]:
    withheld = tuple(f"{e.metric}: {e.withheld}" for e in effects if e.withheld)
    single = ("There is one cluster of prompts: no intervals and no test.",) if clusters.count < 2 else ()
    return (*withheld, *single, *too_few(clusters.count, cells), *few_controls(joint))
