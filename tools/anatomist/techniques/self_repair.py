"""Direct effect against total effect of ablating each component: how much later parts repair, and which.

Idea: what a head writes to the logits itself is its direct effect; what its ablation costs in the end is its total
effect. Where the total is smaller, something later made up for it: other heads and MLPs, or the final norm, which
divides by less once something is missing. Both are told apart, per component and for the largest ones together.

Source: McGrath et al., "The Hydra effect", arXiv 2307.15771, section 3; Rushing & Nanda, "Explorations of self-repair
in language models", arXiv 2402.15390, sections 3 and 4. With M the logit difference, prompt by prompt:
repair = total - direct; repair by later components = frozen - direct; repair by the norm = total - frozen, where
frozen is the total effect with the final norm still dividing by the intact run's scale.

Does not show: why a component compensates, or that it was trained to: part of it is what any network does when an
input shifts. Ablated at all positions, total minus direct also holds what the component did through other positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..causal.direct_effects import single_answers
from ..causal.grids import CellGrid, by_layer_and_head, in_a_row, together
from ..causal.joint import JointCells, JointEffect, few_controls, joint_cells, joint_effect, joint_in_words
from ..causal.measured import SweepCost, bound_metrics, cost_of, encoded, failed
from ..causal.replacements import cross_fitted_means, deranged, resampled
from ..causal.self_repair import (
    NEGLIGIBLE,
    Apart,
    Repair,
    Task,
    Written,
    apart,
    direct_changes,
    numbers,
    repair_of,
)
from ..causal.units import chosen_layers, chosen_units, unit_name
from ..errors import BadArguments
from ..figures import Bars, Figure, Scatter
from ..measures.statistics import Clusters
from ..model.sites import Shape, Site, check_site
from ..prompts.encoding import EncodedPrompts
from ..result import Estimate, Grid, Result, SelfTest
from ..technique import Ablation, Context, Heads, Layers, OnPrompts, Positions

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from ..model.sweep import SweepResult

TITLE = "Self-repair"
QUESTIONS = (
    "Do later heads make up for one that is ablated?",
    "Why does ablating an important head cost so little?",
    "Which components back up this head?",
    "How much of self-repair is the final norm's doing?",
)
METRIC = "logit_diff"
FEW_REFERENCES = 8  # prompts; a mean over fewer is rough


class Arguments(OnPrompts):
    """Arguments of self_repair."""

    site: Literal["head", "attn_out", "mlp_out"] = Field(default="head", description="Kind of component ablated.")
    layers: Layers = None
    heads: Heads = None
    positions: Positions = Field(
        default=("last",),
        description="Where it is ablated: 'last' (as the sources do: what is lost is what it writes there), or 'all'.",
    )
    ablation: Ablation = "mean"
    top: int = Field(
        default=5, ge=1, le=50,
        description="Components with the largest direct effect, taken apart one by one and ablated jointly.",
    )  # fmt: skip
    controls: int = Field(default=20, ge=0, le=1000, description="Random sets that the joint ablation is held against.")


class SelfRepairResult(Result):
    """Direct and total effects of every component, and the largest ones taken apart."""

    site: str = Field(description="Kind of component.")
    ablation: str = Field(description="zero, mean or resample.")
    written: str = Field(description="What replaced the activations.")
    positions: str = Field(description="Positions that were ablated.")
    base: Estimate = Field(description="Logit difference of the intact model, in logits.")
    direct: Grid = Field(description="Mean direct effect of ablating each component, in logits.")
    total: Grid = Field(description="Mean total effect, in logits.")
    repair: Grid = Field(description="Mean total minus direct effect, in logits.")
    slope: float | None = Field(
        description="Total on direct effect over components, least squares through 0: 1 no repair, 0 all repaired. "
        "Absent where there is no direct effect."
    )
    largest: tuple[Repair, ...] = Field(description="The components with the largest direct effect, taken apart.")
    together: Repair | None = Field(description="These ablated at once; absent for one component.")
    joint: JointEffect | None = Field(description="The same beside random sets of its size; absent for one component.")
    tokens: tuple[str, ...] = Field(description="Tokens of the first prompt.")
    self_tests: tuple[SelfTest, ...] = Field(description="Identities checked on this model and these prompts.")
    cost: SweepCost = Field(description="How the total effects were computed and what it cost.")


def components(arguments: Arguments, shape: Shape) -> tuple[Site, ...]:
    """The components asked for.

    Raises:
        BadArguments, BadSite: heads for a site without, or a place that the model does not have.
    """
    check_site(Site(arguments.site, 0), shape)
    if arguments.site == "head":
        return chosen_units("head", arguments.heads, arguments.layers, shape)
    if arguments.heads is not None:
        raise BadArguments(f"{arguments.site} has no heads: choose `layers`, or site 'head'.")
    return tuple(Site(arguments.site, layer) for layer in chosen_layers(arguments.layers, shape))


class Setting(NamedTuple):
    """The prompts, the components and what replaces them."""

    prompts: EncodedPrompts
    cells: CellGrid
    task: Task
    words: str
    few: tuple[str, ...] = ()

    @property
    def sites(self) -> list[Site]:
        return [cell.sites[0] for cell in self.cells.cells]


def run(context: Context, arguments: Arguments) -> SelfRepairResult:
    """Ablate every component, then take the largest apart, alone and together.

    Raises:
        BadPrompts: an answer or a wrong token is absent or a set, or there is no other prompt to take a mean from.
        BadArguments, BadSite, BadPosition: see `components`.
        Unsupported: the weights of this architecture are not known.
        ParityError: the terms do not add up.
    """
    setting = _setting(context, arguments)
    prompts, sites = setting.prompts, setting.sites
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    direct = numbers(direct_changes(setting.task, sites, context.budget_bytes))  # [C, B]
    order = _largest(direct.mean(1), arguments.top)
    chosen = [sites[c] for c in order]
    joint = _joint(context, arguments, setting, chosen)
    result, cost = _sweep(context, arguments, setting, joint)
    values, base = numbers(result.values[0]), numbers(result.base_values[0])
    total = values[: len(sites)] - base
    context.keep("direct", result.values.new_tensor(direct), axes=("component", "prompt"), unit="logits")
    context.keep("total", result.values.new_tensor(total), axes=("component", "prompt"), unit="logits")
    context.progress(0.9, 1, "taking the largest apart")
    sets = [[site] for site in chosen] + ([chosen] if len(chosen) > 1 else [])
    found = apart(setting.task, sets, context.budget_bytes)
    largest = tuple(repair_of(unit_name(sites[c]), direct[c], a, clusters) for c, a in zip(order, found, strict=False))
    whole = repair_of(", ".join(map(unit_name, chosen)), direct[order].sum(0), found[-1], clusters)
    tests = _self_tests(context, found, total[order], direct[order], result)
    cells = setting.cells
    effect = (
        joint_effect(joint.labels, METRIC, "logits", values[len(sites) :] - base, total[order], base, base * 0,
                     clusters, joint.drawn)
        if joint.cells else None
    )  # fmt: skip
    slope = _slope(direct.mean(1), total.mean(1))
    several = len(chosen) > 1
    return SelfRepairResult(
        summary=_summary(arguments, largest, whole if several else None, slope, effect, len(sites)),
        warnings=(*failed(tests), *setting.few, *_warnings(context, arguments, clusters, effect), *prompts.warnings),
        site=arguments.site,
        ablation=arguments.ablation,
        written=setting.words,
        positions="every position" if arguments.positions == "all" else ", ".join(map(str, arguments.positions)),
        base=clusters.means(base).estimate(),
        direct=cells.fill("direct effect of ablation", "logits", direct.mean(1)),
        total=cells.fill("total effect of ablation", "logits", total.mean(1)),
        repair=cells.fill("self-repair: total minus direct", "logits", (total - direct).mean(1)),
        slope=slope,
        largest=largest,
        together=whole if several else None,
        joint=effect,
        tokens=prompts.clean.strings[0],
        self_tests=tests,
        cost=cost,
    )


def _largest(direct: ndarray, top: int) -> list[int]:
    """Components with the largest direct effect; those without one only if there is no other."""
    order = sorted(range(len(direct)), key=lambda c: -abs(direct[c]))
    return [c for c in order[:top] if abs(direct[c]) > NEGLIGIBLE] or order[:1]


def _setting(context: Context, arguments: Arguments) -> Setting:
    model, budget = context.model, context.budget_bytes
    prompts = encoded(context.prompts, model, arguments.bos, (METRIC,), corrupted=False)
    answers, wrongs = single_answers(prompts)
    sites = components(arguments, model.info.shape)
    positions = None if arguments.positions == "all" else together(prompts.columns(arguments.positions))
    by_head = arguments.site == "head"
    cells = (
        by_layer_and_head(sites, model.info.shape, positions) if by_head else in_a_row(sites, positions, "component")
    )
    whole = sorted({site.whole for site in sites}, key=lambda s: s.layer or 0)
    few: tuple[str, ...] = ()
    if arguments.ablation == "zero":
        written, words = Written(None, ()), "zeros"
    elif arguments.ablation == "mean":
        means = cross_fitted_means(model, prompts, whole, arguments.seed, budget)
        written = Written(means.values, means.value_rows)
        if means.fewest < FEW_REFERENCES:
            few = (f"The smallest reference for a mean has {means.fewest} prompt(s): give more of each template.",)
        words = (
            "per matched position, the mean over the half of the prompts of the same template that shares no names "
            f"with the prompt (at least {means.fewest})"
        )
    else:
        written = Written(*resampled(model, prompts, whole, deranged(prompts, arguments.seed), budget))
        words = "activations of another prompt of the same template at matched positions, drawn by the seed"
    return Setting(prompts, cells, Task(model, prompts.clean, answers, wrongs, written, positions), words, few)


def _joint(context: Context, arguments: Arguments, setting: Setting, chosen: Sequence[Site]) -> JointCells:
    if len(chosen) < 2:
        return JointCells((), "")
    shape, positions = context.model.info.shape, setting.task.positions
    try:
        return joint_cells(
            arguments.site, chosen, shape, positions, controls=arguments.controls, seed=arguments.seed
        )
    except BadArguments:  # the largest few are most of a small model: nothing is left to draw from
        alone = joint_cells(arguments.site, chosen, shape, positions, controls=0, seed=arguments.seed)
        return alone._replace(drawn="none: too few other components to draw a set of this size from")


def _sweep(
    context: Context, arguments: Arguments, setting: Setting, joint: JointCells
) -> tuple[SweepResult, SweepCost]:
    """Total effects: every component, the chosen ones together, random sets."""
    from ..model.sweep import SweepPlan, sweep  # torch, only where a model is

    model, prompts, written = context.model, setting.prompts, setting.task.written
    (metric,) = bound_metrics((METRIC,), prompts, model, prompts.clean)
    values = dict(written.values) if written.values is not None else None
    if values is not None:
        values |= _controls_values(context, arguments, setting, joint)
    plan = SweepPlan(
        base=prompts.clean, cells=(*setting.cells.cells, *joint.cells), metrics=(metric,), read_at=prompts.clean.last,
        rule="zero" if values is None else "set", values=values,
        value_rows=tuple(written.rows) if values is not None else None, seed=arguments.seed,
    )  # fmt: skip
    result = sweep(model, plan, context.progress, context.budget_bytes)
    return result, cost_of(model, plan, result)


def _controls_values(
    context: Context, arguments: Arguments, setting: Setting, joint: JointCells
) -> dict[Site, Tensor]:
    """What replaces the random sets' components in layers that were not asked for."""
    have = setting.task.written.values or {}
    more = sorted({s.whole for c in joint.cells for s in c.sites} - set(have), key=lambda s: s.layer or 0)
    if not more:
        return {}
    model, prompts, seed, budget = context.model, setting.prompts, arguments.seed, context.budget_bytes
    if arguments.ablation == "mean":
        return dict(cross_fitted_means(model, prompts, more, seed, budget).values)
    return dict(resampled(model, prompts, more, deranged(prompts, seed), budget).values)


