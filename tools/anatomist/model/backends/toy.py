"""The toy backend: a small transformer in plain torch, written out so that every number can be followed by hand.

It runs the hand-set circuits of `toy_circuits.py`, and any weights of the same form: attention with learned or no
positions, norms or none, an MLP or none. Nothing is wrapped and nothing is hooked: the forward pass itself stops by at
every place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ...errors import BadPrompts, Unavailable, Unsupported
from ..edits import Edit
from ..protocol import AttentionRule, ModelInfo, Norm, Run
from ..sites import KINDS, Shape, Site, SiteKind
from ..tokens import Tokens
from .describe import fingerprint
from .generation import generate, uncached
from .interventions import Visits, at_positions, finite_or_raise, logits_positions, pad_ids

NO_NORM = Norm("none", None, None, 0.0)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyBlock:
    """The weights of one block, activations multiplying from the left."""

    q: Float[Tensor, "H D h"]
    k: Float[Tensor, "K D h"]
    v: Float[Tensor, "K D h"]
    o: Float[Tensor, "H h D"]
    q_bias: Float[Tensor, "H h"] | None = None
    k_bias: Float[Tensor, "K h"] | None = None
    v_bias: Float[Tensor, "K h"] | None = None
    o_bias: Float[Tensor, " D"] | None = None
    mlp_in: Float[Tensor, "D F"] | None = None
    mlp_in_bias: Float[Tensor, " F"] | None = None
    mlp_out: Float[Tensor, "F D"] | None = None
    mlp_out_bias: Float[Tensor, " D"] | None = None
    attention_norm: Norm = NO_NORM
    mlp_norm: Norm = NO_NORM


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyWeights:
    """All weights of a toy model; implements the Weights protocol by handing them out."""

    embedding: Float[Tensor, "V D"]
    positions: Float[Tensor, "N D"] | None
    blocks: tuple[ToyBlock, ...]
    norm: Norm = NO_NORM
    unembedding: Float[Tensor, "D V"]
    activation: Literal["relu", "gelu_tanh"] = "relu"

    def embed(self) -> Float[Tensor, "V D"]:
        return self.embedding

    def position_embed(self) -> Float[Tensor, "N D"] | None:
        return self.positions

    def unembed(self, tokens: Sequence[int] | None = None) -> Float[Tensor, "D n"]:
        return self.unembedding if tokens is None else self.unembedding[:, list(tokens)]

    def unembed_bias(self, tokens: Sequence[int] | None = None) -> Float[Tensor, " n"] | None:
        return None

    def q(self, layer: int) -> Float[Tensor, "H D h"]:
        return self.blocks[layer].q

    def k(self, layer: int) -> Float[Tensor, "K D h"]:
        return self.blocks[layer].k

    def v(self, layer: int) -> Float[Tensor, "K D h"]:
        return self.blocks[layer].v

    def qkv_bias(self, layer: int, which: Literal["q", "k", "v"]) -> Float[Tensor, "n h"] | None:
        block = self.blocks[layer]
        return {"q": block.q_bias, "k": block.k_bias, "v": block.v_bias}[which]

    def o(self, layer: int) -> Float[Tensor, "H h D"]:
        return self.blocks[layer].o

    def o_bias(self, layer: int) -> Float[Tensor, " D"] | None:
        return self.blocks[layer].o_bias

    def mlp_in(self, layer: int) -> Float[Tensor, "D F"] | None:
        return self.blocks[layer].mlp_in

    def mlp_gate(self, layer: int) -> Float[Tensor, "D F"] | None:
        return None

    def mlp_out(self, layer: int) -> Float[Tensor, "F D"] | None:
        return self.blocks[layer].mlp_out

    def mlp_out_bias(self, layer: int) -> Float[Tensor, " D"] | None:
        return self.blocks[layer].mlp_out_bias

    def attention_rule(self, layer: int) -> AttentionRule:
        return AttentionRule(self.blocks[layer].q.shape[-1] ** -0.5, None, None)

    def rotated(self, layer: int, x: Float[Tensor, "*rest h"], position: int) -> Float[Tensor, "*rest h"]:
        return x

    def attention_norm(self, layer: int) -> Norm:
        return self.blocks[layer].attention_norm

    def mlp_norm(self, layer: int) -> Norm:
        return self.blocks[layer].mlp_norm

    def post_attention_norm(self, layer: int) -> Norm | None:
        return None

    def post_mlp_norm(self, layer: int) -> Norm | None:
        return None

    def final_norm(self) -> Norm:
        return self.norm

    def logit_softcap(self) -> float | None:
        return None


class ToyModel:
    """A toy model behind the Model protocol. Tokens are ids, or text 't3 t0 t12' with the id in each word."""

    anatomy = None  # no Hugging Face modules behind it

    def __init__(self, weights: ToyWeights, *, name: str, source: str = "written by hand", n_ctx: int = 64) -> None:
        self._weights: ToyWeights | None = weights
        self.n_ctx = n_ctx if weights.positions is None else weights.positions.shape[0]
        self.info: ModelInfo = _info(weights, name, source, self.n_ctx)

    @property
    def weights(self) -> ToyWeights:
        if self._weights is None:
            raise Unavailable(f"{self.info.name} was closed; load it again.")
        return self._weights

    def tokenize(self, prompts: Sequence[str | Sequence[int]], *, bos: bool | None = None) -> Tokens:
        """See `Model.tokenize`; a toy has no BOS token."""
        if bos:
            raise BadPrompts("bos=True was asked for, but toy models have no BOS token; leave bos out.")
        rows = tuple(self._row(i, prompt) for i, prompt in enumerate(prompts))
        return Tokens(rows, tuple(self.token_strings(row) for row in rows), False)

    def _row(self, row: int, prompt: str | Sequence[int]) -> tuple[int, ...]:
        ids = self.token_ids(prompt) if isinstance(prompt, str) else tuple(int(i) for i in prompt)
        if not 0 < len(ids) <= self.n_ctx:
            raise BadPrompts(f"prompt {row} has {len(ids)} tokens; this model takes 1 to {self.n_ctx}.")
        for i in ids:
            if not 0 <= i < self.info.d_vocab:
                raise BadPrompts(f"prompt {row} has token id {i}; ids are 0 to {self.info.d_vocab - 1} for this model.")
        return ids

    def token_ids(self, text: str) -> tuple[int, ...]:
        known = {f"t{i}": i for i in range(self.info.d_vocab)}
        for word in text.split():
            if word not in known:
                raise BadPrompts(f"{word!r} is not a token; a toy's tokens are 't0' to 't{self.info.d_vocab - 1}'.")
        return tuple(known[word] for word in text.split())

    def token_strings(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"t{i}" for i in ids)

    def chat(self, text: str) -> str:
        raise Unsupported("toy models have no chat template; give the text as a plain prompt.")

    def run(
        self,
        tokens: Tokens,
        *,
        read: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        logits_at: Sequence[int] | Literal["all"] | None = None,
        gradients: bool = False,
    ) -> Run:
        """See `Model.run`."""
        visits = Visits(tokens, read, edits, self.info.shape, gradients=gradients)
        positions = None if logits_at is None or logits_at == "all" else logits_positions(tokens, logits_at)  # type: ignore[arg-type]
        logits = None
        with torch.set_grad_enabled(gradients):
            if logits_at is not None or not visits.done:
                logits = _forward(self.weights, visits, stop=logits_at is None)
        reads, fired = visits.result()
        if logits is not None:
            finite_or_raise("the logits", logits.detach())
        return Run(reads, logits if positions is None or logits is None else at_positions(logits, positions), fired)

    def generate(
        self, tokens: Tokens, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0,
        edits: Sequence[Edit] = (),
    ) -> tuple[tuple[int, ...], ...]:  # fmt: skip
        """See `Model.generate`."""
        Visits(tokens, (), edits, self.info.shape)  # the checks, before anything runs
        return generate(
            uncached(self), tokens, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, edits=edits,
            n_ctx=self.n_ctx, stop=(),
        )  # fmt: skip

    def close(self) -> None:
        """Free the weights."""
        self._weights = None


def _forward(w: ToyWeights, visits: Visits, *, stop: bool) -> Float[Tensor, "B T V"] | None:
    """The whole model, or as much of it as is needed when it may stop."""
    ids = pad_ids(visits.tokens, 0, w.embedding.device)
    x = w.embedding[ids]
    if w.positions is not None:
        x = x + w.positions[: ids.shape[1]]
    x = visits.at(Site("embed"), x)
    for layer, block in enumerate(w.blocks):
        if stop and visits.done:
            return None
        x = _block(block, ACTIVATIONS[w.activation], layer, x, visits)
    if stop and visits.done:
        return None
    x = visits.at(Site("final_norm"), w.norm(x))
    return visits.at(Site("logits"), x @ w.unembedding)


def _block(
    block: ToyBlock, activation: Callable[[Tensor], Tensor], layer: int, x: Float[Tensor, "B T D"], visits: Visits
) -> Float[Tensor, "B T D"]:
    def at(kind: SiteKind, y: Tensor) -> Tensor:
        return visits.at(Site(kind, layer), y)

    x = at("resid_pre", x)
    x = at("resid_mid", x + at("attn_out", _attention(block, block.attention_norm(x), at)))
    if block.mlp_in is not None and block.mlp_out is not None:
        hidden = activation(_plus(block.mlp_norm(x) @ block.mlp_in, block.mlp_in_bias))
        x = x + at("mlp_out", _plus(at("neuron", hidden) @ block.mlp_out, block.mlp_out_bias))
    return at("resid_post", x)


def _attention(
    block: ToyBlock, x: Float[Tensor, "B T D"], at: Callable[[SiteKind, Tensor], Tensor]
) -> Float[Tensor, "B T D"]:
    q = at("q", _plus(torch.einsum("btd,ndh->btnh", x, block.q), block.q_bias))
    k = at("k", _plus(torch.einsum("btd,ndh->btnh", x, block.k), block.k_bias))
    v = at("v", _plus(torch.einsum("btd,ndh->btnh", x, block.v), block.v_bias))
    if k.shape[2] < q.shape[2]:
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqnh,bknh->bnqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(_future(x), torch.finfo(x.dtype).min)
    pattern = at("pattern", at("scores", scores).softmax(-1))
    z = at("head", torch.einsum("bnqk,bknh->bqnh", pattern, v))
    return _plus(torch.einsum("btnh,nhd->btd", z, block.o), block.o_bias)


def _future(x: Float[Tensor, "B T D"]) -> Bool[Tensor, "T T"]:
    """Keys that a query must not see."""
    length = x.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def _tensors(w: ToyWeights) -> list[tuple[str, Tensor]]:
    """Every weight with its name, in a fixed order."""
    found: list[tuple[str, Tensor | None]] = [("embedding", w.embedding), ("positions", w.positions)]
    for i, block in enumerate(w.blocks):
        for field in fields(block):
            value = getattr(block, field.name)
            parts = {"weight": value.weight, "bias": value.bias} if isinstance(value, Norm) else {"": value}
            found += [(f"blocks.{i}.{field.name}.{part}", tensor) for part, tensor in parts.items()]
    found += [("norm.weight", w.norm.weight), ("norm.bias", w.norm.bias), ("unembedding", w.unembedding)]
    return [(name, tensor) for name, tensor in found if tensor is not None]


def _info(w: ToyWeights, name: str, source: str, n_ctx: int) -> ModelInfo:
    first, tensors = w.blocks[0], [tensor for _, tensor in _tensors(w)]
    d_mlp = 0 if first.mlp_in is None else first.mlp_in.shape[1]
    without_mlp = {"neuron", "mlp_out"} if d_mlp == 0 else set()
    shape = Shape(len(w.blocks), first.q.shape[0], first.k.shape[0], d_mlp, KINDS)
    return ModelInfo(
        name=name, source=source, backend="toy", architecture="Toy", n_layers=shape.n_layers,
        d_model=w.embedding.shape[1], n_heads=shape.n_heads, n_kv_heads=shape.n_kv_heads, d_head=first.q.shape[2],
        d_mlp=d_mlp, d_vocab=w.embedding.shape[0], n_ctx=n_ctx, parameters=sum(t.numel() for t in tensors),
        weight_bytes=sum(t.numel() * t.element_size() for t in tensors),
        positional="none" if w.positions is None else "learned", norm=w.norm.kind, parallel=False, qk_norm=False,
        post_norms=False, dtype=str(w.embedding.dtype).removeprefix("torch."), device=str(w.embedding.device),
        attention="eager", tokenizer="words", adds_bos=False,
        sites=tuple(kind for kind in KINDS if kind not in without_mlp), weights_hash=fingerprint(_tensors(w)),
        load_seconds=0.0,
    )  # fmt: skip
