"""Patch the direct path from one component to an input of another, with everything else frozen.

Idea: patching a head changes all that comes after it. Path patching asks for one edge: the sender takes its activation
of the other run, every other component is frozen, and only the chosen input of the receiver (queries, keys or values
of a head, an MLP, or the logits) sees the difference; what follows the receiver is computed as usual.

Source: Wang et al., arXiv 2211.00593, section 3.1 and appendix B (path patching); Goldowsky-Dill et al., arXiv
2304.05969, section 2 (paths as hypotheses). Unlike Wang et al. the MLPs between are frozen too, so that a path is one
edge of the residual stream. With b the run patched into and o the other:
change = mean over prompts of M(b with the receiver's input as s(o) alone would make it) - M(b).

Does not show: paths of more than two components, nor the total effect of the sender; edges do not add up where the
receiver is not linear; an edge that another one backs up can show nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..causal.chosen_cells import SHOWS
from ..causal.effects import MetricEffects, StandOut, in_words, metric_effects, stand_out, too_few
from ..causal.grids import CellGrid, together
from ..causal.measured import bound_metrics, encoded, failed, last_logits
from ..causal.paths import (
    RECEIVERS,
    SENDERS,
    End,
    Held,
    Logits,
    Places,
    direct,
    ends,
    everything,
    held,
    need_weights,
    pieces_of,
    reaches,
    receiver,
    sender,
)
from ..errors import BadArguments
from ..figures import Bars, Figure, Heatmap
from ..measures.metrics import UNITS, Metric
from ..measures.statistics import Clusters
from ..model.protocol import Model, ModelInfo
from ..model.sites import Site
from ..model.sweep_plan import Cell
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts
from ..result import Result, SelfTest
from ..technique import Context, Direction, OnPrompts, Positions
from ..technique import Metric as MetricArgument

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Path patching"
QUESTIONS = (
    "Which heads feed this head, and through its queries, keys or values?",
    "Does one head compose with another?",
    "Which components write to the logits directly, and which through others?",
    "Is an edge between two components real?",
)
MOST_SENDERS = 400
MOST_RECEIVERS = 200
FEW = 4  # prompts of the self-test
Norm = Literal["recomputed", "frozen"]


class Arguments(OnPrompts):
    """Arguments of path_patching."""

    senders: tuple[str, ...] | None = Field(
        default=None, description=f"Where paths begin; all that reach a receiver when absent. {SENDERS}"
    )
    receivers: tuple[str, ...] = Field(
        default=("logits",),
        description=f"Where paths end. {RECEIVERS} Shared keys: 'L10KV2.k'.",
    )
    together: bool = Field(
        default=False, description="Also patch all receivers of a sender jointly, as one more column; not with logits."
    )
    sender_positions: Positions = Field(
        default="all", description="Positions where the sender is changed: integers, 'last', roles, token texts, 'all'."
    )
    receiver_positions: Positions = Field(
        default="all", description="Positions of the receivers that see the change; the logits are read at the last."
    )
    norm: Norm = Field(
        default="recomputed",
        description="Final norm on paths to the logits: recomputed, or frozen at the base run's scale; then the change "
        "is the sender's difference in direct logit attribution.",
    )
    metric: MetricArgument = "logit_diff"
    direction: Direction = "denoising"


class PathResult(Result):
    """The effect of every edge, and how the numbers were made."""

    direction: str = Field(description="denoising: clean into corrupted; noising: corrupted into clean.")
    shows: str = Field(description="What this direction shows.")
    effects: MetricEffects = Field(description="Change per edge: sender by receiver; null where none can pass.")
    stand_out: tuple[StandOut, ...] = Field(description="At most ten edges, largest first, that survive Holm at .05.")
    norm: str = Field(description="The final norm on paths to the logits.")
    positions: str = Field(description="Positions changed in the sender and seen by the receiver.")
    tokens: tuple[str, ...] = Field(description="Tokens of the first prompt that is patched into.")
    self_tests: tuple[SelfTest, ...] = Field(description="Identities checked on this model and these prompts.")
    passes: int = Field(description="Edges times prompts that were computed.")


class Edge(NamedTuple):
    """One cell: a sender, and one receiver or several at once."""

    start: End
    stops: tuple[End, ...]

    @property
    def name(self) -> str:
        return f"{self.start.name} -> {self.stops[0].name if len(self.stops) == 1 else TOGETHER}"


TOGETHER = "all receivers"


class Edges(NamedTuple):
    """The edges asked for, and where they stand in a grid."""

    edges: tuple[Edge, ...]
    grid: CellGrid
    senders: tuple[End, ...]


def edges_of(arguments: Arguments, info: ModelInfo) -> Edges:
    """Every edge from a sender to a receiver that it reaches.

    Raises:
        BadArguments: none, one twice, too many, or a sender that reaches no receiver.
        BadSite: a place that the model does not have.
    """
    stops = ends(arguments.receivers, lambda text: receiver(text, info), "receivers")
    if arguments.together and any(r.site is None for r in stops):
        raise BadArguments("together=true patches inputs of components jointly; leave 'logits' out of `receivers`.")
    named = arguments.senders is not None
    texts = arguments.senders if named else everything(info)
    starts = [s for s in ends(texts or (), lambda t: sender(t, info.shape), "senders")
              if named or any(reaches(s, r, info) for r in stops)]  # fmt: skip
    if len(starts) > MOST_SENDERS or len(stops) > MOST_RECEIVERS:
        raise BadArguments(
            f"{len(starts)} senders and {len(stops)} receivers; at most {MOST_SENDERS} and {MOST_RECEIVERS}: name "
            "fewer."
        )
    edges: list[Edge] = []
    where: list[int] = []
    columns = [s.name for s in stops] + ([TOGETHER] if arguments.together and len(stops) > 1 else [])
    for i, start in enumerate(starts):
        reached = [r for r in stops if reaches(start, r, info)]
        if not reached:
            listed = ", ".join(arguments.receivers[:8])
            raise BadArguments(f"{start.name} reaches none of {listed}: a sender must come before its receiver.")
        for j, _ in enumerate(columns):
            whole = j == len(stops)
            if whole or stops[j] in reached:
                edges.append(Edge(start, tuple(reached) if whole else (stops[j],)))
                where.append(i * len(columns) + j)
    axes = (("sender", tuple(s.name for s in starts)), ("receiver", tuple(columns)))
    cells = tuple(Cell((e.start.site or Site("embed"),)) for e in edges)
    return Edges(tuple(edges), CellGrid(axes, cells, tuple(where)), tuple(starts))


class Setting(NamedTuple):
    """What all edges are measured on."""

    model: Model
    base: Tokens
    other: Tokens
    metric: Metric
    frozen_norm: bool
    sender_at: Places
    receiver_at: Places


def run(context: Context, arguments: Arguments) -> PathResult:
    """Patch every edge on every prompt.

    Raises:
        BadPrompts: no corrupted side, or an answer that the metric needs is absent.
        BadArguments, BadSite, BadPosition: see `edges_of`.
        Unsupported: a frozen norm on an architecture whose weights are not known.
    """
    model, name = context.model, arguments.metric
    prompts = encoded(context.prompts, model, arguments.bos, (name,), corrupted=True)
    assert prompts.corrupted is not None
    chosen = edges_of(arguments, model.info)
    runs = (prompts.corrupted, prompts.clean)
    base, other = runs if arguments.direction == "denoising" else runs[::-1]
    if arguments.norm == "frozen":
        need_weights(model)
    (metric,) = bound_metrics((name,), prompts, model, base)
    sides = [_places(prompts, at) for at in (arguments.sender_positions, arguments.receiver_positions)]
    setting = Setting(model, base, other, metric, arguments.norm == "frozen", *sides)
    measured = measure(context, setting, chosen)
    tests = (_unchanged(setting, chosen, context.budget_bytes // 2), *measured.tests)
    context.keep("values", measured.values, axes=("edge", "prompt"), unit=UNITS[name])
    values, plain, far = (t.double().numpy() for t in (measured.values, measured.base, measured.other))
    clusters, labels = Clusters(prompts.clusters, seed=arguments.seed), [e.name for e in chosen.edges]
    effects = metric_effects(chosen.grid, name, UNITS[name], values, plain, far, clusters)
    found = stand_out(
        labels, (values - plain).T, prompts.clusters, effects.fraction, chosen.grid.where, seed=arguments.seed
    )
    return PathResult(
        summary=_summary(arguments, effects, found, len(labels), clusters),
        warnings=(
            *failed(tests),
            *((f"{name}: {effects.withheld}",) if effects.withheld else ()),
            *(("There is one cluster of prompts: no intervals and no test.",) if clusters.count < 2 else ()),
            *too_few(clusters.count, len(labels)),
            *prompts.warnings,
        ),
        direction=arguments.direction,
        shows=SHOWS[arguments.direction].replace("the cell", "the edge"),
        effects=effects,
        stand_out=found,
        norm=arguments.norm,
        positions=f"sender {_in_words(arguments.sender_positions)}; receiver {_in_words(arguments.receiver_positions)}",
        tokens=base.strings[0],
        self_tests=tests,
        passes=len(labels) * prompts.n,
    )


class Measured(NamedTuple):
    """The metric of every edge."""

    values: Tensor  # [edges, B]
    base: Tensor  # [B]
    other: Tensor  # [B]
    tests: tuple[SelfTest, ...]


def measure(context: Context, s: Setting, chosen: Edges) -> Measured:
    """Both passes of every edge, a few prompts at a time."""
    stops = list(dict.fromkeys(r.site.whole for e in chosen.edges for r in e.stops if r.site))
    parts = pieces_of(s.model, s.base, stops, context.budget_bytes // 2)
    base, other = _plain(s)
    values = base.new_full((len(chosen.edges), s.base.n_rows), float("nan"))
    tests: list[SelfTest] = []
    for n, rows in enumerate(parts):
        part = _rows(s, rows)
        both = held(s.model, part.base, part.other)
        for m, start in enumerate(chosen.senders):
            context.progress(n * len(chosen.senders) + m, len(parts) * len(chosen.senders), f"paths from {start.name}")
            index = [i for i, e in enumerate(chosen.edges) if e.start == start]
            edges = [chosen.edges[i] for i in index]
            found, spot = _from(part, edges, both, context.budget_bytes // 2, spot=not tests)
            tests = tests or spot
            for i, one in zip(index, found, strict=True):
                values[i, list(rows)] = one
    context.progress(1, 1, "paths")
    return Measured(values, base, other, tuple(tests))


def _rows(s: Setting, rows: Sequence[int]) -> Setting:
    def some(places: Places) -> Places:
        return None if places is None else tuple(places[b] for b in rows)

    return s._replace(
        base=s.base.rows(rows), other=s.other.rows(rows), metric=s.metric.rows(rows), sender_at=some(s.sender_at),
        receiver_at=some(s.receiver_at),
    )  # fmt: skip


def _plain(s: Setting) -> tuple[Tensor, Tensor]:
    """The metric of both runs as they are."""
    return tuple(s.metric(last_logits(s.model, tokens)).float().cpu() for tokens in (s.base, s.other))  # type: ignore[return-value]


def _from(
    s: Setting, edges: Sequence[Edge], both: Held, budget: int, *, spot: bool
) -> tuple[list[Tensor], list[SelfTest]]:
    """The edges of one sender on some rows, [B] each; with `spot` a few are recomputed by whole passes."""
    from ..model.sweep import SweepPlan, sweep  # torch, only where a model is

    sites = [tuple(r.site for r in e.stops if r.site) for e in edges]
    logits = None if all(sites) else Logits(s.metric, s.frozen_norm)
    stops = [site for found in sites for site in found]
    through = direct(s.model, edges[0].start, stops, both, s.base, s.sender_at, logits)
    cells = tuple(Cell(found, s.receiver_at) for found in sites if found)
    if not cells:
        assert through.logits is not None
        return [through.logits for _ in edges], []
    plan = SweepPlan(
        base=s.base, values=through.inputs, value_rows=tuple(range(s.base.n_rows)), rule="set", metrics=(s.metric,),
        cells=cells, read_at=s.base.last,
    )  # fmt: skip
    result = sweep(s.model, plan, budget_bytes=budget, spot_check=spot)
    swept = iter(result.values[0])
    found = [next(swept) if inner else through.logits for inner in sites]
    return [x for x in found if x is not None], list(result.self_tests)


def _unchanged(s: Setting, chosen: Edges, budget: int) -> SelfTest:
    """Everything frozen and the sender with its own activations: the base run, exactly."""
    from ..model.sweep import tolerance_of

    part = _rows(s, range(min(FEW, s.base.n_rows)))
    both = held(s.model, part.base, part.base)
    edges = [e for e in chosen.edges if e.start == chosen.senders[0]]
    found, _ = _from(part, edges, both, budget, spot=False)
    plain = _plain(part)[0]
    worst = max(float((x - plain).abs().max()) for x in found)
    tolerance = tolerance_of(s.model, plain)
    name = f"a sender with its own activations changes nothing ({len(edges)} edges from {chosen.senders[0].name})"
    return SelfTest(name=name, expected=0, found=worst, tolerance=tolerance, passed=worst <= tolerance)


def _places(prompts: EncodedPrompts, at: Positions) -> Places:
    return None if at == "all" else together(prompts.columns(at))


def _in_words(at: Positions) -> str:
    return "at every position" if at == "all" else f"at {', '.join(map(str, at))}"


def plot(result: PathResult) -> Figure:
    """Change by sender and receiver."""
    e = result.effects
    by_sender, by_receiver = e.change.axes
    title = f"change of {e.metric} through each edge ({e.unit})"
    if len(by_receiver.labels) > 1:
        panel: Heatmap | Bars = Heatmap(title=title, grid=e.change)
    else:
        panel = Bars(
            title=f"{title}, to {', '.join(by_receiver.labels)}", value_title=e.unit, labels=by_sender.labels,
            values=e.change.values or (), low=None if e.low is None else e.low.values,
            high=None if e.high is None else e.high.values,
        )  # fmt: skip
    return Figure(
        title=f"Path patching, {result.direction}",
        caption=f"Mean change of the metric when one edge is patched, all else frozen; {result.positions}; final norm "
        f"{result.norm}; run patched into {e.base}, other run {e.other}. {result.shows}",
        panels=(panel,),
    )


def _summary(
    arguments: Arguments, effects: MetricEffects, found: Sequence[StandOut], edges: int, clusters: Clusters
) -> str:
    into, out_of = ("corrupted", "clean") if arguments.direction == "denoising" else ("clean", "corrupted")
    words = in_words(found, edges, effects.unit, clusters.count).replace("No cell", "No edge").replace("cells", "edges")
    return (
        f"{effects.metric} is {effects.base} in the {into} run and {effects.other} in the {out_of} run. {words} Each "
        "edge is the direct path alone, every component between frozen: what a sender does through others is in other "
        "edges, and edges do not add up."
    )
