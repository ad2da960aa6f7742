"""What heads read and write, as factors of the vocabulary: queries, keys and values of tokens, and what is written.

D model width, h head width, V vocabulary. A token stands for a residual vector x [D]: its embedding (what enters block
0 without position), or the residual after block 0 of the token alone. The norm before attention acts on x as if x were
the whole residual: exact in block 0 of models without learned positions, an approximation elsewhere. Nothing is folded
into the model's own weights. Half precision is widened.

Source: Elhage et al. 2021, https://transformer-circuits.pub/2021/framework ("QK and OV circuits"): scores W_E W_Q W_K^T
W_E^T, effects on the logits W_E W_V W_O W_U.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from ..errors import BadArguments
from ..measures.metrics import widened
from ..model.protocol import Model, ModelInfo, Norm
from ..model.sites import Site, head_name
from ..model.sweep_cost import pieces
from .low_rank import Factors

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TokensAs = Literal["embedding", "after_block_0"]
VECTORS: dict[TokensAs, str] = {
    "embedding": "token embedding", "after_block_0": "residual after block 0 of the token alone",
}  # fmt: skip
ROWS = 8192  # token vectors normed and projected at a time
ALONE = 1024  # one-token prompts in one pass


def kv_head(info: ModelInfo, head: int) -> int:
    """The key-value head that a query head reads."""
    return head // (info.n_heads // info.n_kv_heads)


def token_vectors(
    model: Model, ids: Sequence[int] | None, tokens_as: TokensAs, layer: int
) -> Float[Tensor, "n D"]:
    """Residual vectors that stand for tokens, all of the vocabulary when no ids are given.

    Raises:
        BadArguments: a head of block 0 cannot read what block 0 writes.
    """
    if tokens_as == "embedding":
        table = model.weights.embed()
        return widened(table if ids is None else table[list(ids)])
    if layer == 0:
        raise BadArguments("a head of layer 0 reads what enters block 0: use tokens_as='embedding'.")
    return _after_first_block(model, range(model.info.d_vocab) if ids is None else ids)


def _after_first_block(model: Model, ids: Sequence[int]) -> Float[Tensor, "n D"]:
    """The residual after block 0 of prompts that are one token (at position 0, seeing itself alone)."""
    site = Site("resid_post", 0)
    first = widened(model.weights.embed()[:1])
    out = first.new_empty((len(ids), first.shape[1]))
    for part in pieces(len(ids), ALONE):
        tokens = model.tokenize([[ids[i]] for i in part], bos=False)
        out[part.start : part.stop] = widened(model.run(tokens, read=[site]).reads[site][:, 0])
    return out


def position_vectors(model: Model, n: int) -> Float[Tensor, "n D"]:
    """The first n learned position embeddings.

    Raises:
        BadArguments: the model has none, or not so many.
    """
    table = model.weights.position_embed()
    if table is None:
        how = "turns queries and keys by position: use `offsets`" if model.info.positional == "rotary" else "has none"
        raise BadArguments(f"{model.info.name} has no position embeddings (it {how}); take between='tokens'.")
    if n > table.shape[0]:
        raise BadArguments(f"{n} positions were asked for; the model has {table.shape[0]}.")
    return widened(table[:n])


def written_by(model: Model, layer: int, head: int, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """What a head adds to the residual where it attends to x alone, without the output bias that all heads share.

    With a norm after attention its linear part is taken: the true vector is this one over the norm's scale.
    """
    return _projected(x, lambda y: values(model, layer, head, y, biases=True) @ writes(model, layer, head))


def queries(
    model: Model, layer: int, head: int, x: Float[Tensor, "n D"], position: int = 0
) -> Float[Tensor, "n h"]:
    """Queries of residual vectors as they enter the product at a position."""
    w, norm = model.weights, _wide(model.weights.attention_norm(layer))
    matrix, bias = widened(w.q(layer)[head]), _bias(model, layer, "q", head)
    return _projected(x, lambda y: w.rotated(layer, _plus(norm(y) @ matrix, bias), position))


def keys(
    model: Model, layer: int, head: int, x: Float[Tensor, "n D"], position: int = 0
) -> Float[Tensor, "n h"]:
    """Keys that a query head sees, as they enter the product at a position."""
    w, norm, kv = model.weights, _wide(model.weights.attention_norm(layer)), kv_head(model.info, head)
    matrix, bias = widened(w.k(layer)[kv]), _bias(model, layer, "k", kv)
    return _projected(x, lambda y: w.rotated(layer, _plus(norm(y) @ matrix, bias), position))


def values(
    model: Model, layer: int, head: int, x: Float[Tensor, "n D"], *, biases: bool
) -> Float[Tensor, "n h"]:
    """Values that a query head mixes; without the biases, which are the same for every x."""
    norm, kv = _wide(model.weights.attention_norm(layer)), kv_head(model.info, head)
    matrix, bias = widened(model.weights.v(layer)[kv]), _bias(model, layer, "v", kv)
    if biases:
        return _projected(x, lambda y: _plus(norm(y) @ matrix, bias))
    return _projected(x, lambda y: norm.frozen(y, norm.scale(y)) @ matrix)


def writes(model: Model, layer: int, head: int) -> Float[Tensor, "h D"]:
    """A head's output matrix, through the linear part of a norm after attention where there is one."""
    matrix, post = widened(model.weights.o(layer)[head]), model.weights.post_attention_norm(layer)
    return matrix if post is None else linear_part(post, matrix)


