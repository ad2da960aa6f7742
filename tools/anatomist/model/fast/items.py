"""What a cell changes in one row: where it first changes anything, and what need not be computed at all.

In a causal model an edit at layer l and position p leaves every earlier layer and position as it was, and only what
reaches the read position of the last layer is measured. An item is one cell on one row after everything that changes
nothing has been left out: positions behind the read position; places after the last attention other than the read
position; and, when a run is patched into another, positions before the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ..sites import Site, SiteKind
from ..sweep_plan import Cell, SweepPlan
from ..tokens import first_difference


class Stage(IntEnum):
    """The order in which the places of one block are computed."""

    PRE = 0
    QKV = 1
    HEAD = 2
    ATTN_OUT = 3
    MID = 4
    NEURON = 5
    MLP_OUT = 6
    POST = 7


STAGES: dict[SiteKind, Stage] = {
    "resid_pre": Stage.PRE, "q": Stage.QKV, "k": Stage.QKV, "v": Stage.QKV, "scores": Stage.QKV, "pattern": Stage.QKV,
    "head": Stage.HEAD, "attn_out": Stage.ATTN_OUT, "resid_mid": Stage.MID, "neuron": Stage.NEURON,
    "mlp_out": Stage.MLP_OUT, "resid_post": Stage.POST,
}  # fmt: skip

QUERIES: frozenset[SiteKind] = frozenset({"q", "scores", "pattern"})  # of the query's position alone


@dataclass(frozen=True, eq=False)
class Item:
    """One cell on one row: positions `first` to `last` differ from the base run, from (`layer`, `stage`) on."""

    cell: int
    row: int
    sites: tuple[Site, ...]
    positions: tuple[int, ...]  # edited, ascending
    last: int  # the read position
    layer: int
    stage: Stage
    spreads: bool  # at once changes every position from the first on: it acts before or within attention
    keys: tuple[tuple[int, ...], ...] | None = None  # of each position, where attention edges are cut

    @property
    def first(self) -> int:
        return self.positions[0]

    @property
    def length(self) -> int:
        return self.last - self.first + 1

    @property
    def joins(self) -> int:
        """The layer that it enters with all its positions."""
        return self.layer if self.stage is Stage.PRE else self.layer + 1


def differences(plan: SweepPlan) -> tuple[int, ...] | None:
    """Per row the first position where source and base differ, the length where they do not; None without source."""
    if plan.source is None:
        return None
    if plan.source.bos != plan.base.bos:
        return (0,) * plan.base.n_rows
    return tuple(first_difference(a, b) for a, b in zip(plan.base.ids, plan.source.ids, strict=True))


def items_of(plan: SweepPlan, row: int, n_layers: int, differs: tuple[int, ...] | None) -> list[Item]:
    """The items of one base row; a cell that changes nothing measured there has none. `differs`: of `differences`."""
    first = differs[row] if differs is not None and plan.shares_prefix else 0
    last = plan.read_at[row]
    found = (_item(c, cell, row, first, last, n_layers) for c, cell in enumerate(plan.cells))
    return [item for item in found if item is not None]


def _item(index: int, cell: Cell, row: int, first: int, last: int, n_layers: int) -> Item | None:
    chosen: Sequence[int] = range(last + 1) if cell.positions is None else cell.positions[row]
    positions = tuple(sorted({p for p in chosen if first <= p <= last}))
    if all(_only_read_position_matters(site, n_layers) for site in cell.sites):
        positions = tuple(p for p in positions if p == last)
    if not positions:
        return None
    layer, stage = min((site.layer or 0, STAGES[site.kind]) for site in cell.sites)
    within = {site.kind for site in cell.sites if site.layer == layer and STAGES[site.kind] is stage}
    spreads = stage is Stage.PRE or bool(within & {"k", "v"})
    keys = None
    if cell.positions is not None and cell.keys is not None:
        of = dict(zip(cell.positions[row], cell.keys[row], strict=True))
        keys = tuple(of[p] for p in positions)
    return Item(index, row, cell.sites, positions, last, layer, stage, spreads, keys)


def needed(item: Item, n_layers: int) -> int:
    """How many (site, position) places the item must write; the others change nothing that is measured."""
    at_read = int(item.last in item.positions)
    return sum(at_read if _only_read_position_matters(s, n_layers) else len(item.positions) for s in item.sites)


def _only_read_position_matters(site: Site, n_layers: int) -> bool:
    behind = STAGES[site.kind] >= Stage.HEAD or site.kind in QUERIES
    return behind and site.layer == n_layers - 1
