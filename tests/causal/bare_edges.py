"""Circuits of edges written out in bare torch, in float64: every input of every head has a residual of its own.

Nothing of the library's engine is used: no masks, no matrix of senders and receivers, no gradients. Receivers are named
('L0H1.k', 'L1MLP', 'logits'), and what each sees is summed up sender by sender.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from anatomist.model.backends.toy import ToyModel
from torch import Tensor

Ids = tuple[tuple[int, ...], ...]


@dataclass
class BareEdges:
    """One pass. An edge's weight is 1 where the receiver sees this run's sender, 0 where it sees the other run's;
    `push` adds to what a receiver sees; `start` stands for the embeddings."""

    model: ToyModel
    other: Mapping[str, Tensor] = field(default_factory=dict)  # what each sender writes in the other run
    weight: Mapping[tuple[str, str], float] = field(default_factory=dict)
    default: float = 1.0
    push: Mapping[str, Tensor] = field(default_factory=dict)
    start: Tensor | None = None
    wrote: dict[str, Tensor] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def embedded(self, ids: Ids) -> Tensor:
        w, tokens = self.model.weights, torch.tensor(ids)
        x = w.embedding.double()[tokens]
        return x if w.positions is None else x + w.positions.double()[: tokens.shape[1]]

    def sees(self, receiver: str) -> Tensor:
        total = torch.zeros_like(self.wrote["embed"])
        for sender, mine in self.wrote.items():
            self.edges.append((sender, receiver))
            theirs = self.other.get(sender, mine)
            total = total + theirs + self.weight.get((sender, receiver), self.default) * (mine - theirs)
        return total + self.push.get(receiver, 0.0)

    def head(self, layer: int, h: int) -> Tensor:
        b = self.model.weights.blocks[layer]
        kv = h * b.k.shape[0] // b.q.shape[0]
        shared = b.k.shape[0] < b.q.shape[0]
        unit = f"L{layer}KV{kv}" if shared else f"L{layer}H{h}"
        q = self.sees(f"L{layer}H{h}.q") @ b.q[h].double()
        k, v = (self.sees(f"{unit}.{kind}") @ m[kv].double() for kind, m in (("k", b.k), ("v", b.v)))
        length = q.shape[1]
        scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
        hidden = torch.ones(length, length).triu(1).bool()
        return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v @ b.o[h].double()

    def logits(self, ids: Ids) -> Tensor:
        """[B, V] at the last token of rows of one length."""
        w = self.model.weights
        self.wrote["embed"] = self.embedded(ids) if self.start is None else self.start
        for layer, b in enumerate(w.blocks):
            found = {f"L{layer}H{h}": self.head(layer, h) for h in range(b.q.shape[0])}
            self.wrote |= found
            if b.mlp_in is not None and b.mlp_out is not None:
                x = self.sees(f"L{layer}MLP")
                self.wrote[f"L{layer}MLP"] = torch.relu(x @ b.mlp_in.double()) @ b.mlp_out.double()
        return self.sees("logits")[:, -1] @ w.unembedding.double()
