"""Sweeps through `Model.run`: cells x rows as the rows of whole forward passes. Slow, general, and the reference.

Every backend and architecture can do it; the fast engine is measured against it. Source activations are read once for
a block of rows; the block and each pass are sized so that both stay within the budget.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .edits import Edit
from .protocol import Model, ModelInfo
from .sites import Site
from .sweep_cost import fit, flops_of, pieces, row_bytes, site_bytes
from .sweep_cuts import cut_bytes, cut_edit
from .sweep_plan import Measured, SweepPlan, SweepProgress, Work, values_of
from .tokens import Tokens

PASS_SECONDS = 0.8  # a pass is kept about this long, so that cancelling between passes answers within two seconds
FIRST_PASS = 16  # rows of the first pass, before its speed is known


@dataclass(frozen=True)
class _Block:
    """Rows that are swept together, with what is written on them."""

    plan: SweepPlan  # of these rows alone
    replacement: Mapping[Site, Float[Tensor, "R T *feature"]]

    def rows_of(self, cell: int) -> tuple[int, ...]:
        """Per row of the block, the row of the replacement that a cell writes: a source's row is the base row's own."""
        if self.plan.source is not None:
            return tuple(range(self.plan.base.n_rows))
        return self.plan.rows_of_values(cell)


class GenericEngine:
    """The plain way, on any model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def refuses(self, plan: SweepPlan) -> str | None:
        """None: it takes every plan."""
        return None

    def measure(self, plan: SweepPlan, progress: SweepProgress, budget_bytes: int) -> Measured:
        """See `Engine.measure`."""
        return _Sweep(self.model, plan, progress, budget_bytes).run()


