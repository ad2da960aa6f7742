"""A model's blocks with an input of its own for every head's queries, keys and values: what edges are made of.

B rows, T positions, H query heads, K key-value heads, h head width, D model width, n columns of the vocabulary. A plain
forward pass gives all of a layer one residual; here each receiver may see another. Two kinds of model are known: those
with an anatomy (`backends/blocks.py`) and the toys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import Unsupported
from .backends.blocks import Anatomy, Heads
from .backends.interventions import pad_ids
from .backends.toy import ACTIVATIONS, ToyBlock, ToyModel, ToyWeights
from .fast.arithmetic import Masks, attend, hidden, rotate, unembed
from .protocol import Model
from .tokens import Tokens


class Parts(Protocol):
    """The arithmetic of a model, part by part."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool
    mlps: bool

    def embed(self, tokens: Tokens) -> Float[Tensor, "B T D"]: ...
    def heads(
        self, layer: int, q: Float[Tensor, "H B T D"], k: Float[Tensor, "K B S D"], v: Float[Tensor, "K B S D"]
    ) -> Float[Tensor, "H B T D"]:
        """What each head writes to the residual, from the residual that its inputs see; queries at the last T of S."""
        ...

    def attention_bias(self, layer: int) -> Float[Tensor, " D"] | None: ...
    def mlp(self, layer: int, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]: ...
    def logits(self, x: Float[Tensor, "B D"], ids: Sequence[int] | None) -> Float[Tensor, "B n"]: ...


def parts_of(model: Model) -> Parts:
    """The parts of a loaded model.

    Raises:
        Unsupported: an architecture whose parts are not known, or whose heads do not add up.
    """
    if isinstance(model, ToyModel):
        return ToyParts(model.weights)
    anatomy = getattr(model, "anatomy", None)
    if not isinstance(anatomy, Anatomy):
        raise Unsupported(
            f"single edges need the parts of {model.info.architecture}, which no backend knows. Take level='nodes', "
            "which needs only reads and edits (of heads: backend='local'), or path_patching for chosen edges."
        )
    if anatomy.post_norms:
        raise Unsupported(
            f"{model.info.architecture} normalises what attention adds: its heads do not add up in the residual, so "
            "they have no edges of their own. Take level='nodes', or path_patching for chosen edges."
        )
    return AnatomyParts(anatomy)