def _self_tests(
    context: Context, found: Sequence[Apart], total: ndarray, direct: ndarray, result: SweepResult
) -> tuple[SelfTest, ...]:
    """The terms under the frozen norm; the sweep against the passes that were taken apart; the direct effects."""
    from ..model.sweep import tolerance_of

    model = context.model
    tolerance = max(1e-3, 10 * tolerance_of(model, result.values))
    tests = [("terms under the frozen norm against the model's own norm, rescaled", max(a.gap for a in found))]
    if model.weights.logit_softcap() is None:
        gap = max(float(abs(numbers(a.total) - t).max()) for a, t in zip(found, total, strict=False))
        tests.append(("total effects of the sweep against passes that read every component", gap))
    if model.weights.post_attention_norm(0) is None:
        gap = max(float(abs(numbers(a.own) - d).max()) for a, d in zip(found, direct, strict=False))
        tests.append(("direct effects from what is written against those of the ablated run", gap))
    own = tuple(
        SelfTest(name=name, expected=0, found=gap, tolerance=tolerance, passed=gap <= tolerance) for name, gap in tests
    )
    return (*own, *result.self_tests)


def _slope(direct: ndarray, total: ndarray) -> float | None:
    square = float((direct**2).sum())
    return float((direct * total).sum()) / square if square > NEGLIGIBLE**2 else None


