"""Where every token stands in the batch, layer by layer.

All runs of a chunk travel as segments of one flat batch of tokens: the base run of each row (all positions up to the
read position), the source run (from its first difference on) and the items (from their first edited position on).
Before a segment's first position everything is the base run's own, so its queries look at the base run's keys there.

At each layer there are two numberings of tokens ("slots"): *keys*, and *queries*, from which everything after attention
follows. They are the same but for two savings: in the last layer only read positions are queries, and an item that
enters behind attention stands, for the rest of that layer, only where it is edited; its other positions join from
the base run at the next layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..sites import Site, SiteKind
from ..sweep_plan import CUTTABLE
from .cuts import Cut, Edges
from .items import STAGES, Item, Stage
from .slots import Slots, begins, spread


class Group(NamedTuple):
    """Queries that attend alike: `n` runs of `length` consecutive queries, the first at position `first`."""

    start: int  # slot of the first query; run after run
    n: int
    first: int
    length: int
    keys: Slots  # [n, first + length]: the key slot of every position up to the last query


class Write(NamedTuple):
    """One edit of many tokens: at slots (and a head or neuron each), from slots of the source or base run."""

    to: Slots
    which: Slots | None  # head or neuron of each; None: all of them
    source: Slots  # slots of the run that is patched in
    rows: Slots  # base row of each, and its position: for values that are given
    positions: Slots
    cells: Slots  # cell of each, so that what was written can be counted


@dataclass
class Step:
    """One layer: which tokens it takes from the one before, who attends to whom, who enters where, what is edited."""

    gather: Slots  # per key slot: its slot at the end of the layer before
    key_positions: Slots
    reads: Slots | None  # key slots that are queries; None: all
    query_positions: Slots
    groups: list[Group] = field(default_factory=list)
    new_keys: Slots | None = None  # base slots whose keys and values the entering items take over
    enter: dict[Stage, Slots] = field(default_factory=dict)  # query slots of the base run, taken over at a stage
    writes: dict[SiteKind, list[Write]] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)


class Segments(NamedTuple):
    """Runs of a chunk, base rows first, then sources, then items: row within the chunk, first and last position."""

    row: Slots
    first: Slots
    last: Slots
    joins: Slots  # the layer entered with all positions


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of the sweep that are computed together, with some or all of their items."""

    rows: tuple[int, ...]
    lasts: tuple[int, ...]  # read position of each row
    differs: tuple[int | None, ...]  # where each row's source run starts; None: there is none, or it is the base run
    items: tuple[Item, ...]

    @property
    def sourced(self) -> list[int]:
        """Rows (within the chunk) that have a source run of their own."""
        return [i for i, d in enumerate(self.differs) if d is not None]

    @property
    def tokens(self) -> int:
        """Tokens that travel when all have joined."""
        runs = sum(last + 1 for last in self.lasts)
        sources = sum(self.lasts[i] + 1 - (self.differs[i] or 0) for i in self.sourced)
        return runs + sources + sum(item.length for item in self.items)


