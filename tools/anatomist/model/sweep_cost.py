"""What a forward pass costs, for planning chunks: bytes a row, floating-point operations a token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import Unsupported, WouldNotFit
from .protocol import Model, ModelInfo
from .sites import Site

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def item_bytes(info: ModelInfo) -> int:
    """Bytes of one number in the model's dtype."""
    return ITEM_BYTES.get(info.dtype.removeprefix("torch."), 4)


def feature(info: ModelInfo, site: Site) -> int:
    """Numbers at one row and position of a whole site."""
    if site.kind == "neuron":
        return info.d_mlp
    return info.shape.count(site.kind) * info.d_head if site.kind in ("head", "q", "k", "v") else info.d_model


def site_bytes(info: ModelInfo, sites: Sequence[Site], width: int) -> int:
    """Bytes of the activations of whole sites on one row of `width` tokens."""
    return width * item_bytes(info) * sum(feature(info, site) for site in sites)


def row_bytes(info: ModelInfo, width: int, columns: int | None) -> int:
    """Bytes that one row of a pass holds at its fullest, without gradients.

    The largest moment of a block: the residual and its norm in and out (6 D), queries, keys and values before and
    after rotation, repeated over their groups, and z (6 H h), the MLP's hidden layer three times over (3 F), scores
    with a float32 softmax beside them (3 T^2 H); then the logits of one position, in the model's type and float32.
    """
    s = item_bytes(info)
    heads = info.n_heads * info.d_head
    block = width * s * (6 * info.d_model + 6 * heads + 3 * info.d_mlp) + 3 * info.n_heads * width**2 * max(s, 4)
    return block + (info.d_vocab if columns is None else columns) * (s + 8)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiply-add counted as two."""

    token: int  # through one block, attention over other tokens left out
    pair: int  # of one query with one key in one block, all heads
    column: int  # of one logit

    def run(self, layers: int, length: int, columns: int) -> int:
        """Whole blocks over one row of `length` tokens, as computed densely (masked pairs are computed too)."""
        return layers * length * (self.token + self.pair * length) + columns * self.column


def flops_of(model: Model) -> Flops:
    """The counts of a model; a gated MLP has three matrices, a plain one two."""
    info = model.info
    heads, kv = info.n_heads * info.d_head, info.n_kv_heads * info.d_head
    matrices = info.d_model * (2 * heads + 2 * kv + _mlp_matrices(model) * info.d_mlp)
    return Flops(2 * matrices, 4 * heads, 2 * info.d_model)


def _mlp_matrices(model: Model) -> int:
    try:
        return 2 if model.weights.mlp_gate(0) is None else 3
    except Unsupported:
        return 3  # the more expensive of the two: planning then errs on the safe side


def fit(available: float, each: int, what: str) -> int:
    """How many of a thing fit in the bytes available.

    Raises:
        WouldNotFit: not even one.
    """
    if each > available:
        raise WouldNotFit(
            f"one {what} needs {each / 2**20:.0f} MiB and the sweep may use {available / 2**20:.0f} MiB of its budget "
            "for it. Use shorter prompts or fewer places, raise the budget, or unload a model."
        )
    return math.floor(available / max(each, 1))


def pieces(n: int, size: int) -> Iterator[range]:
    """0 .. n-1 in consecutive pieces of at most `size`."""
    return (range(i, min(i + size, n)) for i in range(0, n, size))
