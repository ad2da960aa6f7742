"""A sweep as data: which cells, which edit, what is measured, and what an engine hands back.

A sweep makes one edit a *cell* to a fixed run (`base`) and measures every cell on every row. Engines compute it: the
generic one (`sweep_generic.py`) through `Model.run`, the fast one (`fast/`) with the arithmetic a cell cannot avoid.
Both take a `SweepPlan` and give a `Measured`; `sweep.py` chooses, checks, proves and adds up.

B rows, T positions (widest row), C cells, M metrics, n columns of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from ..errors import BadArguments, BadPosition, BadPrompts, BadSite
from ..measures.metrics import Metric
from .protocol import ModelInfo
from .sites import WHOLE_MODEL, Shape, Site, SiteKind, check_site
from .tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SweepRule = Literal["patch", "resample", "mean", "set", "add", "zero", "cut"]
SweepProgress = Callable[[float, float, str], None]
SWEEPABLE: frozenset[SiteKind] = frozenset(
    {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head", "q", "k", "v", "neuron"}
)
CUTTABLE: frozenset[SiteKind] = frozenset({"scores", "pattern"})
Keys = tuple[tuple[int, ...], ...]  # of each query of a row


@dataclass(frozen=True)
class Cell:
    """What one cell edits: one place or several jointly, at some positions of each row.

    A site with an index is one head or neuron, without it all of them. `positions` holds for every base row the
    absolute positions edited there (usually one); None is every position of every row. `value_rows` names for every
    base row its row of the plan's values where this cell writes values of its own (one feature of many, say). `keys`
    makes a cell one of cut attention edges: for every base row and each of its positions, in their order, the key
    positions that the query there may no longer read.
    """

    sites: tuple[Site, ...]
    positions: tuple[tuple[int, ...], ...] | None = None
    value_rows: tuple[int, ...] | None = None
    keys: tuple[Keys, ...] | None = None

    def writes(self, lengths: Sequence[int]) -> int:
        """How many (row, position) places all its edits write together: what `fired` must say."""
        places = sum(lengths) if self.positions is None else sum(map(len, self.positions))
        return places * len(self.sites)


def values_of(
    metrics: Sequence[Metric], logits: Float[Tensor, "N n"], columns: Sequence[int] | None, rows: Sequence[int]
) -> list[Float[Tensor, " N"]]:
    """Each metric's values of N measurements: `columns` says which vocabulary ids `logits` holds (None: all), `rows`
    which base row each measurement is of."""
    place = None if columns is None else {token: column for column, token in enumerate(columns)}
    return [_value_of(metric.rows(rows), logits, place) for metric in metrics]


def _value_of(metric: Metric, logits: Float[Tensor, "N n"], place: Mapping[int, int] | None) -> Float[Tensor, " N"]:
    if place is None:
        return metric(logits)
    return metric(logits[:, [place[token] for token in metric.ids or ()]], whole=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class SweepPlan:
    """One sweep.

    | rule | what is written at a cell's places |
    |---|---|
    | patch, resample, mean, set | the replacement |
    | add | the activation + factor * replacement |
    | zero | 0 |
    | cut | at the `keys` of its queries: minus infinity in scores (the other keys share the weight), 0 in pattern |

    The replacement comes either from `source`, another run of the same lengths row by row (its own activation at the
    same place and position), or from `values`: for every whole site of the cells a tensor [R, T', *feature] with
    T' >= T (or 1, for every position) of which base row b takes row `value_rows[b]` (row 0 for all when None); a cell
    with `value_rows` takes its own.
    Reusing a prefix that base and source share is exact only for rule 'patch' from `source`.
    """

    base: Tokens
    cells: tuple[Cell, ...]
    metrics: tuple[Metric, ...]
    read_at: tuple[int, ...]  # the position of each base row where the logits are measured
    rule: SweepRule = "patch"
    source: Tokens | None = None
    values: Mapping[Site, Tensor] | None = None
    value_rows: tuple[int, ...] | None = None
    factor: float = 1.0
    seed: int = 0  # of the random cells that are recomputed as proof

    @property
    def sites(self) -> tuple[Site, ...]:
        """The whole sites that its cells edit, each once, by layer."""
        whole = {site.whole for cell in self.cells for site in cell.sites}
        return tuple(sorted(whole, key=lambda site: (site.layer or 0, site.kind)))

    @property
    def shares_prefix(self) -> bool:
        """Whether a cell wholly before a row's first differing token is known to change nothing."""
        return self.rule == "patch" and self.source is not None

    @property
    def vocabulary(self) -> tuple[int, ...] | None:
        """Vocabulary ids of the columns its metrics need, each once; None for the whole vocabulary."""
        needed = [metric.ids for metric in self.metrics]
        if any(ids is None for ids in needed):
            return None
        return tuple(dict.fromkeys(i for ids in needed for i in ids or ()))

    def rows_of_values(self, cell: int) -> tuple[int, ...]:
        """Per base row, the row of the values that a cell writes."""
        return self.cells[cell].value_rows or self.value_rows or (0,) * self.base.n_rows

    def some(self, cells: Sequence[int] | None = None, rows: Sequence[int] | None = None) -> SweepPlan:
        """The same sweep on some of its cells and rows."""
        plan = self if cells is None else replace(self, cells=tuple(self.cells[i] for i in cells))
        return plan if rows is None else _some_rows(plan, rows)


def _some_rows(plan: SweepPlan, rows: Sequence[int]) -> SweepPlan:
    cells = tuple(_some_of_cell(cell, rows) for cell in plan.cells)
    return replace(
        plan,
        base=plan.base.rows(rows),
        source=None if plan.source is None else plan.source.rows(rows),
        cells=cells,
        read_at=tuple(plan.read_at[b] for b in rows),
        value_rows=None if plan.value_rows is None else tuple(plan.value_rows[b] for b in rows),
        metrics=tuple(metric.rows(rows) for metric in plan.metrics),
    )


def _some_of_cell(cell: Cell, rows: Sequence[int]) -> Cell:
    positions = None if cell.positions is None else tuple(cell.positions[b] for b in rows)
    value_rows = None if cell.value_rows is None else tuple(cell.value_rows[b] for b in rows)
    return Cell(cell.sites, positions, value_rows, None if cell.keys is None else tuple(cell.keys[b] for b in rows))


@dataclass(frozen=True)
class Work:
    """What a sweep cost."""

    layer_tokens: int  # (row, position, layer) triples that went through a block
    flops: float  # multiply-adds counted twice
    chunks: int
    largest_chunk: int  # rows that travelled together
    peak_bytes: int  # as planned, beyond the weights

    def plus(self, other: Work) -> Work:
        return Work(
            self.layer_tokens + other.layer_tokens,
            self.flops + other.flops,
            self.chunks + other.chunks,
            max(self.largest_chunk, other.largest_chunk),
            max(self.peak_bytes, other.peak_bytes),
        )


@dataclass(frozen=True, eq=False)
class Measured:
    """What an engine hands back; float32."""

    values: Float[Tensor, "M C B"]
    base_values: Float[Tensor, "M B"]
    source_values: Float[Tensor, "M B"] | None  # None when the plan has no source
    fired: tuple[int, ...]  # per cell: places written, over all rows, those skipped by the shared prefix included
    work: Work
    shared_prefix: bool = False  # whether rows and positions before the first difference were skipped


class Engine(Protocol):
    """A way to compute sweeps on one model.

    `anatomist.model.fast.engine(model)` gives the fast one, or raises Unsupported with the reason.
    """

    def refuses(self, plan: SweepPlan) -> str | None:
        """Why this plan cannot be computed this way; None when it can."""
        ...

    def measure(self, plan: SweepPlan, progress: SweepProgress, budget_bytes: int) -> Measured:
        """Compute the sweep within the budget; `progress(done, total, what)` between chunks may raise Cancelled.

        Raises:
            WouldNotFit: even the smallest chunk is over the budget.
        """
        ...


def check_plan(plan: SweepPlan, info: ModelInfo) -> SweepPlan:
    """Return the plan if it can be run.

    Raises:
        BadArguments: no cells or metrics, or a rule without its replacement.
        BadSite: a place the model does not have, or one that is not for sweeps.
        BadPosition: outside the prompts, or a key that its query does not see.
        BadPrompts: base and source differ in shape.
    """
    if not plan.cells or not plan.metrics:
        raise BadArguments("a sweep needs at least one cell and one metric; give layers, heads or positions to sweep.")
    if (plan.source is None) == (plan.values is None) and plan.rule not in ("zero", "cut"):
        raise BadArguments(f"rule {plan.rule!r} needs either a source run or values to write (one of them).")
    if plan.rule == "cut" and (plan.source is not None or plan.values is not None):
        raise BadArguments("rule 'cut' writes nothing of another run: leave `source` and `values` out.")
    for cell in plan.cells:
        _check_cell(cell, plan, info.shape)
    if len(plan.read_at) != plan.base.n_rows:
        raise BadArguments(f"{len(plan.read_at)} read positions for {plan.base.n_rows} rows; give one a row.")
    _check_positions(plan.base, [(p,) for p in plan.read_at])
    if plan.source is not None and plan.source.lengths != plan.base.lengths:
        raise BadPrompts(
            f"the two runs have lengths {plan.base.lengths[:8]} and {plan.source.lengths[:8]}; "
            "a sweep between runs needs equal lengths row by row: check the prompts with check_prompts."
        )
    return plan


def _check_cell(cell: Cell, plan: SweepPlan, shape: Shape) -> None:
    if not cell.sites:
        raise BadArguments("a cell edits no place; give each at least one site.")
    kinds, what = (CUTTABLE, "cut") if plan.rule == "cut" else (SWEEPABLE, "swept")
    for site in cell.sites:
        if site.kind in WHOLE_MODEL or site.kind not in kinds:
            raise BadSite(f"{site} cannot be {what}; the kinds that can are {', '.join(sorted(kinds))}.")
        check_site(site, shape)
        if plan.values is not None and site.whole not in plan.values:
            raise BadArguments(f"there are no values to write at {site.whole}; give one tensor for each site edited.")
    if cell.value_rows is not None and len(cell.value_rows) != plan.base.n_rows:
        raise BadArguments(f"a cell has values for {len(cell.value_rows)} rows, there are {plan.base.n_rows}.")
    if cell.positions is not None:
        if len(cell.positions) != plan.base.n_rows:
            raise BadPosition(f"a cell has positions for {len(cell.positions)} rows, there are {plan.base.n_rows}.")
        _check_positions(plan.base, cell.positions)
    _check_keys(cell, plan)


def _check_keys(cell: Cell, plan: SweepPlan) -> None:
    """Whether the edges of a cell can be cut; a model without its scores would take a softmax over nothing in silence.

    Raises:
        BadArguments: edges where none are cut or none where they are, or a query that keeps no key in its softmax.
        BadPosition: a query named twice, without keys, or a key that it does not see.
    """
    if (cell.keys is not None) != (plan.rule == "cut"):
        raise BadArguments("`keys` are the attention edges of cells of rule 'cut', and of no other; give both or none.")
    if cell.keys is None:
        return
    if cell.positions is None or [len(at) for at in cell.positions] != [len(of) for of in cell.keys]:
        raise BadArguments("a cell of rule 'cut' needs its queries as `positions`, and the keys of each of them.")
    softmax = any(site.kind == "scores" for site in cell.sites)
    for row, (queries, keys) in enumerate(zip(cell.positions, cell.keys, strict=True)):
        if len(set(queries)) < len(queries):
            raise BadPosition(f"queries {list(queries)} of prompt {row}: name each once, with all its keys.")
        for q, of in zip(queries, keys, strict=True):
            if not of or min(of) < 0 or max(of) > q:
                raise BadPosition(f"position {q} of prompt {row} cannot be cut from {list(of)}: it sees keys 0 to {q}.")
            if softmax and len(set(of)) > q:
                raise BadArguments(f"position {q} of prompt {row} would keep no key to attend to; cut it in `pattern`.")


def _check_positions(tokens: Tokens, positions: Sequence[Sequence[int]]) -> None:
    for row, chosen in enumerate(positions):
        if not chosen:
            raise BadPosition(f"no position is chosen in prompt {row}; name at least one.")
        for position in chosen:
            if not 0 <= position < tokens.lengths[row]:
                raise BadPosition(tokens.outside(row, position))
