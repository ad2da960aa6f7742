"""Estimate the effect of patching every cell at once with gradients, and check the estimates by exact patching.

Idea: patching a cell asks for a forward pass of its own; its effect is, to first order, the gradient of the metric at
that activation times the activation's change. Two forward passes and one backward pass then score every cell. Where
attention is saturated or paths cancel the estimate is wrong, so the largest cells, a random sample and the saturated
heads are always patched exactly as well, and the result names what the estimate got wrong.

Source: Nanda 2023, "Attribution patching", https://www.neelnanda.io/mechanistic-interpretability/attribution-patching
(AtP); Kramar et al., arXiv 2403.00745, section 3.1 (AtP*: the exact change of attention for queries and keys, and
gradients dropped layer by layer); Sundararajan et al., arXiv 1703.01365, equation 1, and Hanna et al., arXiv
2403.17806, section 3 (integrated gradients over the inputs). With b the run patched into, o the other and M the metric:
estimate(n) = sum of dM/dn . (n(o) - n(b)), the gradient taken at b or averaged over embeddings between b and o.

Does not show: the effect itself, where it was not re-checked; what a cell computes; and, like exact patching, nothing
of cells that carry the same thing in sequence or that another one backs up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from ..causal.attribution import (
    Completeness,
    Saturated,
    Way,
    attribute,
    completeness,
    saturation_warnings,
    slope_test,
)
from ..causal.chosen_cells import SHOWS, GridName, cells_of, positions_in_words
from ..causal.effects import MetricEffects, metric_effects
from ..causal.grids import CellGrid
from ..causal.measured import SweepCost, bound_metrics, cost_of, encoded, failed
from ..causal.recheck import Recheck, beside_exact, compared, doubts, in_words, to_recheck
from ..causal.units import parse_unit
from ..errors import BadArguments
from ..figures import Bars, Figure, Heatmap
from ..measures.metrics import UNITS
from ..measures.statistics import Clusters
from ..model.protocol import ModelInfo
from ..result import Grid, Result, SelfTest
from ..technique import Context, Direction, Heads, Layers, Metric, OnPrompts, Positions

TITLE = "Attribution patching (AtP, AtP*, integrated gradients)"
QUESTIONS = (
    "Which of many heads, layers or neurons matter, fast and approximately?",
    "Which cells should I patch exactly, when patching all of them is too slow?",
    "How good are gradients as an estimate of patching on this model?",
    "Is a gradient-based score wrong because attention is saturated?",
)
EstimatedSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head", "q", "k", "v", "neuron"]
Method = Literal["atp", "atp_star", "integrated"]
MADE = {
    "atp": "gradient at the base run (AtP)",
    "atp_star": "gradient at the base run; for q and k the exact change of attention (AtP*)",
    "integrated": "gradient averaged over {steps} midpoints between the embeddings of both runs (integrated gradients)",
}


class Arguments(OnPrompts):
    """Arguments of attribution_patching."""

    site: EstimatedSite = Field(default="head", description="Kind of activation whose patching is estimated.")
    method: Method = Field(
        default="atp",
        description="atp: gradient at the base run; atp_star: exact change of attention for q and k, and layers' "
        "gradients dropped one at a time; integrated: gradient averaged along the embeddings.",
    )
    steps: int = Field(default=10, ge=1, le=200, description="Steps of method 'integrated'; no other uses them.")
    top: int = Field(default=10, ge=1, le=20_000, description="Largest estimates that are re-checked exactly.")
    sample: int = Field(default=20, ge=0, le=20_000, description="Others re-checked at random, to see what is missed.")
    grid: GridName | None = Field(
        default=None,
        description="Cells: layer x position, layer x head, or head x position; layer_head when absent and the site "
        "has heads, else layer_position.",
    )
    layers: Layers = None
    heads: Heads = Field(
        default=None, description="Heads L23H3 (k, v: L23KV1; neurons: L23N17); all of `layers` when absent."
    )
    positions: Positions | None = Field(
        default=None,
        description="Columns of the grid: integers, 'last', roles (S2), token texts, or 'all'; in layer_head taken "
        "together. Absent: all, or the shared roles where prompts differ in length.",
    )
    metric: Metric = "logit_diff"
    direction: Direction = "denoising"


class AttributionResult(Result):
    """Estimates of every cell, and how far they can be trusted."""

    site: str = Field(description="Kind of activation.")
    direction: str = Field(description="denoising: clean into corrupted; noising: corrupted into clean.")
    shows: str = Field(description="What this direction shows, where an effect is confirmed exactly.")
    made: str = Field(description="How the gradient was taken.")
    estimates: MetricEffects = Field(description="ESTIMATED change per cell, first order, not the change itself.")
    dropped: Grid | None = Field(
        description="atp_star: mean of |estimate| over gradients that skip one layer each; large where paths cancel."
    )
    recheck: Recheck = Field(description="Exact patching of the largest, the doubtful and a random sample.")
    saturated: tuple[Saturated, ...] = Field(
        description="Heads whose attention moves without the gradient seeing it, those worth most first."
    )
    completeness: Completeness = Field(description="Whether the gradient accounts for the whole gap between the runs.")
    positions: str = Field(description="Positions in each cell.")
    tokens: tuple[str, ...] = Field(description="Tokens of the first prompt that is patched into.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this model and these prompts.")
    cost: SweepCost = Field(description="Cost of the exact re-check.")


def way_of(arguments: Arguments) -> Way:
    """How the gradients are taken.

    Raises:
        BadArguments: kl, whose gradient at its own reference is 0.
    """
    if arguments.metric == "kl" and arguments.method != "integrated":
        raise BadArguments(
            "the gradient of 'kl' at its own reference run is 0 everywhere, so there is nothing to attribute; take "
            "metric 'logit_diff', or method 'integrated'."
        )
    star = arguments.method == "atp_star"
    return Way(arguments.steps if arguments.method == "integrated" else 0, qk_fix=star, drop=star)


def doubted(grid: CellGrid, saturated: Sequence[Saturated], info: ModelInfo) -> list[int]:
    """Cells that are a saturated head, or share a key-value head with one."""
    group = info.n_heads // info.n_kv_heads
    units = [parse_unit(s.head, "k" if "KV" in s.head else "head", info.shape) for s in saturated]
    shared = {(u.layer, (u.index or 0) // (1 if u.kind == "k" else group)) for u in units}
    heads = {(u.layer, u.index) for u in units if u.kind == "head"}
    found: list[int] = []
    for c, cell in enumerate(grid.cells):
        kind, layer, index = cell.sites[0]
        if kind in ("head", "q") and index is not None:
            own = (layer, index) in heads or (group > 1 and (layer, index // group) in shared)
        else:
            own = kind in ("k", "v") and (layer, index) in shared
        if own:
            found.append(c)
    return found


def run(context: Context, arguments: Arguments) -> AttributionResult:
    """Estimate every cell, then patch some of them exactly.

    Raises:
        BadPrompts: no corrupted side, or an answer that the metric needs is absent.
        BadArguments, BadSite, BadPosition: see `way_of` and `cells_of`.
        WouldNotFit: the gradient of one prompt is over the budget.
        Unsupported: atp_star for q and k on an architecture whose attention is not known.
    """
    from ..model.sweep import SweepPlan, sweep  # torch, only where a model is
    from ..model.sweep_tests import into_itself

    model, budget, name = context.model, context.budget_bytes, arguments.metric
    way = way_of(arguments)
    prompts = encoded(context.prompts, model, arguments.bos, (name,), corrupted=True)
    assert prompts.corrupted is not None
    runs = (prompts.corrupted, prompts.clean)
    base, other = runs if arguments.direction == "denoising" else runs[::-1]
    grid = cells_of(arguments, model.info.shape, prompts)
    (metric,) = bound_metrics((name,), prompts, model, base)
    found = attribute(model, base, other, metric, grid.cells, way, budget, context.progress)
    context.keep("estimates", found.values, axes=("cell", "prompt"), unit=UNITS[name])
    estimates, plain, far = (t.double().numpy() for t in (found.values, found.base, found.other))
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    effects = metric_effects(grid, name, UNITS[name], estimates + plain, plain, far, clusters)

    ranks = found.values if found.magnitude is None else found.magnitude
    chosen = to_recheck(
        ranks.mean(-1).tolist(), top=arguments.top, sample=arguments.sample,
        doubted=doubted(grid, found.saturated, model.info), seed=arguments.seed,
    )  # fmt: skip
    plan = SweepPlan(
        base=base, source=other, cells=tuple(grid.cells[c] for c in chosen), metrics=(metric,), read_at=base.last,
        seed=arguments.seed,
    )  # fmt: skip
    result = sweep(model, plan, context.progress, budget)
    context.keep("exact", result.values[0], axes=("rechecked_cell", "prompt"), unit=UNITS[name])
    exact = (result.values[0] - result.base_values[0]).double().numpy()
    names = [grid.name(c) for c in range(len(grid.cells))]
    recheck = compared(names, chosen, found.values.double().mean(-1).tolist(), exact, clusters)
    complete = completeness(found)
    tests = (into_itself(model, plan, budget, context.progress), *result.self_tests)
    if arguments.method == "atp" and model.info.dtype.endswith("32"):
        steepest = max(chosen, key=lambda c: abs(float(found.values[c].mean())))
        tests = (slope_test(model, base, other, metric, grid.cells[steepest], found.values[steepest]), *tests)
    return AttributionResult(
        summary=_summary(arguments, effects, recheck, found.saturated),
        warnings=(
            *failed(tests),
            *saturation_warnings(found.saturated, complete, way, found.looked),
            *doubts(recheck),
            *((f"{name}: {effects.withheld}",) if effects.withheld else ()),
            *prompts.warnings,
        ),
        site=arguments.site,
        direction=arguments.direction,
        shows=SHOWS[arguments.direction],
        made=MADE[arguments.method].format(steps=arguments.steps),
        estimates=effects,
        dropped=None if found.magnitude is None else _dropped(grid, found.magnitude.mean(-1).tolist(), UNITS[name]),
        recheck=recheck,
        saturated=found.saturated,
        completeness=complete,
        positions=positions_in_words(arguments, grid),
        tokens=base.strings[0],
        self_tests=tests,
        cost=cost_of(model, plan, result),
    )


def _dropped(grid: CellGrid, values: Sequence[float], unit: str) -> Grid:
    return grid.fill("mean |estimate| with one layer's gradient dropped", unit, values)


def plot(result: AttributionResult) -> Figure:
    """Estimates over the grid, and estimates against exact values."""
    unit = result.estimates.unit
    panels = [_panel(f"estimated change of {result.estimates.metric} ({unit})", result.estimates.change)]
    if result.dropped is not None:
        panels.append(_panel(result.dropped.name, result.dropped))
    r = result.recheck
    fit = "" if r.pearson is None else f"; Pearson {r.pearson:.2f} over {r.checked} of {r.of}"
    wrong = f"; wrong sign: {', '.join(r.wrong_sign[:6])}" if r.wrong_sign else ""
    return Figure(
        title=f"Attribution patching: {result.site}, {result.direction}",
        caption=f"First-order estimates, {result.made}, {result.positions}; patched into "
        f"{result.estimates.base}, other run {result.estimates.other}. Checked by exact patching{fit}{wrong}.",
        panels=(*panels, beside_exact(r, unit)),
    )


def _panel(title: str, values: Grid) -> Heatmap | Bars:
    if len(values.axes) == 2:
        return Heatmap(title=title, grid=values)
    return Bars(title=title, value_title=values.unit, labels=values.axes[0].labels, values=values.values or ())


def _summary(
    arguments: Arguments, effects: MetricEffects, recheck: Recheck, saturated: Sequence[Saturated]
) -> str:
    exact = "; ".join(f"{c.name} {c.exact.mean:+.3g} (estimated {c.estimate:+.3g})" for c in recheck.cells[:5])
    parts = [
        f"{effects.metric} is {effects.base} in the base run and {effects.other} in the other.",
        f"Largest exact changes among those re-checked: {exact}.",
        in_words(recheck),
    ]
    if recheck.wrong_sign:
        parts.append(f"Wrong sign: {', '.join(recheck.wrong_sign[:8])}.")
    if saturated:
        parts.append(f"Saturated: {', '.join(dict.fromkeys(s.head for s in saturated[:8]))}.")
    parts.append(
        f"Estimates rank cells for exact patching; they are no evidence by themselves. {SHOWS[arguments.direction]}"
    )
    return " ".join(parts)