def plot(result: SelfRepairResult) -> Figure:
    """Total against direct effects of every component, and the largest taken apart."""
    labels = _labels(result.direct)
    direct, total = result.direct.values or (), result.total.values or ()
    points = [(n, d, t) for n, d, t in zip(labels, direct, total, strict=False) if d is not None and t is not None]
    scatter = Scatter(
        title="total against direct effect of ablation (no repair: on the line)", x_title="direct effect (logits)",
        y_title="total effect (logits)", x=tuple(p[1] for p in points), y=tuple(p[2] for p in points),
        labels=tuple(p[0] for p in points), diagonal=True,
    )  # fmt: skip
    shown = [*result.largest, *([result.together] if result.together else [])]
    rows = [
        (f"{r.name if r is not result.together else 'together'} {kind}", estimate, kind)
        for r in shown
        for kind, estimate in (("direct", r.direct), ("norm frozen", r.frozen), ("total", r.total))
    ]
    bars = Bars(
        title="largest direct effects taken apart", value_title="change of the logit difference (logits)",
        labels=tuple(r[0] for r in rows), values=tuple(r[1].mean for r in rows), low=tuple(r[1].low for r in rows),
        high=tuple(r[1].high for r in rows), groups=tuple(r[2] for r in rows),
    )  # fmt: skip
    return Figure(
        title=f"Self-repair after {result.ablation} ablation of {result.site}",
        caption=f"Change of the logit difference (intact {result.base}) when ablated at {result.positions}. Written: "
        f"{result.written}.",
        panels=(scatter, bars),
    )


