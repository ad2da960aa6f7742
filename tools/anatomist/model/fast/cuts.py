"""Attention edges that are cut: every edge of a chunk's items laid out once, and layer by layer where its query stands.

An item of cut edges enters like one whose queries are edited: in its first layer each query attends to the base run's
keys, and only what follows from there is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from ..sites import Site, SiteKind
from .items import Item
from .slots import Slots, begins, spread


class Cut(NamedTuple):
    """Edges cut at one kind of place (scores or pattern) in one layer."""

    kind: SiteKind
    queries: Slots  # query slot of each edge, ascending
    keys: Slots  # its key position
    heads: Slots | None  # None: every head
    cells: Slots  # at the first edge of a query at a site its cell, so that queries are counted; -1 at the others

    def within(self, start: int, stop: int) -> Cut | None:
        """The edges of queries in slots start .. stop - 1; None without any."""
        low, high = np.searchsorted(self.queries, (start, stop))
        if low == high:
            return None
        part = slice(low, high)
        heads = None if self.heads is None else self.heads[part]
        return Cut(self.kind, self.queries[part], self.keys[part], heads, self.cells[part])


class Edges:
    """All edges of some items, item after item and query after query."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        lengths = [[len(of) for of in item.keys or ()] for item in items]
        self.keys: Slots = np.array([key for item in items for of in item.keys or () for key in of], np.int64)
        queries = np.array([len(row) for row in lengths], np.int64)
        self.first_query = begins(queries, len(items))
        self.item_of_query, _ = spread(queries)
        self.positions: Slots = np.array([p for item in items if item.keys for p in item.positions], np.int64)
        self.query, offset = spread(np.array(list(chain.from_iterable(lengths)), np.int64))
        self.opens = offset == 0
        self.counts: Slots = np.array([sum(row) for row in lengths], np.int64)
        self.starts = begins(self.counts, len(items))
        self.cells: Slots = np.array([item.cell for item in items], np.int64)

    def slots(self, first: Slots, first_position: Slots, parts: Mapping[int, Slots]) -> Slots:
        """The slot of every query of every item: `first` is that of an item's position `first_position`, where it
        stands whole; `parts` those of the queries of an item that stands at these alone."""
        found = first[self.item_of_query] + self.positions - first_position[self.item_of_query]
        for item, at in parts.items():
            found[self.first_query[item] : self.first_query[item] + len(at)] = at
        return found

    def ends(self, ends: Slots, last: Slots) -> Slots:
        """The slot of every query of every item where only read positions are left; -1 where a query is none."""
        return np.where(self.positions == last[self.item_of_query], ends[self.item_of_query], -1)

    def cut(self, kind: SiteKind, chosen: Sequence[tuple[int, Site]], slots: Slots) -> Cut | None:
        """The edges of (item, site) pairs, all of single heads or all of every head; `slots` of every query."""
        items = np.array([i for i, _ in chosen], np.int64)
        which, offset = spread(self.counts[items])
        edges = self.starts[items][which] + offset
        at = slots[self.query[edges]]
        order = np.argsort(at, kind="stable")[np.count_nonzero(at < 0) :]
        if not len(order):
            return None
        heads = None if chosen[0][1].index is None else np.array([s.index for _, s in chosen], np.int64)[which][order]
        cells = np.where(self.opens[edges], self.cells[items][which], -1)
        return Cut(kind, at[order], self.keys[edges][order], heads, cells[order])