class Schedule:
    """The steps of one chunk through all layers; iterate once, then `final` says where each segment's result is."""

    def __init__(self, chunk: Chunk, n_layers: int) -> None:
        self.chunk, self.n_layers = chunk, n_layers
        self.local = {row: i for i, row in enumerate(chunk.rows)}
        self.sourced = chunk.sourced
        self.n_base, n_source = len(chunk.rows), len(self.sourced)
        self.first_item = self.n_base + n_source
        self.segments = self._segments()
        self.length = self.segments.last - self.segments.first + 1
        keys = np.stack([self.segments.last, self.segments.first], 0)
        self.order = np.lexsort(keys)  # alike segments side by side, by first position
        self.source_of = {row: self.n_base + i for i, row in enumerate(self.sourced)}
        self.edits = self._edits()
        self.edges = Edges(chunk.items)
        self.entering: dict[int, list[int]] = defaultdict(list)
        for i, item in enumerate(chunk.items):
            if item.stage is not Stage.PRE:
                self.entering[item.layer].append(i)
        self.final: Slots = np.zeros(0, np.int64)

    def _segments(self) -> Segments:
        chunk = self.chunk
        base = [(i, 0, last, 0) for i, last in enumerate(chunk.lasts)]
        source = [(i, chunk.differs[i] or 0, chunk.lasts[i], 0) for i in self.sourced]
        items = [(self.local[item.row], item.first, item.last, item.joins) for item in chunk.items]
        table = np.array(base + source + items, np.int64)
        return Segments(*table.T)

    def _edits(self) -> dict[tuple[int, SiteKind], list[tuple[int, Site]]]:
        """Per layer and kind: which items edit which place."""
        found: dict[tuple[int, SiteKind], list[tuple[int, Site]]] = defaultdict(list)
        for i, item in enumerate(self.chunk.items):
            for site in item.sites:
                found[site.layer or 0, site.kind].append((i, site))
        return found

    def embedded(self) -> tuple[Slots, Slots, NDArray[np.bool_]]:
        """Row (within the chunk), position and whether of the source run, for every token that is embedded."""
        n = self.first_item
        which, offset = spread(self.length[:n])
        return self.segments.row[which], self.segments.first[which] + offset, which >= self.n_base

    def __iter__(self) -> Iterator[Step]:
        before = begins(self.length[: self.first_item], len(self.length))
        patches: list[tuple[int, Slots]] = []  # (segment, slots of its edited positions) that entered in part
        for layer in range(self.n_layers):
            step, before, patches = self._step(layer, before, patches)
            yield step

    def _step(
        self, layer: int, before: Slots, patches: list[tuple[int, Slots]]
    ) -> tuple[Step, Slots, list[tuple[int, Slots]]]:
        """The step of a layer; `before`: slot of each segment's first token at the end of the layer before, or -1."""
        active = self.order[self.segments.joins[self.order] <= layer]
        which, offset = spread(self.length[active])
        seg = active[which]
        starts = np.full(len(self.length), -1, np.int64)
        starts[active] = begins(self.length[active], len(active))
        origin = np.where(before >= 0, before, before[self.segments.row] + self.segments.first)
        gather = origin[seg] + offset
        for i, slots in patches:
            item = self.chunk.items[i - self.first_item]
            gather[starts[i] + np.array(item.positions) - item.first] = slots
        positions = self.segments.first[seg] + offset
        last = layer == self.n_layers - 1
        builder = _Builder(self, layer, active, starts, Step(gather, positions, None, positions))
        builder.attention(last)
        builder.entrants(self.entering.get(layer, ()), last)
        builder.edits()
        self.final = builder.ends if last else self.final
        return builder.step, builder.whole, builder.parts


