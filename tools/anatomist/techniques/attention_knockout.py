"""Cut attention edges between positions: which words must be read from where, and in which layers.

Idea: forbid some queries (usually the last token) to attend to some positions, in a window of layers, and see what the
behaviour loses. What a position held may still arrive by other ways: through other positions, or in other layers.
Random edges, as many and of the same queries, are cut beside each, for cutting anything costs something.

Source: Geva et al., "Dissecting recall of factual associations", arXiv 2304.14767, section 4.1 (scores of minus
infinity over windows of layers). With M the metric on the clean prompts: change = mean of M(edges cut) - M(intact);
specific = change - mean change of the random edges, prompt by prompt.

Does not show: what is read, or that reading it is enough; a small effect of one window does not show that the edge is
unused, for other layers and positions can carry the same; with many keys cut the others get more weight than ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..causal.attention_edges import How, attended, left_on_cut, need_a_key, need_attention
from ..causal.effects import MetricEffects, StandOut, in_words, metric_effects, stand_out, too_few
from ..causal.grids import CellGrid
from ..causal.knockout_cells import Plan, groups_of, rows_of
from ..causal.measured import SweepCost, bound_metrics, cost_of, encoded, failed
from ..errors import BadArguments
from ..figures import Figure, Heatmap
from ..measures.metrics import UNITS
from ..measures.statistics import Clusters
from ..model.sweep_plan import Cell, SweepPlan
from ..model.tokens import PositionSpec
from ..prompts.encoding import EncodedPrompts
from ..result import Frozen, Grid, Result, SelfTest
from ..technique import Context, Heads, Layers, Metric, OnPrompts

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "Attention knockout"
QUESTIONS = (
    "Which positions must the last token read, and in which layers?",
    "Does information flow from this word to that one through attention?",
    "What happens when a head may no longer attend to a position?",
    "At which layers is the subject read?",
)
MOST_CUTS = 5_000
FEW = 4  # prompts of the self-tests
IN_WORDS: dict[How, str] = {
    "renormalise": "scores of cut edges set to minus infinity before the softmax: the query's other keys share the "
    "weight that is set free",
    "zero": "weights of cut edges set to 0 after the softmax: the other keys keep their weights, the query reads less",
}


class Arguments(OnPrompts):
    """Arguments of attention_knockout."""

    sources: tuple[PositionSpec | tuple[PositionSpec, ...], ...] | None = Field(
        default=None,
        description="Key positions: one (role, integer, 'last', token text) or a list cut together; 'rest': all others "
        "but the queries. Absent: every role and the rest; without roles every position.",
    )
    queries: tuple[PositionSpec, ...] = Field(
        default=("last",), description="Positions that may no longer attend to the sources, all together."
    )
    by: Literal["window", "head"] = Field(
        default="window", description="One row per window of layers, or one per head."
    )
    window: int | None = Field(
        default=None, ge=1, description="Layers cut together; absent: a fifth of them, at least one."
    )
    stride: int | None = Field(default=None, ge=1, description="Layers from window to window; absent: the window.")
    layers: Layers = None
    heads: Heads = Field(default=None, description="Cut only at these heads (L23H3); all of `layers` when absent.")
    how: How = Field(
        default="renormalise",
        description="renormalise: scores to minus infinity, the other keys share the weight; zero: weights to 0 after "
        "the softmax, nothing shared.",
    )
    controls: int = Field(default=5, ge=0, le=100, description="Sets of as many random edges cut for every cell.")
    metric: Metric = "logit_diff"


class SourceGroup(Frozen):
    """Key positions that are cut together."""

    name: str = Field(description="What the columns of the grids call it.")
    positions: str = Field(description="Its positions, with their tokens.")
    edges: float = Field(description="Mean number of edges cut in a prompt, at each head.")
    controls: str = Field(description="How the random edges were drawn.")


class KnockoutResult(Result):
    """What every cut costs the behaviour, beside random cuts."""

    how: How = Field(description="renormalise or zero.")
    cut: str = Field(description="What cutting means, in words.")
    queries: str = Field(description="Positions that may no longer attend to the sources.")
    heads: str = Field(description="Heads at which the edges are cut.")
    sources: tuple[SourceGroup, ...] = Field(description="The columns of the grids.")
    effects: MetricEffects = Field(
        description="Mean change per cell: window (or head) by source; fraction = share of the baseline lost."
    )
    controls: int = Field(description="Random sets per cell.")
    control_change: Grid | None = Field(description="Mean change over the random sets; null where none can be drawn.")
    specific: Grid | None = Field(description="Change minus that of the random sets, prompt by prompt.")
    specific_low: Grid | None = Field(description="Lower interval ends; absent with a single cluster.")
    specific_high: Grid | None = Field(description="Upper interval ends; absent with a single cluster.")
    attention: Grid = Field(description="Intact weight of the queries on the source, mean over heads and layers.")
    stand_out: tuple[StandOut, ...] = Field(description="At most ten cells, largest first, that survive Holm at .05.")
    no_more_than_random: tuple[str, ...] = Field(
        description="Cells that stand out but whose `specific` holds 0 in its interval: any edges would do."
    )
    tokens: tuple[str, ...] = Field(description="Tokens of the first prompt.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this model and these prompts.")
    cost: SweepCost = Field(description="How it was computed and what it cost, random edges included.")


def run(context: Context, arguments: Arguments) -> KnockoutResult:
    """Cut every group's edges in every window (or at every head), and random edges beside them.

    Raises:
        BadPrompts: no prompts, or an answer that the metric needs is absent.
        BadArguments, BadSite, BadPosition: see `rows_of` and `groups_of`; a query that keeps no key.
        Unsupported: a backend that does not show attention.
    """
    from ..model.sweep import sweep  # torch, only where a model is

    model, name, how = context.model, arguments.metric, arguments.how
    need_attention(model, how)
    prompts = encoded(context.prompts, model, arguments.bos, (name,), corrupted=False)
    plan = Plan(rows_of(arguments, model.info.shape), groups_of(arguments, prompts))
    if plan.n_cuts > MOST_CUTS:
        raise BadArguments(
            f"{len(plan.chosen)} cells with their random sets are {plan.n_cuts} cuts, at most {MOST_CUTS}: take a "
            "larger stride, fewer sources or heads, or fewer `controls`."
        )
    cuts = plan.cuts(how)
    if how == "renormalise":
        names = plan.names + ["random edges"] * (len(cuts) - len(plan.chosen))
        for cell, text in zip(cuts, names, strict=True):
            need_a_key(cell, model, text)
    tokens = prompts.clean
    cutting = SweepPlan(
        base=tokens, cells=tuple(cuts), metrics=bound_metrics((name,), prompts, model, tokens), read_at=tokens.last,
        rule="cut", seed=arguments.seed,
    )  # fmt: skip
    result = sweep(model, cutting, context.progress, context.budget_bytes)
    context.keep("values", result.values[0], axes=("cut", "prompt"), unit=UNITS[name])
    tests = (*_self_tests(context, arguments, prompts, cuts), *result.self_tests)
    cost = cost_of(model, cutting, result)
    return _result(context, arguments, prompts, plan, result.base_values[0], result.values[0], tests, cost)


def _result(
    context: Context, arguments: Arguments, prompts: EncodedPrompts, plan: Plan, base: Tensor, values: Tensor,
    tests: tuple[SelfTest, ...], cost: SweepCost,
) -> KnockoutResult:  # fmt: skip
    unit, cells = UNITS[arguments.metric], plan.grid
    n, plain, found = len(plan.chosen), base.double().numpy(), values.double().numpy()
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    effects = metric_effects(cells, arguments.metric, unit, found[:n], plain, None, clusters)
    changes = (found[:n] - plain).T
    out = stand_out(plan.names, changes, prompts.clusters, effects.fraction, cells.where, seed=arguments.seed)
    beside = _beside(plan, cells, changes, found[n:] - plain, clusters, unit)
    same = tuple(s.cell for s in out if s.cell in beside.same)
    return KnockoutResult(
        summary=_summary(arguments, effects, out, same, n, clusters),
        warnings=(
            *failed(tests), *_warnings(arguments, effects, plan, clusters, same), *too_few(clusters.count, n),
            *prompts.warnings,
        ),
        how=arguments.how,
        cut=IN_WORDS[arguments.how],
        queries=", ".join(c.label for c in prompts.columns(arguments.queries)),
        heads="every head" if arguments.heads is None and arguments.by == "window" else
        "one head a row" if arguments.by == "head" else ", ".join(arguments.heads or ()),
        sources=tuple(
            SourceGroup(name=g.name, positions=g.shown, edges=sum(map(len, g.edges)) / prompts.n, controls=g.drawn.note)
            for g in plan.groups
        ),
        effects=effects,
        controls=arguments.controls,
        control_change=beside.control,
        specific=beside.specific,
        specific_low=beside.low,
        specific_high=beside.high,
        attention=_attention(context, prompts, plan),
        stand_out=out,
        no_more_than_random=same,
        tokens=prompts.clean.strings[0],
        self_tests=tests,
        cost=cost,
    )  # fmt: skip


class Beside(NamedTuple):
    """The cells beside their random edges."""

    control: Grid | None
    specific: Grid | None
    low: Grid | None
    high: Grid | None
    same: frozenset[str]  # cells whose difference to random edges holds 0


def _beside(
    plan: Plan, cells: CellGrid, changes: ndarray, random: ndarray, clusters: Clusters, unit: str
) -> Beside:
    """changes [B, cells]; random [sets of all cells, B], cell by cell."""
    import numpy as np

    counts = [len(group.drawn.sets) for _, group in plan.chosen]
    having = [c for c, count in enumerate(counts) if count]
    if not having:
        return Beside(None, None, None, None, frozenset())
    ends = np.cumsum(counts)
    means = np.stack([random[ends[c] - counts[c] : ends[c]].mean(0) for c in having], axis=1)  # [B, having]
    specific = clusters.means(changes[:, having] - means)

    def fill(name: str, found: ndarray | None) -> Grid | None:
        if found is None:
            return None
        some = CellGrid(cells.axes, tuple(cells.cells[c] for c in having), tuple(having))
        return some.fill(name, unit, found)

    same = [
        plan.names[c] for i, c in enumerate(having)
        if specific.low is not None and specific.high is not None and specific.low[i] <= 0 <= specific.high[i]
    ]  # fmt: skip
    return Beside(
        fill("change with random edges cut", means.mean(0)), fill("change beyond random edges", specific.mean),
        fill("lower end, change beyond random edges", specific.low),
        fill("upper end, change beyond random edges", specific.high), frozenset(same),
    )  # fmt: skip


def _attention(context: Context, prompts: EncodedPrompts, plan: Plan) -> Grid:
    """Intact weight on each group, over the heads of each row."""
    layers = sorted({layer for row in plan.rows for layer, _ in row.places})
    edges = [g.edges for g in plan.groups]
    found = attended(context.model, prompts.clean, edges, layers, context.budget_bytes).cpu()  # [L, H, G]
    values: list[float] = []
    for row in plan.rows:
        means = [found[layers.index(at)].mean(0) if h is None else found[layers.index(at), h] for at, h in row.places]
        values += (sum(means[1:], means[0]) / len(means)).tolist()
    return plan.grid.fill("intact attention on the source", "attention weight", values)


def _self_tests(
    context: Context, arguments: Arguments, prompts: EncodedPrompts, cuts: Sequence[Cell]
) -> tuple[SelfTest, ...]:
    """The largest cut, read back: nothing is left on its edges; renormalised, the other weights sum to 1."""
    largest = max(cuts, key=lambda cell: len(cell.sites) * sum(len(of) for row in cell.keys or () for of in row))
    rows = range(min(FEW, prompts.n))
    left, missing = left_on_cut(context.model, prompts.clean, largest, rows)
    tests = [SelfTest(
        name=f"attention left on cut edges ({len(rows)} prompts)", expected=0, found=left, tolerance=1e-6,
        passed=left <= 1e-6,
    )]  # fmt: skip
    if arguments.how == "renormalise":
        tests.append(SelfTest(
            name="distance from 1 of the weights that a query has on what it may see", expected=0, found=missing,
            tolerance=0.02, passed=missing <= 0.02,
        ))  # fmt: skip
    return tuple(tests)


def plot(result: KnockoutResult) -> Figure:
    """Change by window and source; the same beyond random edges; where the intact model looks."""
    e = result.effects
    panels = [Heatmap(title=f"change of {e.metric} with the edges cut ({e.unit})", grid=e.change)]
    if result.specific is not None:
        panels.append(Heatmap(title=f"beyond {result.controls} sets of random edges ({e.unit})", grid=result.specific))
    panels.append(Heatmap(title="intact attention on the source", grid=result.attention, diverging=False))
    return Figure(
        title=f"Attention knockout: {result.queries} may not attend to ...",
        caption=f"Mean change of the metric; intact {e.metric} {e.base}; cut at {result.heads}; {result.cut}.",
        panels=tuple(panels),
        columns=2,
    )


def _summary(
    arguments: Arguments, effects: MetricEffects, found: Sequence[StandOut], same: Sequence[str], cells: int,
    clusters: Clusters,
) -> str:  # fmt: skip
    words = in_words(found, cells, effects.unit, clusters.count)
    beside = f" No more than random edges: {', '.join(same)}." if same else ""
    return (
        f"Intact {effects.metric} is {effects.base}. With edges cut ({arguments.how}): {words}{beside} A large effect "
        "shows that these queries need to read there in these layers; a small one does not show that nothing is read: "
        "other layers or positions can carry the same."
    )


def _warnings(
    arguments: Arguments, effects: MetricEffects, plan: Plan, clusters: Clusters, same: Sequence[str]
) -> tuple[str, ...]:
    first = [g.name for g in plan.groups if any(s == 0 for edges in g.edges for _, s in edges)]
    undrawn = [f"{g.name}: {g.drawn.note}" for g in plan.groups if not g.drawn.sets]
    said = (
        (effects.withheld, f"{effects.metric}: {effects.withheld}"),
        (clusters.count < 2, "There is one cluster of prompts: no intervals and no test."),
        (first, f"{', '.join(first)} holds the first position, where many heads rest attention that they do not use: "
         "an effect there can come from what is read instead."),
        (arguments.controls == 0, "No random edges were cut: an effect of cutting anything cannot be told apart."),
        (arguments.controls and undrawn, f"Without random edges: {'; '.join(undrawn)}."),
        (same, f"{len(same)} cells stand out but not beyond random edges: {', '.join(same)}."),
    )  # fmt: skip
    return tuple(text for wanted, text in said if wanted)
