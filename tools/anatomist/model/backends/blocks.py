"""The leaf modules of a transformer block, in one orientation: what a plain forward pass multiplies, norms and adds.

Glossary: D model width, H query heads, K key-value heads, h head width, F MLP width, V vocabulary, N positions.
Leaf modules are held by reference: a library that later replaces submodules of the same model does not change them,
and no weight is stored twice. Weights are read at the time of use, so a model may move between devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..protocol import Norm

Layout = Literal["own", "thirds", "interleaved"]
Window = int | None


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear map x @ weight + bias, whichever way its module stores the matrix."""

    module: nn.Module
    stored: Literal["out_in", "in_out"]  # nn.Linear stores [out, in], GPT-2's Conv1D [in, out]

    @classmethod
    def of(cls, module: nn.Module) -> Affine:
        return cls(module, "out_in" if isinstance(module, nn.Linear) else "in_out")

    @property
    def weight(self) -> Float[Tensor, "d_in d_out"]:
        """A view in the orientation activations multiply from the left."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.T if self.stored == "out_in" else weight

    @property
    def bias(self) -> Float[Tensor, " d_out"] | None:
        return self.module.bias  # type: ignore[return-value]

    def __call__(self, x: Float[Tensor, "n d_in"], out: Tensor | None = None) -> Float[Tensor, "n d_out"]:
        """The map on rows, into `out` where one is given."""
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)


@dataclass(frozen=True, eq=False)
class Heads:
    """Queries, keys or values of one layer: a linear map of its own, or a third of a fused one.

    `layout` says how the fused output is ordered: `thirds` [3, heads, h] (GPT-2), `interleaved` [heads, 3, h] (NeoX).
    """

    linear: Affine
    n: int
    d_head: int
    layout: Layout = "own"
    third: int = 0  # 0 queries, 1 keys, 2 values; of fused maps

    def pick(self, y: Float[Tensor, "*rest d_out"]) -> Float[Tensor, "*rest heads h"]:
        """This part of the linear map's output, by head (a view)."""
        if self.layout == "own":
            return y.unflatten(-1, (self.n, self.d_head))
        if self.layout == "thirds":
            return y.unflatten(-1, (3, self.n, self.d_head)).select(-3, self.third)
        return y.unflatten(-1, (self.n, 3, self.d_head)).select(-2, self.third)

    @property
    def weight(self) -> Float[Tensor, "heads d h"]:
        return self.pick(self.linear.weight).transpose(0, 1)

    @property
    def bias(self) -> Float[Tensor, "heads h"] | None:
        bias = self.linear.bias
        return None if bias is None else self.pick(bias)


@dataclass(frozen=True, eq=False)
class LeafNorm:
    """A norm module: root mean square or layer norm, with the weight it effectively multiplies by."""

    module: nn.Module
    kind: Literal["rms", "layer"]
    eps: float
    plus_one: bool = False  # Gemma stores weight - 1

    @property
    def weight(self) -> Float[Tensor, " d"]:
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight + 1 if self.plus_one else weight

    @property
    def bias(self) -> Float[Tensor, " d"] | None:
        return getattr(self.module, "bias", None)

    def norm(self) -> Norm:
        """The same norm as data."""
        return Norm(kind=self.kind, weight=self.weight, bias=self.bias, eps=self.eps)

    def __call__(self, x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest d"]:
        """The norm as the plain model computes it: statistics of half-precision inputs in single precision."""
        if self.kind == "layer":
            return functional.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
        if x.dtype.itemsize >= 4:
            return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.plus_one:
            return (scaled * self.weight.float()).to(x.dtype)
        return self.weight * scaled.to(x.dtype)


@dataclass(frozen=True, eq=False)
class Block:
    """One decoder block: its own modules (for hooks) and its leaves (for arithmetic)."""

    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    q: Heads
    k: Heads
    v: Heads
    o: Affine
    mlp_in: Affine  # the up projection where there is a gate
    mlp_gate: Affine | None
    mlp_out: Affine
    activation: Callable[[Tensor], Tensor]  # of the gate where there is one, else of mlp_in
    attention_norm: LeafNorm
    mlp_norm: LeafNorm
    post_attention_norm: LeafNorm | None
    post_mlp_norm: LeafNorm | None
    q_norm: LeafNorm | None
    k_norm: LeafNorm | None
    scaling: float  # factor on the product of queries and keys
    window: Window  # a query sees this many positions, itself included; None: all before it
    score_cap: float | None  # scores become cap * tanh(scores / cap)
    rotary_kind: str | None  # the rotary module's name of this layer's frequencies, where it has several

    @property
    def fused(self) -> bool:
        """Whether one linear map gives queries, keys and values."""
        return self.q.layout != "own"


class Sizes(NamedTuple):
    """The sizes of an architecture."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A plain Hugging Face causal language model, taken apart before anything wraps it."""

    family: str
    model: nn.Module
    sizes: Sizes
    embedding: nn.Module
    embed_scale: float  # the residual stream starts at embedding * embed_scale
    position_embedding: nn.Module | None  # learned positions, added to the embedding
    rotary: nn.Module | None
    blocks: tuple[Block, ...]
    parallel: bool  # attention and MLP read the same residual
    final_norm: LeafNorm
    lm_head: Affine
    logit_cap: float | None

    @property
    def positional(self) -> Literal["rotary", "learned"]:
        return "rotary" if self.rotary is not None else "learned"

    @property
    def qk_norm(self) -> bool:
        return any(block.q_norm is not None for block in self.blocks)

    @property
    def post_norms(self) -> bool:
        return any(block.post_attention_norm is not None for block in self.blocks)

    @property
    def reference(self) -> Tensor:
        """A weight, for its device and dtype."""
        return self.lm_head.weight

    def embed(self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """What enters block 0 for tokens at the given positions."""
        table: Tensor = self.embedding.weight  # type: ignore[assignment]
        x = functional.embedding(ids, table)
        if self.embed_scale != 1:
            x = x * torch.tensor(self.embed_scale, dtype=x.dtype, device=x.device)
        if self.position_embedding is not None:
            learned: Tensor = self.position_embedding.weight  # type: ignore[assignment]
            x = x + learned[positions]
        return x

    def rotations(self, width: int) -> dict[str | None, tuple[Tensor, Tensor]]:
        """cos and sin [T, rotated width] of positions 0 to width - 1, for each kind of rotary layer."""
        if self.rotary is None:
            return {}
        positions = torch.arange(width, device=self.reference.device)[None]
        kinds = {block.rotary_kind for block in self.blocks}
        found: dict[str | None, tuple[Tensor, Tensor]] = {}
        for kind in kinds:
            more = () if kind is None else (kind,)
            cos, sin = self.rotary(self.reference, positions, *more)
            found[kind] = (cos[0], sin[0])
        return found
