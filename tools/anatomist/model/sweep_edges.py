"""Circuits of edges: forward passes in which every receiver sees the parts that its own edges let through.

B rows, T positions, D model width; S senders (embedding, heads, MLPs) in the order they write, R receivers (each head's
queries, keys, values; MLPs; the logits) in the order they read, E edges (sender before receiver). In a circuit receiver
r sees, with c the activations of the other run and a those of this very pass,

    residual of the other run at r  +  sum over kept edges (s, r) of  a(s) - c(s)

so that all edges give the base run and none the other one. A kept edge carries what its sender makes of its own kept
inputs (Syed et al., arXiv 2310.10348, section 2; Hanna et al., arXiv 2403.17806, section 2.2). Positions are not told
apart. Those before the first that differs between the runs are the same in every circuit and are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..measures.metrics import Metric
from .protocol import Model
from .sites import head_name
from .sweep_cost import fit, item_bytes, pieces
from .sweep_edge_parts import Parts, parts_of
from .sweep_plan import values_of
from .tokens import Tokens, first_difference

Kind = Literal["q", "k", "v", "mlp", "logits"]
MOST_ROWS = 32


class Receiver(NamedTuple):
    """One input: of a head, an MLP or the logits."""

    name: str  # 'L3H7.q', 'L3KV1.k', 'L3MLP', 'logits'
    kind: Kind
    layer: int  # the number of layers for the logits
    unit: int
    senders: int  # the first so many senders reach it


class Edge(NamedTuple):
    """One edge, by the numbers of its ends."""

    sender: int
    receiver: int


@dataclass(frozen=True)
class EdgeGraph:
    """Which edges a model has."""

    senders: tuple[str, ...]
    receivers: tuple[Receiver, ...]
    edges: tuple[Edge, ...]
    node_of: tuple[tuple[int, ...], ...]  # per receiver, the senders that it feeds: a head, several that share, an MLP

    def name(self, edge: int) -> str:
        s, r = self.edges[edge]
        return f"{self.senders[s]} -> {self.receivers[r].name}"


def graph_of(parts: Parts) -> EdgeGraph:
    """Every sender, receiver and edge of a model."""
    heads, kv, per_layer = parts.n_heads, parts.n_kv_heads, parts.n_heads + parts.mlps
    senders, receivers, node_of = ["embed"], list[Receiver](), list[tuple[int, ...]]()
    for layer in range(parts.n_layers):
        first = 1 + layer * per_layer
        senders += [head_name(layer, h) for h in range(heads)] + [f"L{layer}MLP"] * parts.mlps
        kinds: tuple[tuple[Kind, int], ...] = (("q", heads), ("k", kv), ("v", kv))
        for kind, n in kinds:
            group = heads // n
            letter = "H" if n == heads else "KV"
            for unit in range(n):
                receivers.append(Receiver(f"L{layer}{letter}{unit}.{kind}", kind, layer, unit, first))
                node_of.append(tuple(first + unit * group + g for g in range(group)))
        if parts.mlps:
            reached = first + (0 if parts.parallel else heads)
            receivers.append(Receiver(f"L{layer}MLP", "mlp", layer, 0, reached))
            node_of.append((first + heads,))
    receivers.append(Receiver("logits", "logits", parts.n_layers, 0, len(senders)))
    node_of.append(())
    edges = tuple(Edge(s, r) for r, receiver in enumerate(receivers) for s in range(receiver.senders))
    return EdgeGraph(tuple(senders), tuple(receivers), edges, tuple(node_of))


class Past(NamedTuple):
    """The positions before the first that differs between the runs."""

    width: int
    entering: Sequence[Float[Tensor, "B P D"]]  # per layer, the residual there


NO_PAST = Past(0, ())


class Trace(NamedTuple):
    """One plain pass, from the first position that differs."""

    written: Float[Tensor, "S B T D"]  # what each sender wrote
    values: Float[Tensor, " B"]


@dataclass
class _Pass:
    """A forward pass under way: `see` gives some receivers what they see, None where that is the other run's."""

    parts: Parts
    see: Callable[[range], Float[Tensor, "n B T D"] | None]
    wrote: Callable[[Tensor], None]
    same: Callable[[int], None]  # so many senders write what they write in the other run
    biased: Callable[[Tensor], object]
    past: Past
    number: int = field(default=0)  # of the next receiver

    def run(self, embedded: Tensor) -> Float[Tensor, "B T D"] | None:
        """Through all layers; what the logits see."""
        p = self.parts
        self.wrote(embedded[None])
        for layer in range(p.n_layers):
            beside = int(p.mlps and p.parallel)
            seen = self._next(p.n_heads + 2 * p.n_kv_heads + beside)
            if seen is None:
                self.same(p.n_heads)
            else:
                q, k, v, _ = seen.split([p.n_heads, p.n_kv_heads, p.n_kv_heads, beside])
                self.wrote(p.heads(layer, q, self._with_past(layer, k), self._with_past(layer, v)))
            bias = p.attention_bias(layer)
            if bias is not None:
                self.biased(bias)
            if p.mlps:
                own = self._next(1) if not beside else None if seen is None else seen[-1:]
                if own is None:
                    self.same(1)
                else:
                    self.wrote(p.mlp(layer, own[0])[None])
        final = self._next(1)
        return None if final is None else final[0]

    def _with_past(self, layer: int, x: Float[Tensor, "K B T D"]) -> Float[Tensor, "K B S D"]:
        if not self.past.width:
            return x
        before = self.past.entering[layer]
        return torch.cat([before.expand(len(x), *before.shape), x], 2)

    def _next(self, n: int) -> Tensor | None:
        found = self.see(range(self.number, self.number + n))
        self.number += n
        return found


