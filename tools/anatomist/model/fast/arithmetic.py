"""The arithmetic of one block on a flat batch of tokens, in the order of the plain model.

N tokens, H query heads, K key-value heads, G = H / K, h head width, F MLP width. n runs of t queries each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..backends.blocks import Block, LeafNorm, Window

Entries = tuple[Int[Tensor, "_"], Int[Tensor, "_"] | slice, Int[Tensor, "_"], Int[Tensor, "_"]]  # run, head, query, key
Rotation = tuple[Float[Tensor, "T r"], Float[Tensor, "T r"]]  # cos and sin of every position


def project(
    block: Block, x: Float[Tensor, "N D"], reads: Int[Tensor, " M"] | None
) -> tuple[Float[Tensor, "M H h"], Float[Tensor, "N K h"], Float[Tensor, "N K h"]]:
    """Queries (of `reads` alone where given), keys and values, normalised where the model does, not yet rotated."""
    if block.fused:
        y = block.q.linear(x)
        q, k, v = block.q.pick(y if reads is None else y[reads]), block.k.pick(y), block.v.pick(y)
    else:
        q = block.q.pick(block.q.linear(x if reads is None else x[reads]))
        k, v = block.k.pick(block.k.linear(x)), block.v.pick(block.v.linear(x))
    return _normed(block.q_norm, q), _normed(block.k_norm, k), v


def _normed(norm: LeafNorm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def rotate(x: Float[Tensor, "N n h"], rotation: Rotation, positions: Int[Tensor, " N"]) -> Float[Tensor, "N n h"]:
    """Rotary position embedding of the first r numbers of each head, halves paired (Su et al., arXiv 2104.09864)."""
    cos, sin = (table[positions][:, None] for table in rotation)
    width = cos.shape[-1]
    turned = x[..., :width]
    first, second = turned.chunk(2, -1)
    turned = (turned * cos).add_(torch.cat([-second, first], -1).mul_(sin))
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)


class Masks:
    """Additive causal masks: 0 where a query may look, minus infinity where it may not; each made once."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self._made: dict[tuple[int, int, Window], Tensor] = {}

    def __call__(self, first: int, length: int, window: Window) -> Float[Tensor, "t S"]:
        """Queries at positions first .. first + length - 1, keys at 0 up to the last of them."""
        window = None if window is None or window >= first + length else window
        key = (first, length, window)
        if key not in self._made:
            queries = torch.arange(first, first + length, device=self.like.device)[:, None]
            apart = queries - torch.arange(first + length, device=self.like.device)
            hidden = (apart < 0) | (apart >= (first + length if window is None else window))
            self._made[key] = self.like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        return self._made[key]


def attend(
    block: Block,
    q: Float[Tensor, "n t H h"],
    k: Float[Tensor, "n S K h"],
    v: Float[Tensor, "n S K h"],
    mask: Float[Tensor, "t S"],
    cut_scores: Sequence[Entries] = (),
    cut_pattern: Sequence[Entries] = (),
) -> Float[Tensor, "n t H h"]:
    """Mixed values of n runs that each have keys and values of their own; softmax in float32 or wider.

    Cut entries are minus infinity in the scores, 0 in the pattern.
    """
    n, t, heads, h = q.shape
    width, kv = k.shape[1:3]
    group = heads // kv
    queries = q.view(n, t, kv, group, h).permute(0, 2, 3, 1, 4).reshape(n * kv, group * t, h)
    keys = k.permute(0, 2, 3, 1).reshape(n * kv, h, width)
    values = v.permute(0, 2, 1, 3).reshape(n * kv, width, h)
    scores = torch.bmm(queries, keys).view(n * kv, group, t, width).mul_(block.scaling)
    if block.score_cap is not None:
        scores = scores.div_(block.score_cap).tanh_().mul_(block.score_cap)
    scores.add_(mask)
    _fill(scores.view(n, heads, t, width), cut_scores, float("-inf"))
    pattern = softmax(scores)
    _fill(pattern.view(n, heads, t, width), cut_pattern, 0.0)
    mixed = torch.bmm(pattern.view(n * kv, group * t, width), values)
    return mixed.view(n, kv, group, t, h).permute(0, 3, 1, 2, 4).reshape(n, t, heads, h)


def _fill(x: Float[Tensor, "n H t S"], entries: Sequence[Entries], value: float) -> None:
    for at in entries:
        x[at] = value


def softmax(scores: Float[Tensor, "*rest S"]) -> Float[Tensor, "*rest S"]:
    """Over the last axis; half precision is widened for it, as the plain models do."""
    if scores.dtype.itemsize >= 4:
        return scores.softmax(-1)
    return functional.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.get_default_dtype())).to(
        scores.dtype
    )


def hidden(block: Block, x: Float[Tensor, "N D"]) -> Float[Tensor, "N F"]:
    """The MLP's activations as they enter its output matrix."""
    activate = in_place(block.activation)
    if block.mlp_gate is None:
        return activate(block.mlp_in(x))
    return activate(block.mlp_gate(x)).mul_(block.mlp_in(x))


def in_place(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The activation without a second buffer and in one sweep, where torch has it; else as it is."""
    name = type(activation).__name__
    if isinstance(activation, nn.SiLU) or name == "SiLUActivation":
        return lambda x: functional.silu(x, inplace=True)
    if name in ("NewGELUActivation", "GELUTanh"):
        return lambda x: functional.gelu(x, approximate="tanh")
    return activation


def unembed(
    weight: Float[Tensor, "D n"], bias: Float[Tensor, " n"] | None, cap: float | None, x: Float[Tensor, "N D"]
) -> Float[Tensor, "N n"]:
    """Logits of the given columns, capped where the model does; at least float32 from there on."""
    logits = x @ weight if bias is None else torch.addmm(bias, x, weight)
    if cap is not None:
        logits = logits.div_(cap).tanh_().mul_(cap)
    return logits


def append(parts: Iterable[Tensor], slots: Int[Tensor, " m"]) -> list[Tensor]:
    """Each tensor with copies of some of its tokens after its end."""
    return [torch.cat([x, x.index_select(0, slots)]) for x in parts]