def _labels(grid: Grid) -> list[str]:
    if len(grid.axes) == 1:
        return list(grid.axes[0].labels)
    return [f"L{layer}{head}" for layer in grid.axes[0].labels for head in grid.axes[1].labels]


def _summary(
    arguments: Arguments, largest: Sequence[Repair], whole: Repair | None, slope: float | None,
    joint: JointEffect | None, n: int,
) -> str:  # fmt: skip
    each = "; ".join(
        f"{r.name} direct {r.direct.mean:+.3g}, total {r.total.mean:+.3g}"
        + _share(r)
        for r in largest[:4]
    )
    line = "" if slope is None else f" Over all {n} the total effect is {slope:.2f} of the direct one."
    parts = largest[0]
    split = "" if abs(parts.repair.mean) < NEGLIGIBLE else (
        f" Of {parts.name}'s repair of {parts.repair.mean:+.3g}, later components give {parts.by_components.mean:+.3g} "
        f"and the final norm {parts.by_norm.mean:+.3g}."
    )
    several = "" if whole is None else f" Together: direct {whole.direct.mean:+.3g}, total {whole.total.mean:+.3g}."
    random = "" if joint is None else f" {joint_in_words(joint, 'the baseline lost')}"
    return (
        f"{arguments.ablation} ablation, largest direct effects: {each}.{line}{split}{several}{random} A single "
        "ablation understates a component that others back up; repair does not show that they were meant to."
    )


def _share(one: Repair) -> str:
    """How much comes back; later parts can also lose more."""
    if one.repaired is None:
        return ""
    share = one.repaired.mean
    if abs(one.repair.mean) < NEGLIGIBLE:
        return " (nothing repaired)"
    return f" ({share:.0%} repaired)" if share > 0 else f" ({-share:.0%} more lost on the way)"


def _warnings(
    context: Context, arguments: Arguments, clusters: Clusters, joint: JointEffect | None
) -> tuple[str, ...]:
    cap = context.model.weights.logit_softcap() is not None
    said = (
        (clusters.count < 2, "There is one cluster of prompts: no intervals."),
        (cap, "This model caps its logits: total effects in the grid are after the cap, direct ones before it; in "
         "`largest` all are before it."),
        (arguments.positions != ("last",), "Ablated beyond the last position: total minus direct also holds what the "
         "component did through other positions, which is no repair."),
    )  # fmt: skip
    few = few_controls((joint,)) if joint else ()
    return (*(text for wanted, text in said if wanted), *few)