class EdgeSweep:
    """Scores and circuits of edges on one model.

    Raises (at construction):
        Unsupported: from `parts_of`.
    """

    def __init__(self, model: Model) -> None:
        self.info, self.parts = model.info, parts_of(model)
        self.graph = graph_of(self.parts)
        self.senders, self.receivers = (torch.tensor(side) for side in zip(*self.graph.edges, strict=True))

    def circuits(
        self, base: Tokens, other: Tokens, metric: Metric, circuits: Sequence[Sequence[int]], budget_bytes: int,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float[Tensor, "C B"]:  # fmt: skip
        """The metric of every circuit (kept edges) on every row; everything else carries the other run.

        Raises:
            WouldNotFit: one prompt is over the budget.
        """
        out = torch.empty(len(circuits), base.n_rows)
        parts = list(self._pieces(base, 3, budget_bytes))
        with torch.no_grad():
            for n, rows in enumerate(parts):
                here, some = base.rows(rows), metric.rows(rows)
                past = self._past(here, other.rows(rows))
                there = self._trace(other.rows(rows), some, past)
                embedded = self.parts.embed(here)[:, past.width :]
                for c, kept in enumerate(circuits):
                    tick(n * len(circuits) + c, len(parts) * len(circuits))
                    final = self._circuit(embedded, there.written, self._mask(kept), past)
                    values = there.values if final is None else self._metric(final, here, some, past)
                    out[c, list(rows)] = values.float().cpu()
        return out

    def scores(
        self, base: Tokens, other: Tokens, metric: Metric, path: Sequence[float], budget_bytes: int,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float[Tensor, "B E"]:  # fmt: skip
        """First-order contribution of every edge: what the base run's metric would lose without it.

        (a(s) of base - a(s) of other) . dM/d(what r sees), the gradient averaged over embeddings at the given places
        between base (0) and other (1): EAP (path 0), EAP-IG.

        Raises:
            WouldNotFit: one prompt is over the budget.
        """
        out = torch.empty(base.n_rows, len(self.graph.edges))
        parts = list(self._pieces(base, 8, budget_bytes))
        for n, rows in enumerate(parts):
            here, there, some = base.rows(rows), other.rows(rows), metric.rows(rows)
            with torch.no_grad():
                past = self._past(here, there)
                change = self._trace(here, some, past).written - self._trace(there, some, past).written
            gradient = torch.zeros(0)
            for i, where in enumerate(path):
                tick(n * len(path) + i, len(parts) * len(path))
                found = self._gradient(here, there, some, where, past) / len(path)
                gradient = gradient + found if i else found
            places = range(past.width, here.width)
            real = torch.tensor([[t < m for t in places] for m in here.lengths], device=change.device)
            table = torch.einsum("sbtd,rbtd->brs", change * real[None, :, :, None], gradient)
            out[list(rows)] = table[:, self.receivers, self.senders].float().cpu()
        return out

    def _past(self, base: Tokens, other: Tokens) -> Past:
        """What both runs begin with, where they begin alike."""
        starts = [first_difference(a, b) for a, b in zip(base.ids, other.ids, strict=True)]
        width = min(*starts, *base.last)
        if not width:
            return NO_PAST
        beginning = Tokens(tuple(i[:width] for i in base.ids), tuple(x[:width] for x in base.strings), base.bos)
        entering: list[Tensor] = []

        def look(receivers: range, residual: Tensor) -> Tensor:
            if self.graph.receivers[receivers.start].kind == "q":
                entering.append(residual)
            return residual.expand(len(receivers), *residual.shape)

        self._plain(self.parts.embed(beginning), NO_PAST, look)
        return Past(width, entering)

    def _mask(self, kept: Sequence[int]) -> Bool[Tensor, "R S"]:
        """A circuit as a matrix."""
        out, index = torch.zeros(len(self.graph.receivers), len(self.graph.senders), dtype=torch.bool), list(kept)
        out[self.receivers[index], self.senders[index]] = True
        return out

    def _gradient(
        self, base: Tokens, other: Tokens, metric: Metric, where: float, past: Past
    ) -> Float[Tensor, "R B T D"]:
        """dM/d(what each receiver sees), with the embeddings part of the way to the other run."""
        start = torch.lerp(self.parts.embed(base), self.parts.embed(other), where)[:, past.width :].requires_grad_()
        handles: list[Tensor] = []
        with torch.enable_grad():
            values = self._trace(base, metric, past, start, handles).values
            found = torch.autograd.grad(values.sum(), handles)
        return torch.cat(found)

    def _trace(
        self, tokens: Tokens, metric: Metric, past: Past, start: Tensor | None = None,
        handles: list[Tensor] | None = None,
    ) -> Trace:  # fmt: skip
        """A plain pass, one residual for all; with `handles` every group of receivers sees a copy of its own."""
        def look(receivers: range, residual: Tensor) -> Tensor:
            seen = residual.expand(len(receivers), *residual.shape)
            if handles is not None:
                seen = seen.clone()
                handles.append(seen)
            return seen

        embedded = self.parts.embed(tokens)[:, past.width :] if start is None else start
        final, written = self._plain(embedded, past, look)
        return Trace(torch.cat(written), self._metric(final, tokens, metric, past))

    def _plain(
        self, embedded: Tensor, past: Past, look: Callable[[range, Tensor], Tensor]
    ) -> tuple[Float[Tensor, "B T D"], list[Tensor]]:
        """A pass with one residual, of which receivers see what `look` makes: what the logits see, and all that was
        written."""
        written, residual = list[Tensor](), list[Tensor]()

        def wrote(x: Tensor) -> None:
            written.append(x)
            residual[:] = [x.sum(0) + (residual[0] if residual else 0)]

        def biased(x: Tensor) -> None:
            residual[:] = [residual[0] + x]

        def see(receivers: range) -> Tensor:
            return look(receivers, residual[0])

        final = _Pass(self.parts, see, wrote, lambda n: None, biased, past).run(embedded)
        assert final is not None
        return final, written

    def _circuit(
        self, embedded: Tensor, other: Float[Tensor, "S B T D"], mask: Bool[Tensor, "R S"], past: Past
    ) -> Float[Tensor, "B T D"] | None:
        """What the logits see in one circuit on some rows; None where it is what they see in the other run."""
        change, residual, count = torch.zeros_like(other), torch.zeros_like(embedded), [0]
        changed: list[int] = []  # senders that do not write what they write in the other run
        kept = mask.to(device=embedded.device, dtype=embedded.dtype)

        def see(receivers: range) -> Tensor | None:
            hit = mask[receivers.start : receivers.stop, changed].any(0).tolist()
            used = [sender for sender, wanted in zip(changed, hit, strict=True) if wanted]
            if not used:
                return None
            table = kept[receivers.start : receivers.stop]
            few = len(used) < count[0] // 2
            table, written = (table[:, used], change[used]) if few else (table[:, : count[0]], change[: count[0]])
            return torch.mm(table, written.flatten(1)).unflatten(1, embedded.shape).add_(residual)

        def wrote(x: Tensor) -> None:
            n, end = count[0], count[0] + len(x)
            torch.sub(x, other[n:end], out=change[n:end])
            changed.extend(range(n, end))
            same(len(x))

        def same(n: int) -> None:
            residual.add_(other[count[0] : count[0] + n].sum(0))
            count[0] += n

        return _Pass(self.parts, see, wrote, same, residual.add_, past).run(embedded)

    def _metric(
        self, final: Float[Tensor, "B T D"], tokens: Tokens, metric: Metric, past: Past
    ) -> Float[Tensor, " B"]:
        rows = list(range(tokens.n_rows))
        logits = self.parts.logits(final[rows, [last - past.width for last in tokens.last]], metric.ids)
        return values_of((metric,), logits if logits.element_size() > 2 else logits.float(), metric.ids, rows)[0]

    def _pieces(self, tokens: Tokens, times: int, budget_bytes: int) -> Iterator[range]:
        """Rows at a time: `times` copies of what all senders write (or receivers see) fit in the budget."""
        ends = len(self.graph.senders) + len(self.graph.receivers)
        each = times * ends * tokens.width * self.info.d_model * item_bytes(self.info)
        return pieces(tokens.n_rows, min(MOST_ROWS, fit(budget_bytes, each, "prompt with all its edges")))
