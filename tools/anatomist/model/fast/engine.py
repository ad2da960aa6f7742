"""The fast engine: a `SweepPlan` in, `Measured` out, at about the cost of the arithmetic that the cells need."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ..backends.blocks import Anatomy
from ..sweep_plan import Measured, SweepPlan, SweepProgress, Work, values_of
from .arithmetic import unembed
from .chunks import Budget, budget_of, chunks_of
from .items import differences, items_of, needed
from .schedule import Chunk, Schedule
from .walk import Walk, pieces


class FastEngine:
    """Sweeps from the leaf modules of a model: cells as rows of one growing batch, unpatched parts computed once."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def refuses(self, plan: SweepPlan) -> str | None:
        """Why this plan needs the generic path; None when it does not."""
        for cell in plan.cells:
            if len(set(cell.sites)) < len(cell.sites):
                return "generic path: a cell names the same place twice"
        return None

    def measure(self, plan: SweepPlan, progress: SweepProgress, budget_bytes: int) -> Measured:
        """See `Engine.measure`."""
        return _Sweep(self.anatomy, plan, progress, budget_bytes).run()


class _Sweep:
    """One sweep under way."""

    def __init__(self, anatomy: Anatomy, plan: SweepPlan, progress: SweepProgress, budget_bytes: int) -> None:
        self.anatomy, self.plan, self.progress = anatomy, plan, progress
        self.n_layers = anatomy.sizes.n_layers
        self.budget: Budget = budget_of(anatomy, plan, budget_bytes)
        self.done, self.total = 0, sum(_layer_tokens(chunk, self.n_layers) for chunk in self._chunks())
        self.walk = Walk(anatomy, plan, self.budget.attention, self._tick)
        self.unembedding = _columns(anatomy, plan.vocabulary)
        shape = (len(plan.metrics), plan.base.n_rows)
        self.base = torch.full(shape, float("nan"))
        self.source = None if plan.source is None else torch.full(shape, float("nan"))
        self.begun: set[int] = set()
        self.values = torch.full((len(plan.metrics), len(plan.cells), plan.base.n_rows), float("nan"))

    def _chunks(self) -> Iterator[Chunk]:
        return chunks_of(self.plan, self.n_layers, self.budget)

    def run(self) -> Measured:
        work = Work(0, 0.0, 0, 0, 0)
        for chunk in self._chunks():
            self._chunk(chunk)
            work = work.plus(Work(0, 0.0, 1, len(chunk.items), self.budget.peak(chunk.tokens)))
        cost = self.walk.cost
        work = work.plus(Work(cost.layer_tokens, cost.flops, 0, 0, 0))
        fired = tuple(int(w + n) for w, n in zip(self.walk.fired, self._needless(), strict=True))
        return Measured(self.values, self.base, self.source, fired, work, self._skipped())

    def _chunk(self, chunk: Chunk) -> None:
        schedule = Schedule(chunk, self.n_layers)
        final = self.walk.through(schedule)
        sourced = [chunk.rows[i] for i in schedule.sourced]
        rows = [*chunk.rows, *sourced, *(item.row for item in chunk.items)]
        parts = pieces(len(rows), self.budget.logit_rows)
        values = torch.cat([self._metrics(final[p.start : p.stop], rows[p.start : p.stop]) for p in parts], 1)
        self.base[:, list(chunk.rows)] = values[:, : schedule.n_base]
        if self.source is not None:
            self.source[:, list(chunk.rows)] = values[:, : schedule.n_base]
            self.source[:, sourced] = values[:, schedule.n_base : schedule.first_item]
        self._place(chunk, values[:, schedule.first_item :])

    def _metrics(self, final: Float[Tensor, "N D"], rows: list[int]) -> Float[Tensor, "M N"]:
        """Every metric of N results, in float32."""
        logits = unembed(*self.unembedding, self.anatomy.logit_cap, self.anatomy.final_norm(final))
        self.walk.cost.flops += 2.0 * logits.numel() * final.shape[1]
        return torch.stack(values_of(self.plan.metrics, logits.float(), self.plan.vocabulary, rows)).float().cpu()

    def _place(self, chunk: Chunk, found: Float[Tensor, "M N"]) -> None:
        """Base values in a row's cells to begin with, what was measured where something is changed."""
        for row in chunk.rows:
            if row not in self.begun:
                self.values[:, :, row] = self.base[:, row, None]
                self.begun.add(row)
        if chunk.items:
            self.values[:, [item.cell for item in chunk.items], [item.row for item in chunk.items]] = found

    def _needless(self) -> list[int]:
        """Per cell the places that change nothing measured, counted from the plan: they are not written, and count."""
        left = [cell.writes(self.plan.base.lengths) for cell in self.plan.cells]
        differs = differences(self.plan)
        for row in range(self.plan.base.n_rows):
            for item in items_of(self.plan, row, self.n_layers, differs):
                left[item.cell] -= needed(item, self.n_layers)
        return left

    def _skipped(self) -> bool:
        """Whether anything was left out because base and source share a beginning."""
        starts = differences(self.plan) if self.plan.shares_prefix else None
        return starts is not None and any(starts)

    def _tick(self, tokens: int) -> None:
        self.done += tokens
        self.progress(min(self.done, self.total), self.total, "sweep")


def _columns(anatomy: Anatomy, ids: tuple[int, ...] | None) -> tuple[Tensor, Tensor | None]:
    """Columns of the unembedding and of its bias."""
    weight, bias = anatomy.lm_head.weight.detach(), anatomy.lm_head.bias
    if ids is None:
        return weight, bias
    chosen = torch.tensor(ids, device=weight.device)
    return weight.T.index_select(0, chosen).T, None if bias is None else bias[chosen]


def _layer_tokens(chunk: Chunk, n_layers: int) -> int:
    """Tokens times layers, about: what the progress counts."""
    runs = chunk.tokens - sum(item.length for item in chunk.items)
    return runs * n_layers + sum(item.length * (n_layers - item.joins) for item in chunk.items)
