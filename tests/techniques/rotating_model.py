"""A model whose layers do nothing but rotate the residual: what a tuned lens must learn is known exactly."""

from __future__ import annotations

import random

import torch
from anatomist.model.backends.toy import ToyBlock, ToyModel, ToyWeights
from torch import Tensor

WIDTH, VOCABULARY = 8, 30


def rotations(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0] for _ in range(count)]


def rotating(turns: list[Tensor]) -> ToyModel:
    """Each block adds x (R - 1) = relu(x) (R - 1) - relu(-x) (R - 1); heads read and write nothing."""
    generator = torch.Generator().manual_seed(1)
    one, none = torch.eye(WIDTH), torch.zeros(1, WIDTH, 4)
    blocks = tuple(
        ToyBlock(
            q=none, k=none, v=none, o=torch.zeros(1, 4, WIDTH), mlp_in=torch.cat([one, -one], 1),
            mlp_out=torch.cat([turn - one, one - turn]),
        )
        for turn in turns
    )  # fmt: skip
    weights = ToyWeights(
        embedding=torch.randn(VOCABULARY, WIDTH, generator=generator), positions=None, blocks=blocks,
        unembedding=torch.randn(WIDTH, VOCABULARY, generator=generator),
    )  # fmt: skip
    return ToyModel(weights, name="rotating")


def texts(n: int = 40, length: int = 200) -> tuple[str, ...]:
    draw = random.Random(0)
    return tuple(" ".join(f"t{draw.randrange(VOCABULARY)}" for _ in range(length)) for _ in range(n))