class _Sweep:
    """One sweep under way."""

    def __init__(self, model: Model, plan: SweepPlan, progress: SweepProgress, budget_bytes: int) -> None:
        self.model, self.plan, self.progress = model, plan, progress
        n_metrics, n_cells, n_rows = len(plan.metrics), len(plan.cells), plan.base.n_rows
        self.values = torch.full((n_metrics, n_cells, n_rows), float("nan"))
        self.base_values = torch.full((n_metrics, n_rows), float("nan"))
        self.source_values = None if plan.source is None else torch.full_like(self.base_values, float("nan"))
        self.fired = [0] * n_cells
        columns = plan.vocabulary
        self.row_bytes = row_bytes(model.info, plan.base.width, None) + _written_bytes(model.info, plan)
        self.read_bytes = 0 if plan.source is None else site_bytes(model.info, plan.sites, plan.base.width)
        self.columns = None if columns is None else torch.tensor(columns)
        self.flops = flops_of(model)
        self.block_rows = min(n_rows, fit(budget_bytes / 2, self.read_bytes + self.row_bytes, "prompt with its reads"))
        held = self.block_rows * self.read_bytes + self.values.nbytes
        self.most_rows = fit(budget_bytes - held, self.row_bytes, "row of a forward pass")
        self.pass_rows = min(self.most_rows, FIRST_PASS)
        self.work = Work(0, 0.0, 0, 0, 0)
        self.held = held

    def run(self) -> Measured:
        done, total = 0, self.plan.base.n_rows * (len(self.plan.cells) + 1)
        for rows in pieces(self.plan.base.n_rows, self.block_rows):
            block = self._block(rows)
            done += len(rows)
            pairs = itertools.product(range(len(self.plan.cells)), range(len(rows)))
            while chunk := list(itertools.islice(pairs, self.pass_rows)):
                self.progress(done, total, "sweep, whole forward passes")
                self._pass(block, rows, chunk)
                done += len(chunk)
        self.progress(total, total, "sweep, whole forward passes")
        return Measured(self.values, self.base_values, self.source_values, tuple(self.fired), self.work)

    def _block(self, rows: range) -> _Block:
        """Measure the unedited runs of some rows, and read what is to be written on them."""
        plan = self.plan.some(rows=rows)
        for part in pieces(len(rows), self.pass_rows):
            at = [rows[b] for b in part]
            self.base_values[:, at] = self._logits(plan.base.rows(part), at, ())[0]
        if plan.source is None:
            return _Block(plan, plan.values or {})
        return _Block(plan, self._read(plan.source, rows))

    def _read(self, source: Tokens, rows: range) -> dict[Site, Tensor]:
        """The source's activations at every site of the sweep, and its metrics on the way."""
        assert self.source_values is not None
        reads: dict[Site, Tensor] = {}
        sites = self.plan.sites
        for part in pieces(len(rows), self.pass_rows):
            at = [rows[b] for b in part]
            tokens = source.rows(part)
            values, got, _ = self._logits(tokens, at, (), sites)
            self.source_values[:, at] = values
            for site in sites:
                if site not in reads:
                    reads[site] = got[site].new_zeros((len(rows), source.width, *got[site].shape[2:]))
                reads[site][part.start : part.stop, : tokens.width] = got[site]
        return reads

    def _pass(self, block: _Block, rows: range, chunk: Sequence[tuple[int, int]]) -> None:
        """One forward pass: each row is one cell on one row of the block."""
        start = time.perf_counter()
        tokens = block.plan.base.rows(b for _, b in chunk)
        edits = list(self._edits(block, chunk, tokens.width))
        at = [rows[b] for _, b in chunk]
        values, _, fired = self._logits(tokens, at, [edit for _, edit in edits])
        self.values[:, [c for c, _ in chunk], at] = values
        for (c, _), count in zip(edits, fired, strict=True):
            self.fired[c] += count
        pace = PASS_SECONDS / max(time.perf_counter() - start, 1e-4)
        self.pass_rows = max(1, min(self.most_rows, int(self.pass_rows * min(pace, 4.0))))

    def _edits(self, block: _Block, chunk: Sequence[tuple[int, int]], width: int) -> Iterator[tuple[int, Edit]]:
        """One edit a cell and site, on the rows of the pass that belong to the cell."""
        for c, members in itertools.groupby(enumerate(chunk), key=lambda item: item[1][0]):
            places = [(row, b) for row, (_, b) in members]
            for site in block.plan.cells[c].sites:
                yield c, self._edit(block, c, site, places, width)

    def _edit(self, block: _Block, c: int, site: Site, places: Sequence[tuple[int, int]], width: int) -> Edit:
        if self.plan.rule == "cut":
            return cut_edit(block.plan.cells[c], site, places, width)
        chosen = block.plan.cells[c].positions
        positions = None if chosen is None else tuple(chosen[b] for _, b in places)
        value = None if self.plan.rule == "zero" else _value(block, c, site, [b for _, b in places], positions, width)
        rule = "set" if self.plan.rule == "patch" else self.plan.rule
        rows = tuple(row for row, _ in places)
        return Edit(site=site, rule=rule, rows=rows, positions=positions, value=value, factor=self.plan.factor)

    def _logits(
        self, tokens: Tokens, rows: Sequence[int], edits: Sequence[Edit], read: Sequence[Site] = ()
    ) -> tuple[Tensor, Mapping[Site, Tensor], tuple[int, ...]]:
        """Metrics [M, N] of one pass, its reads, and how often each edit fired."""
        run = self.model.run(tokens, read=read, edits=edits, logits_at=[self.plan.read_at[b] for b in rows])
        assert run.logits is not None
        logits = run.logits if self.columns is None else run.logits[:, self.columns.to(run.logits.device)]
        found = values_of(self.plan.metrics, logits.float(), self.plan.vocabulary, rows)
        self._count(tokens)
        return torch.stack(found).cpu(), run.reads, run.fired

    def _count(self, tokens: Tokens) -> None:
        layers, columns = self.model.info.n_layers, self.model.info.d_vocab
        flops = tokens.n_rows * self.flops.run(layers, tokens.width, columns)
        peak = self.held + tokens.n_rows * self.row_bytes
        done = Work(layers * tokens.n_rows * tokens.width, float(flops), 1, tokens.n_rows, peak)
        self.work = self.work.plus(done)


def _written_bytes(info: ModelInfo, plan: SweepPlan) -> int:
    """Of one row of a pass: an edit's value and the changed activation are copies of each other."""
    if plan.rule == "cut":
        return cut_bytes(info, plan)
    return 3 * max(site_bytes(info, cell.sites, plan.base.width) for cell in plan.cells)


def _value(
    block: _Block, cell: int, site: Site, rows: Sequence[int], positions: tuple[tuple[int, ...], ...] | None, width: int
) -> Float[Tensor, "N P *feature"]:
    """What is written at a site: per row of the pass and position, without the head or neuron axis of an index."""
    whole = block.replacement[site.whole]
    part = whole if site.index is None else whole[:, :, site.index]
    of_row = block.rows_of(cell)
    at = [of_row[b] for b in rows]
    if part.shape[1] == 1:
        return part[at]
    if positions is None:
        return _as_wide(part[at], width)
    most = max(map(len, positions))
    places = [[*p, *[p[0]] * (most - len(p))] for p in positions]
    return part[[[r] * most for r in at], places]


def _as_wide(x: Float[Tensor, "N S *feature"], width: int) -> Float[Tensor, "N P *feature"]:
    """Cut or fill up to the width of a pass; what lies past a row's end is never written."""
    if x.shape[1] >= width:
        return x[:, :width]
    return torch.cat([x, x.new_zeros((x.shape[0], width - x.shape[1], *x.shape[2:]))], 1)
