"""Directions of the residual against the vocabulary: which tokens a direction responds to, and which logits it moves.

D model width, F MLP width, V vocabulary, n directions. Reading directions act on normed token embeddings (the norm's
weight is taken into the direction); writing ones pass the linear part of the final norm, whose scale is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..measures.metrics import widened
from ..model.protocol import Model, Norm
from ..model.sweep_cost import pieces
from .circuits import kv_head, linear_part, writes

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

Side = Literal["reads", "gate", "writes"]
CHUNK_BYTES = 64 * 2**20


class Directions(NamedTuple):
    """Directions of one side, and the norm that token embeddings pass before they are read."""

    side: Side
    matrix: Tensor  # [n, D]
    norm: Norm | None  # of the embeddings; None where the direction is written


class Moments(NamedTuple):
    """Moments of the values over the vocabulary, [n] each."""

    mean: ndarray
    sd: ndarray
    skew: ndarray
    kurtosis: ndarray  # minus 3: 0 for a Gaussian


def neuron_directions(model: Model, layer: int) -> tuple[Directions, ...]:
    """What the neurons of a layer read (and gate by, where the MLP has a gate) and write: [F, D] each."""
    w = model.weights
    matrices = {"reads": w.mlp_in(layer), "gate": w.mlp_gate(layer)}
    norm = w.mlp_norm(layer)
    found = [
        Directions(side, _weighted(norm, widened(m)).T, norm)  # type: ignore[arg-type]
        for side, m in matrices.items()
        if m is not None
    ]
    out, post = w.mlp_out(layer), w.post_mlp_norm(layer)
    assert out is not None
    return (*found, Directions("writes", widened(out) if post is None else linear_part(post, widened(out)), None))


def head_directions(model: Model, layer: int, head: int, k: int) -> tuple[ndarray, Directions, Directions]:
    """Singular values of a head's OV matrix, and the k leading directions it reads and writes, unit length."""
    import numpy as np

    norm = model.weights.attention_norm(layer)
    values = widened(model.weights.v(layer)[kv_head(model.info, head)])
    wide = [t.double().cpu().numpy() for t in (_weighted(norm, values), writes(model, layer, head).T)]
    (left, a), (right, b) = (np.linalg.qr(t) for t in wide)
    u, s, v = np.linalg.svd(a @ b.T)
    read, write = (left @ u)[:, :k].T, (right @ v.T)[:, :k].T
    return s, Directions("reads", values.new_tensor(read), norm), Directions("writes", values.new_tensor(write), None)


def _weighted(norm: Norm, matrix: Float[Tensor, "D n"]) -> Float[Tensor, "D n"]:
    return matrix if norm.weight is None else matrix * widened(norm.weight)[:, None]


def random_directions(model: Model, like: Directions, n: int, seed: int) -> Directions:
    """Gaussian directions in place of the given ones, weighted by the same norm."""
    import numpy as np

    width = like.matrix.shape[1]
    drawn = like.matrix.new_tensor(np.random.default_rng(seed).standard_normal((width, n), dtype=np.float32))
    weighted = drawn if like.norm is None else _weighted(like.norm, drawn)
    return Directions(like.side, weighted.T, like.norm)


def values_by_token(model: Model, d: Directions) -> Iterator[Float[Tensor, "t n"]]:
    """Values of every direction on the tokens of the vocabulary, some thousands of tokens at a time, in order."""
    size = max(1, CHUNK_BYTES // (4 * max(d.matrix.shape)))
    if d.norm is None:
        unembed, through = model.weights.unembed(), linear_part(model.weights.final_norm(), d.matrix)
        for part in pieces(unembed.shape[1], size):
            yield (through @ widened(unembed[:, part.start : part.stop])).T
        return
    table, norm = model.weights.embed(), Norm(d.norm.kind, None, None, d.norm.eps)
    for part in pieces(table.shape[0], size):
        x = widened(table[part.start : part.stop])
        yield norm.frozen(x, norm.scale(x)) @ d.matrix.T


def moments(model: Model, d: Directions) -> Moments:
    """Mean, standard deviation, skew and excess kurtosis over the vocabulary; 0 where a direction moves nothing."""
    import numpy as np

    total, tokens = np.zeros(d.matrix.shape[0]), 0
    for x in values_by_token(model, d):
        total += x.sum(0).double().cpu().numpy()
        tokens += x.shape[0]
    mean = total / tokens
    centre = d.matrix.new_tensor(mean)
    powers = np.zeros((3, d.matrix.shape[0]))
    for x in values_by_token(model, d):
        gone = x - centre
        square = gone * gone
        for i, y in enumerate((square, square * gone, square * square)):
            powers[i] += y.sum(0).double().cpu().numpy()
    second, third, fourth = powers / tokens
    scale = np.where(second > 0, second, 1.0)
    flat = second <= 0
    return Moments(
        mean, np.sqrt(second), third / scale**1.5, np.where(flat, 0.0, fourth / scale**2 - 3),
    )  # fmt: skip


def values_of(model: Model, d: Directions) -> Float[Tensor, "V n"]:
    """All values of a few directions."""
    out = d.matrix.new_empty((model.info.d_vocab, d.matrix.shape[0]))
    start = 0
    for x in values_by_token(model, d):
        out[start : start + x.shape[0]] = x
        start += x.shape[0]
    return out
