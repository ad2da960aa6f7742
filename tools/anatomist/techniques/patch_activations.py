"""Patch activations from one run into another, cell by cell, and measure what each cell carries.

Idea: two prompts differ in one thing and so does the model's answer. Put one activation of the one run into the other:
if the answer moves, the difference passes through that place. Every cell of a grid (layer x position, layer x head,
head x position) is patched by itself.

Source: Vig et al., arXiv 2004.12265, section 3 (mediation by activations); Meng et al., arXiv 2202.05262, section 2.1
(restoring single states); Zhang & Nanda, arXiv 2309.16042 (metric, counterfactuals); Heimersheim & Nanda, arXiv
2404.15255 (denoising and noising). With M the metric, b the run patched into and o the other:
change = mean over prompts of M(b with the cell of o) - M(b); fraction = mean change / mean of M(o) - M(b).

Does not show: what a place computes, only that what differs between the two prompts passes there; cells in sequence
carry the same thing and their effects do not add up; a place that another one backs up can show nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from ..causal.chosen_cells import SHOWS, GridName, cells_of, layout_of, positions_in_words
from ..causal.effects import MetricEffects, StandOut, in_words, metric_effects, stand_out, too_few
from ..causal.grids import CellGrid
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
from ..errors import BadArguments
from ..figures import Bars, Figure, Heatmap
from ..measures.metrics import UNITS, MetricName
from ..measures.statistics import Clusters
from ..model.sites import Shape
from ..result import Result, SelfTest
from ..technique import Context, Direction, Heads, Layers, Metric, OnPrompts, Positions

TITLE = "Activation patching"
QUESTIONS = (
    "Where is the information that decides the answer, by layer and position?",
    "Which heads carry what differs between two prompts?",
    "Which layers and tokens cause the model's prediction?",
    "Is a head's effect through its queries, keys or values?",
)
PatchSite = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head", "q", "k", "v", "neuron"
]


class Arguments(OnPrompts):
    """Arguments of patch_activations."""

    site: PatchSite = Field(default="resid_pre", description="Kind of activation that is patched.")
    grid: GridName | None = Field(
        default=None,
        description="Cells: layer x position, layer x head, or head x position; layer_head when absent and the site "
        "has heads, else layer_position (which patches all heads of a layer together).",
    )
    layers: Layers = None
    heads: Heads = Field(
        default=None, description="Heads L23H3 (k, v: L23KV1; neurons: L23N17); all of `layers` when absent."
    )
    positions: Positions | None = Field(
        default=None,
        description="Columns of the grid: integers, 'last', roles (S2), token texts, or 'all'; in layer_head patched "
        "together. Absent: all, or the shared roles where prompts differ in length.",
    )
    metric: Metric = "logit_diff"
    more_metrics: tuple[Metric, ...] = Field(default=(), description="Further metrics from the same pass.")
    direction: Direction = "denoising"
    together: bool = Field(
        default=False, description="Also patch all chosen parts jointly, against random sets: name `heads` or `layers`."
    )
    controls: int = Field(default=20, ge=0, le=1000, description="Random sets that the joint patch is held against.")


class PatchingResult(Result):
    """What every cell does, and how the numbers were made."""

    site: str = Field(description="Kind of activation that was patched.")
    direction: str = Field(description="denoising: clean into corrupted; noising: corrupted into clean.")
    shows: str = Field(description="What this direction shows.")
    effects: tuple[MetricEffects, ...] = Field(description="One per metric, the primary first.")
    stand_out: tuple[StandOut, ...] = Field(description="At most ten cells, largest first, that survive Holm at .05.")
    joint: tuple[JointEffect, ...] = Field(description="All chosen parts patched at once, per metric; if asked for.")
    positions: str = Field(description="Positions patched in each cell.")
    tokens: tuple[str, ...] = Field(description="Tokens of the first prompt that is patched into.")
    self_tests: tuple[SelfTest, ...] = Field(description="Identities checked on this model and these prompts.")
    cost: SweepCost = Field(description="How it was computed and what it cost.")


def _joint_cells(arguments: Arguments, grid: CellGrid, shape: Shape) -> JointCells:
    """All the parts of the grid as one cell, at the positions patched together, and random sets beside it."""
    if not arguments.together:
        return NOT_JOINT
    if layout_of(arguments) == "head_position" or (arguments.heads is None and arguments.layers is None):
        raise BadArguments("together=true needs named `heads` or `layers`, and not the grid head_position.")
    sites = tuple(dict.fromkeys(site for cell in grid.cells for site in cell.sites))
    positions = grid.cells[0].positions if layout_of(arguments) == "layer_head" else None
    return joint_cells(
        arguments.site, sites, shape, positions, controls=arguments.controls, seed=arguments.seed
    )


def run(context: Context, arguments: Arguments) -> PatchingResult:
    """Patch every cell on every prompt.

    Raises:
        BadPrompts: no corrupted side, or an answer that a metric needs is absent.
        BadArguments, BadSite, BadPosition: see `cells_of`.
    """
    from ..model.sweep import SweepPlan, sweep  # torch, only where a model is
    from ..model.sweep_tests import between_runs, into_itself

    model, budget = context.model, context.budget_bytes
    names: tuple[MetricName, ...] = metric_names(arguments.metric, arguments.more_metrics)
    prompts = encoded(context.prompts, model, arguments.bos, names, corrupted=True)
    assert prompts.corrupted is not None
    runs = (prompts.corrupted, prompts.clean)
    base, source = runs if arguments.direction == "denoising" else runs[::-1]
    grid = cells_of(arguments, model.info.shape, prompts)
    joint = _joint_cells(arguments, grid, model.info.shape)
    cells = (*grid.cells, *joint.cells)
    plan = SweepPlan(
        base=base, source=source, cells=cells, metrics=bound_metrics(names, prompts, model, base),
        read_at=base.last, seed=arguments.seed,
    )  # fmt: skip
    result = sweep(model, plan, context.progress, budget)
    tests = (
        into_itself(model, plan, budget, context.progress),
        *between_runs(model, plan, budget, context.progress),
        *result.self_tests,
    )
    assert result.source_values is not None
    context.keep("values", result.values, axes=("metric", "cell", "prompt"), unit="each metric's own")
    values, plain, other = (t.double().numpy() for t in (result.values, result.base_values, result.source_values))
    clusters, n = Clusters(prompts.clusters, seed=arguments.seed), len(grid.cells)
    effects = tuple(
        metric_effects(grid, name, UNITS[name], values[m, :n], plain[m], other[m], clusters)
        for m, name in enumerate(names)
    )
    further = FurtherSweeps(model, lambda sets: replace(plan, cells=joint.of(sets)), context.progress, budget)
    patched = joint_effects(
        joint, names, values - plain[:, None], plain, other, clusters, further,
        by_part=layout_of(arguments) == "layer_head",
    )  # fmt: skip
    found = stand_out(
        [grid.name(c) for c in range(len(grid.cells))], (values[0, :n] - plain[0]).T, prompts.clusters,
        effects[0].fraction, grid.where, seed=arguments.seed,
    )  # fmt: skip
    return PatchingResult(
        summary=_summary(arguments, effects[0], found, patched, n, clusters),
        warnings=(*failed(tests), *_warnings(effects, clusters, n), *few_controls(patched), *prompts.warnings),
        site=arguments.site,
        direction=arguments.direction,
        shows=SHOWS[arguments.direction],
        effects=effects,
        stand_out=found,
        joint=patched,
        positions=positions_in_words(arguments, grid),
        tokens=base.strings[0],
        self_tests=tests,
        cost=cost_of(model, plan, result, *further.results),
    )


def plot(result: PatchingResult) -> Figure:
    """Mean change of each metric over the grid."""
    panels: tuple[Heatmap | Bars, ...] = tuple(
        Heatmap(title=f"{e.metric}: change by patching {result.site} ({e.unit})", grid=e.change) for e in result.effects
    )
    first = result.effects[0]
    panels += tuple(panel for joint in result.joint for panel in beside_controls(joint))
    gap = f"run patched into {first.base}, other run {first.other}"
    return Figure(
        title=f"Activation patching: {result.site}, {result.direction}",
        caption=f"Mean change of the metric when one cell is patched, {result.direction}, {result.positions}; {gap}. "
        f"{result.shows}",
        panels=panels,
    )


def _summary(
    arguments: Arguments, effects: MetricEffects, found: tuple[StandOut, ...], joint: tuple[JointEffect, ...],
    cells: int, clusters: Clusters,
) -> str:  # fmt: skip
    into, out_of = ("corrupted", "clean") if arguments.direction == "denoising" else ("clean", "corrupted")
    whole = f" {joint_in_words(joint[0], 'the gap')}" if joint else ""
    return (
        f"{effects.metric} is {effects.base} in the {into} run and {effects.other} in the {out_of} run. "
        f"{in_words(found, cells, effects.unit, clusters.count)}{whole} {SHOWS[arguments.direction]} "
        "Effects of cells do not add up, and patching shows where the difference between the prompts passes, not what "
        "is computed there."
    )


def _warnings(effects: tuple[MetricEffects, ...], clusters: Clusters, cells: int) -> tuple[str, ...]:
    withheld = tuple(f"{e.metric}: {e.withheld}" for e in effects if e.withheld)
    single = ("There is one cluster of prompts: no intervals and no test.",) if clusters.count < 2 else ()
    return (*withheld, *single, *too_few(clusters.count, cells))
