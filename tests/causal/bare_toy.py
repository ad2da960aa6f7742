"""A toy model's arithmetic written out in bare torch, in float64: what techniques on gradients are held against.

Nothing of the library's forward pass, edits or reads is used: the weights are taken, the rest is einsums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from anatomist.model.backends.toy import ToyModel
from torch import Tensor

Change = Callable[[Tensor], Tensor]
Ids = tuple[tuple[int, ...], ...]


def same(x: Tensor) -> Tensor:
    return x


@dataclass
class Bare:
    """One forward pass; `change` is applied at named places ('z0', 'q1', 'attn0', 'mlp1', 'embed', ...), and what
    stood there is kept in `seen`."""

    model: ToyModel
    change: dict[str, Change] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def at(self, name: str, x: Tensor) -> Tensor:
        x = self.change.get(name, same)(x)
        self.seen[name] = x
        return x

    def logits(self, ids: Ids) -> Tensor:
        """[B, V] at the last token of rows of one length."""
        w = self.model.weights
        tokens = torch.tensor(ids)
        x = w.embedding.double()[tokens]
        if w.positions is not None:
            x = x + w.positions.double()[: tokens.shape[1]]
        x = self.at("embed", x)
        hidden = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
        for i, b in enumerate(w.blocks):
            q, k, v = (
                self.at(f"{name}{i}", torch.einsum("btd,ndh->btnh", x, m.double()))
                for name, m in (("q", b.q), ("k", b.k), ("v", b.v))
            )
            scores = torch.einsum("bqnh,bknh->bnqk", q, k) * q.shape[-1] ** -0.5
            pattern = self.at(f"pattern{i}", scores.masked_fill(hidden, float("-inf")).softmax(-1))
            z = self.at(f"z{i}", torch.einsum("bnqk,bknh->bqnh", pattern, v))
            x = x + self.at(f"attn{i}", torch.einsum("btnh,nhd->btd", z, b.o.double()))
            if b.mlp_in is not None and b.mlp_out is not None:
                x = x + self.at(f"mlp{i}", torch.relu(x @ b.mlp_in.double()) @ b.mlp_out.double())
        return x[:, -1] @ w.unembedding.double()


def difference(logits: Tensor, answers: Ids, wrongs: Ids) -> Tensor:
    """Answer minus wrong, single tokens."""
    rows = range(len(answers))
    return logits[rows, [a[0] for a in answers]] - logits[rows, [w[0] for w in wrongs]]