def linear_part(norm: Norm, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """A norm with scale 1 and without bias."""
    return _wide(norm).frozen(x, x.new_ones((x.shape[0], 1)))


def qk_factors(
    model: Model, layer: int, head: int, query: Float[Tensor, "n D"], key: Float[Tensor, "m D"], offset: int
) -> Factors:
    """Scores before the softmax of queries at position `offset` and keys at 0, before any soft-cap."""
    scaling = model.weights.attention_rule(layer).scaling
    return Factors(scaling * queries(model, layer, head, query, offset), keys(model, layer, head, key))


def soft_capped(scores: Float[Tensor, "*any"], cap: float | None) -> Float[Tensor, "*any"]:
    """Scores as the model caps them, where it does."""
    return scores if cap is None else cap * (scores / cap).tanh()


def ov_factors(
    model: Model, layer: int, head: int, source: Float[Tensor, "n D"], ids: Sequence[int] | None = None
) -> Factors:
    """What attending fully to each source adds to the logits of tokens, times the final norm's scale; no biases."""
    out = linear_part(model.weights.final_norm(), writes(model, layer, head)) @ widened(model.weights.unembed(ids))
    return Factors(values(model, layer, head, source, biases=False), out.T)


def embedding_gram(model: Model, kind: Norm, x: Float[Tensor, "V D"] | None = None) -> Float[Tensor, "D D"]:
    """Sum over the vocabulary of unembedding column times normed token vector: [written, read].

    With it the core of any head's OV circuit costs a few small products (`ov_core`). `kind` gives the norm's kind and
    eps; its weight comes later. x: the vectors that stand for tokens; the embeddings when absent.
    """
    norm = Norm(kind.kind, None, None, kind.eps)
    table, unembed = model.weights.embed() if x is None else x, model.weights.unembed()
    total = None
    for part in pieces(table.shape[0], ROWS):
        rows = widened(table[part.start : part.stop])
        piece = widened(unembed[:, part.start : part.stop]) @ norm.frozen(rows, norm.scale(rows))
        total = piece if total is None else total + piece
    assert total is not None
    return total


def ov_core(model: Model, layer: int, head: int, gram: Float[Tensor, "D D"]) -> Float[Tensor, "h h"]:
    """right.T @ left of the head's OV circuit over the whole vocabulary, from `embedding_gram`."""
    write = linear_part(model.weights.final_norm(), writes(model, layer, head))
    return core_of(model, layer, write, widened(model.weights.v(layer)[kv_head(model.info, head)]), gram)


def core_of(
    model: Model, layer: int, write: Float[Tensor, "*more h D"], read: Float[Tensor, "*more D h"],
    gram: Float[Tensor, "D D"],
) -> Float[Tensor, "*more h h"]:  # fmt: skip
    """The same for any output and value matrices in a head's place."""
    weight = model.weights.attention_norm(layer).weight
    return write @ (gram if weight is None else gram * widened(weight)) @ read


def group_name(info: ModelInfo, layer: int, head: int) -> str:
    """The head and the key-value head it reads, in words."""
    if info.n_kv_heads == info.n_heads:
        return head_name(layer, head)
    return f"{head_name(layer, head)} (reads key-value head L{layer}KV{kv_head(info, head)})"


def _projected(x: Float[Tensor, "n D"], project: Callable[[Tensor], Tensor]) -> Float[Tensor, "n h"]:
    """A projection of many vectors, some thousands at a time: normed copies of the vocabulary are large."""
    if x.shape[0] <= ROWS:
        return project(x)
    out = None
    for part in pieces(x.shape[0], ROWS):
        found = project(x[part.start : part.stop])
        out = found.new_empty((x.shape[0], found.shape[1])) if out is None else out
        out[part.start : part.stop] = found
    assert out is not None
    return out


def _bias(model: Model, layer: int, which: Literal["q", "k", "v"], head: int) -> Tensor | None:
    bias = model.weights.qkv_bias(layer, which)
    return None if bias is None else widened(bias[head])


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def _wide(norm: Norm) -> Norm:
    weight, bias = (None if t is None else widened(t) for t in (norm.weight, norm.bias))
    return Norm(norm.kind, weight, bias, norm.eps)
