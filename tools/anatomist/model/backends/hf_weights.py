"""The Weights protocol over a Hugging Face model's own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..fast.arithmetic import rotate
from ..protocol import AttentionRule, Norm
from .blocks import Anatomy, LeafNorm


class HFWeights:
    """Weights in one orientation for every architecture: views of the model's parameters, detached from any graph.

    Not views, because no view holds them: norm weights stored minus one, and the embedding of models that scale it.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def embed(self) -> Float[Tensor, "V D"]:
        """The embedding table with the model's own scaling, so that its rows are what enters block 0."""
        table: Tensor = self.anatomy.embedding.weight.detach()  # type: ignore[operator, assignment]
        scale = self.anatomy.embed_scale
        return table if scale == 1 else table * table.new_tensor(scale)

    def position_embed(self) -> Float[Tensor, "N D"] | None:
        module = self.anatomy.position_embedding
        return None if module is None else module.weight.detach()  # type: ignore[operator, return-value]

    def unembed(self, tokens: Sequence[int] | None = None) -> Float[Tensor, "D n"]:
        weight = self.anatomy.lm_head.weight.detach()
        return weight if tokens is None else weight.T[list(tokens)].T

    def unembed_bias(self, tokens: Sequence[int] | None = None) -> Float[Tensor, " n"] | None:
        bias = _detached(self.anatomy.lm_head.bias)
        return bias if bias is None or tokens is None else bias[list(tokens)]

    def q(self, layer: int) -> Float[Tensor, "H D h"]:
        return self.anatomy.blocks[layer].q.weight.detach()

    def k(self, layer: int) -> Float[Tensor, "K D h"]:
        return self.anatomy.blocks[layer].k.weight.detach()

    def v(self, layer: int) -> Float[Tensor, "K D h"]:
        return self.anatomy.blocks[layer].v.weight.detach()

    def qkv_bias(self, layer: int, which: Literal["q", "k", "v"]) -> Float[Tensor, "n h"] | None:
        block = self.anatomy.blocks[layer]
        return _detached({"q": block.q, "k": block.k, "v": block.v}[which].bias)

    def o(self, layer: int) -> Float[Tensor, "H h D"]:
        sizes = self.anatomy.sizes
        return self.anatomy.blocks[layer].o.weight.detach().unflatten(0, (sizes.n_heads, sizes.d_head))

    def o_bias(self, layer: int) -> Float[Tensor, " D"] | None:
        return _detached(self.anatomy.blocks[layer].o.bias)

    def mlp_in(self, layer: int) -> Float[Tensor, "D F"]:
        return self.anatomy.blocks[layer].mlp_in.weight.detach()

    def mlp_in_bias(self, layer: int) -> Float[Tensor, " F"] | None:
        return _detached(self.anatomy.blocks[layer].mlp_in.bias)

    def mlp_gate(self, layer: int) -> Float[Tensor, "D F"] | None:
        gate = self.anatomy.blocks[layer].mlp_gate
        return None if gate is None else gate.weight.detach()

    def mlp_out(self, layer: int) -> Float[Tensor, "F D"]:
        return self.anatomy.blocks[layer].mlp_out.weight.detach()

    def mlp_out_bias(self, layer: int) -> Float[Tensor, " D"] | None:
        return _detached(self.anatomy.blocks[layer].mlp_out.bias)

    def attention_rule(self, layer: int) -> AttentionRule:
        block = self.anatomy.blocks[layer]
        return AttentionRule(block.scaling, block.window, block.score_cap)

    def rotated(self, layer: int, x: Float[Tensor, "*rest h"], position: int) -> Float[Tensor, "*rest h"]:
        """Queries or keys as they stand at a position: turned by rotary models, as they are in all others."""
        turns = self.anatomy.rotations(position + 1)
        if not turns:
            return x
        places = torch.full((x[..., 0].numel(),), position, device=x.device)
        return rotate(x.reshape(-1, 1, x.shape[-1]), turns[self.anatomy.blocks[layer].rotary_kind], places).view_as(x)

    def attention_norm(self, layer: int) -> Norm:
        return _norm(self.anatomy.blocks[layer].attention_norm)

    def mlp_norm(self, layer: int) -> Norm:
        return _norm(self.anatomy.blocks[layer].mlp_norm)

    def post_attention_norm(self, layer: int) -> Norm | None:
        leaf = self.anatomy.blocks[layer].post_attention_norm
        return None if leaf is None else _norm(leaf)

    def post_mlp_norm(self, layer: int) -> Norm | None:
        leaf = self.anatomy.blocks[layer].post_mlp_norm
        return None if leaf is None else _norm(leaf)

    def final_norm(self) -> Norm:
        return _norm(self.anatomy.final_norm)

    def logit_softcap(self) -> float | None:
        return self.anatomy.logit_cap


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def _norm(leaf: LeafNorm) -> Norm:
    return Norm(kind=leaf.kind, weight=leaf.weight.detach(), bias=_detached(leaf.bias), eps=leaf.eps)
