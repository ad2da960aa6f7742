"""Toy models whose circuit is known because it was written down.

`induction`: two attention-only layers of four heads, no norm. The residual is made of one-hot blocks

    token | position | buffer (the previous token) | output | junk

L0H1 attends to the previous position and writes that token into the buffer. L1H2 looks for the position whose buffer
holds the current token and writes the token standing there to the output. The six other heads read everything with
random weights and write only to junk, which nobody reads. A prompt 'A B C A' is thus continued with 'B'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .toy import ToyBlock, ToyModel, ToyWeights

PREVIOUS_TOKEN, INDUCTION = (0, 1), (1, 2)  # (layer, head) of the two true heads
N_HEADS = 4


class Blocks(NamedTuple):
    """Where each one-hot block of the residual lies."""

    token: slice
    position: slice
    buffer: slice
    output: slice
    junk: slice

    @classmethod
    def of(cls, *widths: int) -> Blocks:
        ends = torch.tensor(widths).cumsum(0).tolist()
        return cls(*(slice(end - width, end) for end, width in zip(ends, widths, strict=True)))


def induction(
    *, sharpness: float = 40.0, vocabulary: int = 20, n_ctx: int = 64, unembedding: float = 10.0, junk: int = 8,
    seed: int = 0, name: str = "toy-induction",
) -> ToyModel:  # fmt: skip
    """The hand-set induction circuit.

    Args:
        sharpness: attention score of a match against 0 elsewhere; 40 is hard attention, 3 is soft.
        unembedding: logit of a token that is written to the output with weight one.
        seed: of the six heads that do nothing.
    """
    where = Blocks.of(vocabulary, n_ctx, vocabulary, vocabulary, junk)
    width, d_head = where.junk.stop, max(vocabulary + 1, n_ctx)
    generator = torch.Generator().manual_seed(seed)
    layers = [_decoys(generator, width, d_head, where.junk) for _ in range(2)]
    _set_previous_token(layers[0], where, sharpness)
    _set_induction(layers[1], where, sharpness)
    embedding, positions = torch.zeros(vocabulary, width), torch.zeros(n_ctx, width)
    embedding[:, where.token], positions[:, where.position] = torch.eye(vocabulary), torch.eye(n_ctx)
    unembed = torch.zeros(width, vocabulary)
    unembed[where.output] = unembedding * torch.eye(vocabulary)
    weights = ToyWeights(embedding=embedding, positions=positions, blocks=tuple(layers), unembedding=unembed)
    return ToyModel(weights, name=name, source=f"hand-set induction circuit, sharpness {sharpness:g}")


def _decoys(generator: torch.Generator, width: int, d_head: int, junk: slice) -> ToyBlock:
    """Four heads that read everything but junk at random and write only junk."""

    def reads() -> Float[Tensor, "H D h"]:
        matrix = torch.randn(N_HEADS, width, d_head, generator=generator)
        matrix[:, junk] = 0
        return matrix

    writes = torch.zeros(N_HEADS, d_head, width)
    writes[:, :, junk] = torch.randn(N_HEADS, d_head, junk.stop - junk.start, generator=generator) / d_head**0.5
    return ToyBlock(q=reads(), k=reads(), v=reads(), o=writes)


def _clear(block: ToyBlock, head: int) -> float:
    """Empty a head; the factor by which its queries undo the division of scores by the root of the head width."""
    for matrix in (block.q, block.k, block.v, block.o):
        matrix[head] = 0
    return block.q.shape[2] ** 0.5


def _set_previous_token(block: ToyBlock, where: Blocks, sharpness: float) -> None:
    """The query of position i is the key of position i - 1; the token read is written to the buffer."""
    head = PREVIOUS_TOKEN[1]
    scale = _clear(block, head) * sharpness
    n_ctx, vocabulary = where.position.stop - where.position.start, where.token.stop
    previous = torch.eye(n_ctx).roll(-1, dims=1)  # row i has its one in column i - 1
    previous[0] = 0
    block.q[head, where.position, :n_ctx] = scale * previous
    block.k[head, where.position, :n_ctx] = torch.eye(n_ctx)
    block.v[head, where.token, :vocabulary] = torch.eye(vocabulary)
    block.o[head, :vocabulary, where.buffer] = torch.eye(vocabulary)


def _set_induction(block: ToyBlock, where: Blocks, sharpness: float) -> None:
    """The query is the current token, the key the buffer; the token standing at the match is written to the output.

    Position 0 has no previous token, its buffer holds its own one: a further key dimension takes that match back.
    """
    head = INDUCTION[1]
    scale = _clear(block, head) * sharpness
    vocabulary = where.token.stop
    block.q[head, where.token, :vocabulary] = scale * torch.eye(vocabulary)
    block.q[head, where.token, vocabulary] = scale
    block.k[head, where.buffer, :vocabulary] = torch.eye(vocabulary)
    block.k[head, where.position.start, vocabulary] = -1.0
    block.v[head, where.token, :vocabulary] = torch.eye(vocabulary)
    block.o[head, :vocabulary, where.output] = torch.eye(vocabulary)


def tiny(name: str = "toy-tiny") -> ToyModel:
    """One block, one head of width two, two neurons, three tokens, whole numbers: for values worked out on paper.

    Queries are zero, so that every position attends equally to all before it and itself: z is the running mean of the
    embeddings. The output matrix doubles the first dimension and drops the second; the neurons are relu(x0) and
    relu(-x1), and each writes to the other's dimension; the logits are the residual's two dimensions and their sum.
    """
    block = ToyBlock(
        q=torch.zeros(1, 2, 2), k=torch.eye(2)[None], v=torch.eye(2)[None],
        o=torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]),
        mlp_in=torch.tensor([[1.0, 0.0], [0.0, -1.0]]), mlp_out=torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
    )  # fmt: skip
    weights = ToyWeights(
        embedding=torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]]), positions=None, blocks=(block,),
        unembedding=torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
    )  # fmt: skip
    return ToyModel(weights, name=name, n_ctx=16)


def random_toy(
    *, vocabulary: int = 11, n_ctx: int = 16, layers: int = 2, heads: int = 2, kv_heads: int = 2, d_head: int = 4,
    d_mlp: int = 8, seed: int = 0, name: str = "toy-random",
) -> ToyModel:  # fmt: skip
    """A random toy of the given sizes without norms; `d_mlp` 0 leaves the MLPs out."""
    generator, width = torch.Generator().manual_seed(seed), heads * d_head

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-2] ** 0.5

    blocks = tuple(
        ToyBlock(
            q=draw(heads, width, d_head), k=draw(kv_heads, width, d_head), v=draw(kv_heads, width, d_head),
            o=draw(heads, d_head, width), mlp_in=draw(width, d_mlp) if d_mlp else None,
            mlp_out=draw(d_mlp, width) if d_mlp else None,
        )
        for _ in range(layers)
    )  # fmt: skip
    weights = ToyWeights(
        embedding=draw(vocabulary, width), positions=draw(n_ctx, width), blocks=blocks,
        unembedding=draw(width, vocabulary),
    )  # fmt: skip
    return ToyModel(weights, name=name, source=f"random weights, seed {seed}")


TOYS: dict[str, Callable[[], ToyModel]] = {
    "toy-induction": induction,
    "toy-induction-soft": lambda: induction(sharpness=3.0, name="toy-induction-soft"),
    "toy-tiny": tiny,
}