class AnatomyParts:
    """Parts of a Hugging Face model."""

    mlps = True

    def __init__(self, anatomy: Anatomy) -> None:
        sizes = anatomy.sizes
        self.anatomy, self.parallel = anatomy, anatomy.parallel
        self.n_layers, self.n_heads, self.n_kv_heads = sizes.n_layers, sizes.n_heads, sizes.n_kv_heads
        self.masks = Masks(anatomy.reference)

    def embed(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        """What enters block 0."""
        ids = pad_ids(tokens, 0, self.anatomy.reference.device)
        at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.anatomy.embed(ids.flatten(), at.flatten()).unflatten(0, ids.shape).detach()

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "H B T D"]:
        """Norm, projections, rotation, attention and output matrix of one layer."""
        block, norm = self.anatomy.blocks[layer], self.anatomy.blocks[layer].attention_norm
        queries, keys, values = (
            _projected(part, norm(x)) for part, x in ((block.q, q), (block.k, k), (block.v, v))
        )
        queries = queries if block.q_norm is None else block.q_norm(queries)
        keys = keys if block.k_norm is None else block.k_norm(keys)
        width, first = k.shape[2], k.shape[2] - q.shape[2]
        rotations = self.anatomy.rotations(width)
        if rotations:
            rotation = rotations[block.rotary_kind]
            queries, keys = self._rotated(queries, rotation, first), self._rotated(keys, rotation, 0)
        z = attend(block, queries, keys, values, self.masks(first, q.shape[2], block.window))
        o = block.o.weight.detach().unflatten(0, (self.n_heads, -1))
        return torch.einsum("btnh,nhd->nbtd", z, o)

    @staticmethod
    def _rotated(x: Float[Tensor, "B T n h"], rotation: tuple[Tensor, Tensor], first: int) -> Float[Tensor, "B T n h"]:
        at = torch.arange(first, first + x.shape[1], device=x.device).repeat(x.shape[0])
        return rotate(x.flatten(0, 1), rotation, at).unflatten(0, x.shape[:2])

    def attention_bias(self, layer: int) -> Float[Tensor, " D"] | None:
        """The bias of the output matrix: no head's own."""
        return self.anatomy.blocks[layer].o.bias

    def mlp(self, layer: int, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What the MLP writes, from the residual it sees."""
        block = self.anatomy.blocks[layer]
        return block.mlp_out(hidden(block, block.mlp_norm(x).flatten(0, 1))).unflatten(0, x.shape[:2])

    def logits(self, x: Float[Tensor, "B D"], ids: Sequence[int] | None) -> Float[Tensor, "B n"]:
        """Logits of the given columns, all for None."""
        weight, bias = self.anatomy.lm_head.weight.detach(), self.anatomy.lm_head.bias
        if ids is not None:
            weight, bias = weight.T[list(ids)].T, None if bias is None else bias[list(ids)]
        return unembed(weight, bias, self.anatomy.logit_cap, self.anatomy.final_norm(x))


def _projected(part: Heads, x: Float[Tensor, "n B T D"]) -> Float[Tensor, "B T n h"]:
    y = torch.einsum("nbtd,ndh->btnh", x, part.weight.detach())
    return y if part.bias is None else y + part.bias.detach()


class ToyParts:
    """Parts of a toy."""

    parallel = False

    def __init__(self, weights: ToyWeights) -> None:
        first = weights.blocks[0]
        self.weights, self.n_layers = weights, len(weights.blocks)
        self.n_heads, self.n_kv_heads, self.mlps = first.q.shape[0], first.k.shape[0], first.mlp_in is not None

    def embed(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        """Token and position embedding."""
        ids = pad_ids(tokens, 0, self.weights.embedding.device)
        x, at = self.weights.embedding[ids], self.weights.positions
        return x if at is None else x + at[: ids.shape[1]]

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "H B T D"]:
        """Norm, projections, attention and output matrix of one layer."""
        b, group = self.weights.blocks[layer], self.n_heads // self.n_kv_heads
        queries, keys, values = (
            torch.einsum("nbtd,ndh->nbth", b.attention_norm(x), m) + (0 if bias is None else bias[:, None, None])
            for x, m, bias in ((q, b.q, b.q_bias), (k, b.k, b.k_bias), (v, b.v, b.v_bias))
        )
        keys, values = (x.repeat_interleave(group, 0) for x in (keys, values))
        scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
        first = k.shape[2] - q.shape[2]
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + first)
        z = scores.masked_fill(future, torch.finfo(scores.dtype).min).softmax(-1) @ values
        return torch.einsum("nbth,nhd->nbtd", z, b.o)

    def attention_bias(self, layer: int) -> Float[Tensor, " D"] | None:
        """The bias of the output matrix."""
        return self.weights.blocks[layer].o_bias

    def mlp(self, layer: int, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What the MLP writes."""
        b: ToyBlock = self.weights.blocks[layer]
        assert b.mlp_in is not None
        assert b.mlp_out is not None
        y = b.mlp_norm(x) @ b.mlp_in
        y = ACTIVATIONS[self.weights.activation](y if b.mlp_in_bias is None else y + b.mlp_in_bias) @ b.mlp_out
        return y if b.mlp_out_bias is None else y + b.mlp_out_bias

    def logits(self, x: Float[Tensor, "B D"], ids: Sequence[int] | None) -> Float[Tensor, "B n"]:
        """Logits of the given columns."""
        return self.weights.norm(x) @ self.weights.unembed(ids)