class _Builder:
    """One layer's step under construction, with the slots of its segments."""

    def __init__(self, schedule: Schedule, layer: int, active: Slots, starts: Slots, step: Step) -> None:
        self.s, self.layer, self.active, self.step = schedule, layer, active, step
        self.keys = starts.copy()  # per segment: key slot of its first position, -1 when absent
        self.queries = starts.copy()  # per segment: query slot of its first position (last layer: of its read position)
        self.whole = starts.copy()  # per segment that has all its positions: query slot of the first
        self.parts: list[tuple[int, Slots]] = []  # segments present only at their edited positions
        self.part_of: dict[int, Slots] = {}
        self.ends = np.full(len(starts), -1, np.int64)  # last layer: query slot of each read position
        self.n_keys = self.n_queries = len(step.gather)
        self.last = False

    def attention(self, last: bool) -> None:
        """The groups of the segments that came in whole."""
        s, seg = self.s, self.s.segments
        self.last = last
        if last:
            ordered = self.active[np.argsort(seg.last[self.active], kind="stable")]
            self.step.reads = self.keys[ordered] + s.length[ordered] - 1
            self.step.query_positions = seg.last[ordered]
            self.n_queries = len(ordered)
            self.ends[ordered] = self.queries[ordered] = np.arange(len(ordered))
            self._group(ordered, seg.last[ordered], np.ones_like(ordered), 0)
        else:
            self._group(self.active, seg.first[self.active], s.length[self.active], 0)

    def _group(self, segments: Slots, first: Slots, length: Slots, start: int) -> None:
        """Consecutive segments whose queries stand at the same positions attend together."""
        changes = np.flatnonzero((np.diff(first) != 0) | (np.diff(length) != 0)) + 1
        for part in np.split(np.arange(len(segments)), changes):
            n, f, t = len(part), int(first[part[0]]), int(length[part[0]])
            self.step.groups.append(Group(start, n, f, t, self._key_slots(segments[part], f + t)))
            start += n * t

    def _key_slots(self, segments: Slots, width: int) -> Slots:
        """[n, width]: the base run's keys before a segment's first position, its own from there on."""
        places = np.arange(width)
        seg = self.s.segments
        base = self.keys[seg.row[segments]][:, None] + places
        first, own = seg.first[segments][:, None], self.keys[segments][:, None]
        return np.where((places >= first) & (own >= 0), own + places - first, base)

    def entrants(self, items: Iterable[int], last: bool) -> None:
        """Items that enter within this layer, stage by stage."""
        stages: dict[Stage, list[int]] = defaultdict(list)
        for i in items:
            stages[self.s.chunk.items[i].stage].append(i)
        for stage in sorted(stages):
            if stage is Stage.QKV:
                spread = [i for i in stages[stage] if self.s.chunk.items[i].spreads]
                rest = [i for i in stages[stage] if not self.s.chunk.items[i].spreads]
                self._enter_keys(spread)
                self._enter_queries(rest)
            else:
                self._enter(stage, stages[stage])

    def _enter_keys(self, items: list[int]) -> None:
        """Items whose keys or values are edited: all their positions are queries and keys of their own."""
        if not items:
            return
        s, n = self.s, self.s.first_item
        chosen = np.array(sorted((n + i for i in items), key=lambda g: (s.segments.first[g], s.segments.last[g])))
        which, offset = spread(s.length[chosen])
        base_keys = self.keys[s.segments.row[chosen]] + s.segments.first[chosen]
        self.step.new_keys = base_keys[which] + offset
        self.keys[chosen] = self.n_keys + begins(s.length[chosen], len(chosen))
        self.n_keys += len(which)
        if self.last:
            chosen = chosen[np.argsort(s.segments.last[chosen], kind="stable")]
            self._group(chosen, s.segments.last[chosen], np.ones_like(chosen), self.n_queries)
            self.queries[chosen] = self.ends[chosen] = self.n_queries + np.arange(len(chosen))
            self._take(Stage.QKV, self.queries[s.segments.row[chosen]])
        else:
            self._group(chosen, s.segments.first[chosen], s.length[chosen], self.n_queries)
            self.queries[chosen] = self.whole[chosen] = self.n_queries + begins(s.length[chosen], len(chosen))
            self._take(Stage.QKV, base_keys[which] + offset)

    def _enter_queries(self, items: list[int]) -> None:
        """Items of which only queries are edited: each edited position is a query among the base run's keys."""
        pairs = sorted(((p, i) for i in items for p in self.s.chunk.items[i].positions), key=lambda pair: pair[0])
        pairs = [pair for pair in pairs if not self.last or pair[0] == self.s.chunk.items[pair[1]].last]
        if not pairs:
            return
        at = np.array([p for p, _ in pairs])
        rows = self.s.segments.row[[self.s.first_item + i for _, i in pairs]]
        self._group(rows, at, np.ones_like(at), self.n_queries)  # base row r is segment r
        slots: dict[int, list[int]] = defaultdict(list)
        for k, (_, i) in enumerate(pairs):
            slots[i].append(self.n_queries + k)
        self._take(Stage.QKV, self.queries[rows] + (0 if self.last else at))
        for i, found in slots.items():
            self._partly(i, np.array(found))

    def _enter(self, stage: Stage, items: list[int]) -> None:
        """Items that enter behind attention, at their edited positions."""
        found: list[Slots] = []
        start = self.n_queries
        for i in items:
            item = self.s.chunk.items[i]
            base = self.queries[self.s.local[item.row]]
            at = np.zeros(1, np.int64) if self.last else np.array(item.positions)
            self._partly(i, start + np.arange(len(at)))
            found.append(base + at)
            start += len(at)
        self._take(stage, np.concatenate(found))

    def _take(self, stage: Stage, base: Slots) -> None:
        held = self.step.enter.get(stage)
        self.step.enter[stage] = base if held is None else np.concatenate([held, base])
        self.n_queries += len(base)

    def _partly(self, i: int, slots: Slots) -> None:
        segment = self.s.first_item + i
        self.part_of[segment] = slots
        if self.last:
            self.ends[segment] = slots[0]
        else:
            self.parts.append((segment, slots))

    def edits(self) -> None:
        """What is written or cut at this layer, kind by kind: whole places first, then single heads or neurons."""
        for kind in STAGES:
            found = self.s.edits.get((self.layer, kind), [])
            for single in (False, True):
                chosen = [(i, site) for i, site in found if (site.index is not None) is single]
                if chosen and kind in CUTTABLE:
                    self._cut(kind, chosen)
                elif (write := self._write(kind, chosen)) is not None:
                    self.step.writes.setdefault(kind, []).append(write)

    def _cut(self, kind: SiteKind, chosen: Sequence[tuple[int, Site]]) -> None:
        s, n = self.s, self.s.first_item
        if self.last:
            slots = s.edges.ends(self.ends[n:], s.segments.last[n:])
        else:
            parts = {segment - n: at for segment, at in self.part_of.items()}
            slots = s.edges.slots(self.queries[n:], s.segments.first[n:], parts)
        if (cut := s.edges.cut(kind, chosen, slots)) is not None:
            self.step.cuts.append(cut)

    def _write(self, kind: SiteKind, chosen: Sequence[tuple[int, Site]]) -> Write | None:
        of_keys = kind in ("resid_pre", "k", "v")
        placed = [(i, site, *self._places(i, of_keys)) for i, site in chosen]
        placed = [one for one in placed if len(one[3])]
        if not placed:
            return None
        counts = [len(at) for _, _, _, at in placed]
        segments = np.repeat([self.s.first_item + i for i, *_ in placed], counts)
        rows = self.s.segments.row[segments]
        positions = np.concatenate([at for _, _, _, at in placed])
        index = None
        if placed[0][1].index is not None:
            index = np.repeat([site.index or 0 for _, site, _, _ in placed], counts)
        source = self._source(rows, positions, of_keys)
        global_rows = np.array(self.s.chunk.rows)[rows]
        cells = np.repeat([self.s.chunk.items[i].cell for i, *_ in placed], counts)
        return Write(np.concatenate([to for _, _, to, _ in placed]), index, source, global_rows, positions, cells)

    def _places(self, i: int, of_keys: bool) -> tuple[Slots, Slots]:
        """Slots and positions that an item writes in this layer."""
        item, segment = self.s.chunk.items[i], self.s.first_item + i
        at = np.array(item.positions)
        if of_keys:
            return self.keys[segment] + at - item.first, at
        if self.last:
            at = at[at == item.last]
            return np.full(len(at), self.ends[segment]), at
        if segment in self.part_of:
            return self.part_of[segment], at
        return self.queries[segment] + at - item.first, at

    def _source(self, rows: Slots, positions: Slots, of_keys: bool) -> Slots:
        """Slots of the source run at rows and positions: the base run's own before they differ."""
        slots = self.keys if of_keys else self.queries
        run = np.array([self.s.source_of.get(i, i) for i in range(self.s.n_base)])[rows]
        run = np.where(positions >= self.s.segments.first[run], run, rows)
        return slots[run] + (0 if self.last and not of_keys else positions - self.s.segments.first[run])
