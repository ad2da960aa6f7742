"""Addition modulo p by a transformer of one block, trained on part of all pairs: it memorises, then generalises.

A row is 'a b ='; the answer is read at '='. Every training pair is in every step.

Only '=' is read, and what a block attends to depends on nothing but the token and where it stands. So queries, keys and
values are computed once for each number at each place, and looked up for the pairs: the same numbers as the whole
forward pass (a test holds them together) for a fraction of the arithmetic.

Source: Nanda et al., arXiv 2301.05217 (task, architecture, weight decay 1); Power et al., arXiv 2201.02177 (grokking).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from ..model.backends.toy_file import Form, save_toy, untrained
from ..model.trained import TOY_FILE, checkpoint_handle
from .loop import Recipe, Tensors

HEADS, MLP_FACTOR = 4, 4


@dataclass(frozen=True)
class AdditionSettings:
    """What is trained."""

    name: str
    seed: int = 0
    steps: int = 3000
    modulus: int = 59
    train_share: float = 0.5
    width: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1.0


class AdditionTask:
    """The task, for the loop."""

    def __init__(self, settings: AdditionSettings, keep: int = 31) -> None:
        self.settings = settings
        s = settings
        self.recipe = Recipe(s.steps, s.learning_rate, s.weight_decay, log_every=max(1, s.steps // 150), keep=keep)

    @property
    def form(self) -> Form:
        s = self.settings
        source = f"trained on addition modulo {s.modulus}, seed {s.seed}, {s.steps} steps"
        return Form(s.name, source, 3, (*map(str, range(s.modulus)), "="), learned=True)

    def fresh(self) -> Tensors:
        s, d_head, neurons = self.settings, self.settings.width // HEADS, MLP_FACTOR * self.settings.width
        tokens = s.modulus + 1
        shapes = {
            "embedding": torch.empty(tokens, s.width), "positions": torch.empty(3, s.width),
            "unembedding": torch.empty(s.width, tokens),
            "blocks.0.o": torch.empty(HEADS, d_head, s.width),
            "blocks.0.mlp_in": torch.empty(s.width, neurons), "blocks.0.mlp_in_bias": torch.empty(neurons),
            "blocks.0.mlp_out": torch.empty(neurons, s.width), "blocks.0.mlp_out_bias": torch.empty(s.width),
        }  # fmt: skip
        shapes |= {f"blocks.0.{m}": torch.empty(HEADS, s.width, d_head) for m in "qkv"}
        return untrained(shapes, s.seed)

    def loss(self, weights: Tensors, step: int) -> Float[Tensor, ""]:
        pairs = self._train
        return self._loss(logits_of_pairs(weights, *pairs), pairs)

    def measure(self, weights: Tensors) -> Mapping[str, float]:
        p, train = self.settings.modulus, self.trained_on
        logits = self.grid(weights).reshape(p * p, -1)
        every = torch.arange(p * p)
        losses = cross_entropy(logits.double(), (every // p + every % p) % p, reduction="none").view(p, p)
        right = (logits.argmax(-1) == (every // p + every % p) % p).view(p, p)
        return {
            "loss, trained pairs": float(losses[train].mean()),
            "loss, other pairs": float(losses[~train].mean()),
            "accuracy, other pairs": float(right[~train].double().mean()),
        }

    def keep(self, folder: Path, weights: Tensors, step: int) -> None:
        form = self.form
        save_toy(folder / TOY_FILE, weights, Form(**{**vars(form), "name": checkpoint_handle(form.name, step)}))

    def grid(self, weights: Tensors) -> Float[Tensor, "p p p"]:
        """Logits of the p numbers on every pair."""
        p = self.settings.modulus
        every = torch.arange(p * p)
        return logits_of_pairs(weights, every // p, every % p)[:, :p].reshape(p, p, p)

    @cached_property
    def trained_on(self) -> Bool[Tensor, "p p"]:
        """The pairs that are trained on."""
        s = self.settings
        order = torch.randperm(s.modulus**2, generator=torch.Generator().manual_seed(s.seed))
        chosen = torch.zeros(s.modulus**2, dtype=torch.bool)
        chosen[order[: round(s.train_share * s.modulus**2)]] = True
        return chosen.view(s.modulus, s.modulus)

    @cached_property
    def _train(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        a, b = self.trained_on.nonzero(as_tuple=True)
        return a, b

    def _loss(
        self, logits: Float[Tensor, "n V"], pairs: tuple[Int[Tensor, " n"], Int[Tensor, " n"]]
    ) -> Float[Tensor, ""]:
        # In double precision: single precision rounds losses below 1e-7 to 0 and stops learning in jumps.
        return cross_entropy(logits.double(), (pairs[0] + pairs[1]) % self.settings.modulus)


def logits_of_pairs(
    weights: Tensors, a: Int[Tensor, " n"], b: Int[Tensor, " n"]
) -> Float[Tensor, "n V"]:
    """Logits at '=' of the rows 'a b ='."""
    w = {name.removeprefix("blocks.0."): x for name, x in weights.items()}
    numbers, equals = w["embedding"][:-1], w["embedding"][-1]
    rows = [numbers + w["positions"][0], numbers + w["positions"][1], (equals + w["positions"][2])[None]]
    q = torch.einsum("td,ndh->tnh", rows[2], w["q"])[0] / w["q"].shape[-1] ** 0.5
    scores = [torch.einsum("nh,td,ndh->tn", q, x, w["k"]) for x in rows]
    values = [torch.einsum("td,ndh->tnh", x, w["v"]) for x in rows]
    pattern = torch.stack([scores[0][a], scores[1][b], scores[2].expand(len(a), -1)], -1).softmax(-1)  # [n, H, 3]
    at = [values[0][a], values[1][b], values[2].expand(len(a), -1, -1)]
    z = sum(pattern[..., i, None] * at[i] for i in range(3))
    assert isinstance(z, Tensor)
    x = rows[2] + z.flatten(1) @ w["o"].flatten(0, 1)
    neurons = relu(x @ w["mlp_in"] + w["mlp_in_bias"])
    return (x + neurons @ w["mlp_out"] + w["mlp_out_bias"]) @ w["unembedding"]
