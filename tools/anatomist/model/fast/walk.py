"""One chunk of a sweep through all layers: every token once, every matrix once a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..backends.blocks import Anatomy, Block
from ..sites import Site, SiteKind
from ..sweep_plan import CUTTABLE, SweepPlan
from .arithmetic import Entries, Masks, append, attend, hidden, project, rotate
from .cuts import Cut
from .items import Stage
from .schedule import Schedule, Step, Write
from .slots import Slots


@dataclass
class Cost:
    """What a walk computed."""

    layer_tokens: int = 0
    flops: float = 0.0


class Walk:
    """The state of a walk: residuals of all tokens, and what is written on them."""

    def __init__(
        self, anatomy: Anatomy, plan: SweepPlan, attention_bytes: int, tick: Callable[[int], None]
    ) -> None:
        """`tick` is called with the number of tokens that went through each layer, and may raise Cancelled."""
        self.anatomy, self.plan, self.tick = anatomy, plan, tick
        self.attention_bytes = attention_bytes
        self.device = anatomy.reference.device
        self.masks = Masks(anatomy.reference)
        self.rotations = anatomy.rotations(max(plan.read_at) + 1)
        self.cost = Cost()
        self.fired = np.zeros(len(plan.cells), np.int64)  # per cell: places written
        own = any(cell.value_rows is not None for cell in plan.cells)
        self.value_rows = np.array([plan.rows_of_values(c) for c in range(len(plan.cells) if own else 1)])

    @torch.no_grad()
    def through(self, schedule: Schedule) -> Float[Tensor, "segments D"]:
        """The final residual of every segment of the chunk at its read position."""
        x = self._embedded(schedule)
        for layer, step in enumerate(schedule):
            x = x.index_select(0, self._slots(step.gather))
            x = self._block(layer, self.anatomy.blocks[layer], step, x)
            self.cost.layer_tokens += len(step.gather)
            self.tick(len(step.gather))
        return x.index_select(0, self._slots(schedule.final))

    def _embedded(self, schedule: Schedule) -> Float[Tensor, "N D"]:
        rows, positions, sourced = schedule.embedded()
        base, source = self.plan.base.ids, (self.plan.source or self.plan.base).ids
        chunk = schedule.chunk.rows
        ids = [(source if s else base)[chunk[r]][p] for r, p, s in zip(rows, positions, sourced, strict=True)]
        return self.anatomy.embed(torch.tensor(ids, device=self.device), self._slots(positions))

    def _block(self, layer: int, block: Block, step: Step, x: Tensor) -> Float[Tensor, "M D"]:
        """One layer; tokens that enter within it are appended at their stage."""
        self._write(step, "resid_pre", layer, x)
        x, q, k, v = self._queries_keys_values(layer, block, step, x)
        z = self._attention(block, step, q, k, v)
        del q, k, v
        x, z = self._enter(step, Stage.HEAD, x, z)
        self._write(step, "head", layer, z)
        attn = self._linear(block.o, z.flatten(1))
        attn = attn if block.post_attention_norm is None else block.post_attention_norm(attn)
        x, attn = self._enter(step, Stage.ATTN_OUT, x, attn)
        self._write(step, "attn_out", layer, attn)
        if not self.anatomy.parallel:
            x, attn = attn.add_(x), None
            (x,) = self._enter(step, Stage.MID, x)
            self._write(step, "resid_mid", layer, x)
        return self._mlp(layer, block, step, x, attn)

    def _mlp(self, layer: int, block: Block, step: Step, x: Tensor, attn: Tensor | None) -> Float[Tensor, "M D"]:
        """The second half of a layer; `attn` is what attention adds where it runs beside the MLP."""
        live = [x] if attn is None else [x, attn]
        f = hidden(block, block.mlp_norm(x))
        matrices = 1 if block.mlp_gate is None else 2
        self.cost.flops += 2.0 * matrices * f.numel() * x.shape[1]
        *live, f = self._enter(step, Stage.NEURON, *live, f)
        self._write(step, "neuron", layer, f)
        out = self._linear(block.mlp_out, f)
        del f
        out = out if block.post_mlp_norm is None else block.post_mlp_norm(out)
        *live, out = self._enter(step, Stage.MLP_OUT, *live, out)
        self._write(step, "mlp_out", layer, out)
        for part in live:
            out = out.add_(part)
        (out,) = self._enter(step, Stage.POST, out)
        self._write(step, "resid_post", layer, out)
        return out

    def _queries_keys_values(
        self, layer: int, block: Block, step: Step, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Residual and queries of the tokens that go on, keys and values of all; edited, as they enter attention."""
        reads = None if step.reads is None else self._slots(step.reads)
        q, k, v = project(block, block.attention_norm(x), reads)
        self.cost.flops += 2.0 * x.shape[1] * (q.numel() + k.numel() + v.numel())
        x = x if reads is None else x.index_select(0, reads)
        if self.rotations:
            rotation = self.rotations[block.rotary_kind]
            q = rotate(q, rotation, self._slots(step.query_positions))
            k = rotate(k, rotation, self._slots(step.key_positions))
        if step.new_keys is not None:
            k, v = append([k, v], self._slots(step.new_keys))
        x, q = self._enter(step, Stage.QKV, x, q)
        self._write(step, "q", layer, q)
        self._write(step, "k", layer, k)
        self._write(step, "v", layer, v)
        return x, q, k, v

    def _attention(self, block: Block, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """z of every query, [M, H, h], group by group, in pieces whose keys and scores fit."""
        z = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for group in step.groups:
            width = group.first + group.length
            mask = self.masks(group.first, group.length, block.window)
            keys = self._slots(group.keys)
            each = attention_bytes(self.anatomy, group.length, width)
            for part in pieces(group.n, max(1, self.attention_bytes // each)):
                n = len(part)
                at = slice(group.start + part.start * group.length, group.start + part.stop * group.length)
                chosen = keys[part.start : part.stop].flatten()
                own_k, own_v = (t.index_select(0, chosen).view(n, width, *t.shape[1:]) for t in (k, v))
                cuts = {kind: list(self._cuts(step.cuts, kind, at, group.length)) for kind in CUTTABLE}
                queries = q[at].view(n, group.length, *q.shape[1:])
                mixed = attend(block, queries, own_k, own_v, mask, cuts["scores"], cuts["pattern"])
                z[at] = mixed.flatten(0, 1)
            self.cost.flops += 4.0 * group.n * group.length * width * q.shape[1] * q.shape[2]
        return z

    def _cuts(self, cuts: Sequence[Cut], kind: SiteKind, at: slice, length: int) -> Iterator[Entries]:
        """Where edges are cut in the scores or pattern [n, H, t, S] of the runs of `length` queries in slots `at`."""
        for cut in cuts:
            if cut.kind != kind or (part := cut.within(at.start, at.stop)) is None:
                continue
            np.add.at(self.fired, part.cells[part.cells >= 0], 1)
            run, query = (self._slots(i) for i in np.divmod(part.queries - at.start, length))
            heads = slice(None) if part.heads is None else self._slots(part.heads)
            yield run, heads, query, self._slots(part.keys)

    def _linear(self, affine: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y = affine(x)
        self.cost.flops += 2.0 * y.numel() * x.shape[1]
        return y

    def _enter(self, step: Step, stage: Stage, *live: Tensor) -> list[Tensor]:
        slots = step.enter.get(stage)
        return list(live) if slots is None else append(live, self._slots(slots))

    def _write(self, step: Step, kind: SiteKind, layer: int, x: Tensor) -> None:
        """Make the layer's edits at one kind of place, in `x` [N, *feature]."""
        for write in step.writes.get(kind, ()):
            at = (self._slots(write.to),) if write.which is None else (self._slots(write.to), self._slots(write.which))
            np.add.at(self.fired, write.cells, 1)
            if self.plan.rule == "zero":
                x[at] = 0
                continue
            new = self._replacement(write, Site(kind, layer), x)
            x[at] = x[at] + self.plan.factor * new if self.plan.rule == "add" else new

    def _replacement(self, write: Write, site: Site, x: Tensor) -> Tensor:
        """What is written: of the source run's tokens, or of the given values."""
        index = () if write.which is None else (self._slots(write.which),)
        if self.plan.source is not None:
            return x[(self._slots(write.source), *index)]
        values = (self.plan.values or {})[site]
        rows = self.value_rows[write.cells if len(self.value_rows) > 1 else 0, write.rows]  # cell, base row
        places = np.zeros_like(write.positions) if values.shape[1] == 1 else write.positions
        chosen = tuple(torch.from_numpy(i).to(values.device) for i in (rows, places))
        wanted = (*chosen, *(i.to(values.device) for i in index))
        return values[wanted].to(x)

    def _slots(self, slots: Slots) -> Int[Tensor, "*shape"]:
        return torch.from_numpy(slots).to(self.device)


def attention_bytes(anatomy: Anatomy, length: int, width: int) -> int:
    """Bytes that one run of `length` queries holds in `attend`: keys and values twice, queries, scores and pattern."""
    sizes, s = anatomy.sizes, anatomy.reference.element_size()
    keys = 4 * width * sizes.n_kv_heads * sizes.d_head * s
    queries = 4 * length * sizes.n_heads * sizes.d_head * s
    return keys + queries + sizes.n_heads * length * width * (2 * s + (8 if s < 4 else 0))


def pieces(n: int, most: int) -> Iterator[range]:
    """0 .. n - 1 in consecutive pieces of at most `most`."""
    return (range(i, min(i + most, n)) for i in range(0, n, most))
