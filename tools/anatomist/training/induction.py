"""Two attention-only layers on repeated random tokens: they learn to continue a sequence they have seen once.

A row is a run of different random tokens, again and again until the context is full. The run's length differs from row
to row: with one fixed length, "what stood 24 positions ago" would do, and nothing need be matched.
The loss is taken where the answer can be known: from the run's second copy on.

Source: Olsson et al., arXiv 2209.11895 (induction heads form in attention-only models of two layers); Elhage et al.
2021, https://transformer-circuits.pub/2021/framework (previous-token head, K-composition).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..model.backends.toy import plain_logits
from ..model.backends.toy_file import Form, save_toy, toy_weights, untrained
from ..model.backends.toy_words import Words
from ..model.trained import TOY_FILE, checkpoint_handle
from .loop import Recipe, Tensors

LAYERS, HEADS = 2, 4
BATCH, TESTED = 64, 256  # rows of a step, and of the rows that the curves are measured on
TEST_STREAM = 2**40  # seeds of test rows, which no step draws


@dataclass(frozen=True)
class InductionSettings:
    """What is trained."""

    name: str
    seed: int = 0
    steps: int = 750
    vocabulary: int = 64
    context: int = 48
    width: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.0


class InductionTask:
    """The task, for the loop."""

    def __init__(self, settings: InductionSettings, keep: int = 16) -> None:
        self.settings = settings
        s = settings
        self.recipe = Recipe(s.steps, s.learning_rate, s.weight_decay, log_every=max(1, s.steps // 75), keep=keep)

    @property
    def form(self) -> Form:
        s = self.settings
        source = f"trained on repeated random tokens, seed {s.seed}, {s.steps} steps"
        return Form(s.name, source, s.context, Words.numbered(s.vocabulary).strings, learned=True)

    def fresh(self) -> Tensors:
        s, d_head = self.settings, self.settings.width // HEADS
        shapes = {
            "embedding": torch.empty(s.vocabulary, s.width), "positions": torch.empty(s.context, s.width),
            "unembedding": torch.empty(s.width, s.vocabulary),
        }  # fmt: skip
        for layer in range(LAYERS):
            shapes |= {f"blocks.{layer}.{m}": torch.empty(HEADS, s.width, d_head) for m in "qkv"}
            shapes[f"blocks.{layer}.o"] = torch.empty(HEADS, d_head, s.width)
        return untrained(shapes, s.seed)

    def loss(self, weights: Tensors, step: int) -> Float[Tensor, ""]:
        ids, known = self.rows(BATCH, (self.settings.seed << 20) + step)
        return self._losses(weights, ids)[known[:, 1:]].mean()

    def measure(self, weights: Tensors) -> Mapping[str, float]:
        ids, known = self._test
        losses = self._losses(weights, ids)
        return {
            "loss, later copies": float(losses[known[:, 1:]].mean()),
            "loss, first copy": float(losses[~known[:, 1:]].mean()),
        }

    def keep(self, folder: Path, weights: Tensors, step: int) -> None:
        form = self.form
        named = Form(**{**vars(form), "name": checkpoint_handle(form.name, step)})
        save_toy(folder / TOY_FILE, weights, named)

    def rows(self, n: int, stream: int) -> tuple[Int[Tensor, "n T"], Bool[Tensor, "n T"]]:
        """Token ids, and where the token follows from what stands before it."""
        s, generator = self.settings, torch.Generator().manual_seed(stream)
        longest = min(s.context // 2, s.vocabulary)
        order = torch.rand(n, s.vocabulary, generator=generator).argsort(1)
        period = torch.randint(longest // 2, longest + 1, (n, 1), generator=generator)
        place = torch.arange(s.context)
        ids = order.gather(1, place % period)
        return ids, place > period  # the second copy's first token could be anything

    @cached_property
    def _test(self) -> tuple[Int[Tensor, "n T"], Bool[Tensor, "n T"]]:
        return self.rows(TESTED, TEST_STREAM + self.settings.seed)

    def _losses(self, weights: Tensors, ids: Int[Tensor, "n T"]) -> Float[Tensor, "n T-1"]:
        """In nats, of each token but the first."""
        logits = plain_logits(toy_weights(weights), ids)[:, :-1]
        return cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
