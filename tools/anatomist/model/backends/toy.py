"""The toy backend: a small transformer in plain torch, written out so that every number can be followed by hand.

It runs the hand-set circuits of `toy_circuits.py`, compiled programs, trained toys, and any weights of the same form:
attention with learned or no positions, looking back or both ways, norms or none, an MLP or none. Nothing is wrapped and
nothing is hooked: the forward pass itself stops by at every place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ...errors import Unavailable, Unsupported
from ..edits import Edit
from ..protocol import AttentionRule, ModelInfo, Norm, Run
from ..sites import KINDS, Shape, Site, SiteKind
from ..tokens import Tokens
from .describe import fingerprint
from .generation import generate, uncached
from .interventions import Visits, at_positions, finite_or_raise, logits_positions, pad_ids
from .toy_words import Words

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
    unembedding_bias: Float[Tensor, " V"] | None = None
    activation: Literal["relu", "gelu_tanh"] = "relu"
    causal: bool = True  # False: every position sees the whole row

    def embed(self) -> Float[Tensor, "V D"]:
        return self.embedding

    def position_embed(self) -> Float[Tensor, "N D"] | None:
        return self.positions

    def unembed(self, tokens: Sequence[int] | None = None) -> Float[Tensor, "D n"]:
        return self.unembedding if tokens is None else self.unembedding[:, list(tokens)]

    def unembed_bias(self, tokens: Sequence[int] | None = None) -> Float[Tensor, " n"] | None:
        bias = self.unembedding_bias
        return bias if bias is None or tokens is None else bias[list(tokens)]
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
    """A toy model behind the Model protocol. Tokens are ids, or text whose words are tokens ('t3 t0 t12')."""

    anatomy = None  # no Hugging Face modules behind it

    def __init__(
        self, weights: ToyWeights, *, name: str, source: str = "written by hand", n_ctx: int = 64,
        words: Words | None = None, learned: bool = False,
    ) -> None:  # fmt: skip
        self._weights: ToyWeights | None = weights
        self.n_ctx = n_ctx if weights.positions is None else weights.positions.shape[0]
        self.words = words or Words.numbered(weights.embedding.shape[0])
        self.learned = learned  # whether training made the weights: then there are untrained ones to compare with
        self.info: ModelInfo = _info(weights, name, source, self.n_ctx, self.words)

    @property
    def weights(self) -> ToyWeights:
        if self._weights is None:
            raise Unavailable(f"{self.info.name} was closed; load it again.")
        return self._weights

    def tokenize(self, prompts: Sequence[str | Sequence[int]], *, bos: bool | None = None) -> Tokens:
        """See `Model.tokenize`."""
        return self.words.tokenize(prompts, self.n_ctx, bos)

    def token_ids(self, text: str) -> tuple[int, ...]:
        return self.words.ids(text)

    def token_strings(self, ids: Sequence[int]) -> tuple[str, ...]:
        return self.words.named(ids)

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
                logits = self._forward(visits, stop=logits_at is None)
        reads, fired = visits.result()
        if logits is not None:
            finite_or_raise("the logits", logits.detach())
        return Run(reads, logits if positions is None or logits is None else at_positions(logits, positions), fired)

    def _forward(self, visits: Visits, *, stop: bool) -> Float[Tensor, "B T V"] | None:
        w, tokens = self.weights, visits.tokens
        ids = pad_ids(tokens, 0, w.embedding.device)
        return _forward(w, ids, _hidden(w, ids, tokens.lengths), visits, stop=stop)

    def generate(
        self, tokens: Tokens, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0,
        edits: Sequence[Edit] = (),
    ) -> tuple[tuple[int, ...], ...]:  # fmt: skip
        """See `Model.generate`."""
        if not self.weights.causal:
            raise Unsupported(
                f"{self.info.name} sees the whole row at once and answers at every position; it does not continue "
                "text. Read its logits instead (logit_lens, check_prompts), or generate with a causal model."
            )
        Visits(tokens, (), edits, self.info.shape)  # the checks, before anything runs
        return generate(
            uncached(self), tokens, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, edits=edits,
            n_ctx=self.n_ctx, stop=(),
        )  # fmt: skip

    def close(self) -> None:
        """Free the weights."""
        self._weights = None


class _Stops(Protocol):
    """What a forward pass stops by at."""

    @property
    def done(self) -> bool: ...
    def at(self, site: Site, x: Tensor, /) -> Tensor: ...


class _Unwatched:
    """Nobody looks."""

    done = False

    def at(self, site: Site, x: Tensor, /) -> Tensor:
        return x


def plain_logits(w: ToyWeights, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
    """The model's logits on rows of one length, differentiable by the weights: what training runs."""
    hidden = _hidden(w, ids, [ids.shape[1]] * ids.shape[0])
    logits = _forward(w, ids, hidden, _Unwatched(), stop=False)
    assert logits is not None, "it was not to stop"
    return logits


def _forward(
    w: ToyWeights, ids: Int[Tensor, "B T"], hidden: Bool[Tensor, "*rest T"], stops: _Stops, *, stop: bool
) -> Float[Tensor, "B T V"] | None:
    """The whole model, or as much of it as is needed when it may stop."""
    x = w.embedding[ids]
    if w.positions is not None:
        x = x + w.positions[: ids.shape[1]]
    x = stops.at(Site("embed"), x)
    for layer, block in enumerate(w.blocks):
        if stop and stops.done:
            return None
        x = _block(block, ACTIVATIONS[w.activation], layer, x, hidden, stops)
    if stop and stops.done:
        return None
    x = stops.at(Site("final_norm"), w.norm(x))
    return stops.at(Site("logits"), _plus(x @ w.unembedding, w.unembedding_bias))


def _block(
    block: ToyBlock, activation: Callable[[Tensor], Tensor], layer: int, x: Float[Tensor, "B T D"],
    hidden: Bool[Tensor, "*rest T"], stops: _Stops,
) -> Float[Tensor, "B T D"]:  # fmt: skip
    def at(kind: SiteKind, y: Tensor) -> Tensor:
        return stops.at(Site(kind, layer), y)

    x = at("resid_pre", x)
    x = at("resid_mid", x + at("attn_out", _attention(block, block.attention_norm(x), hidden, at)))
    if block.mlp_in is not None and block.mlp_out is not None:
        neurons = activation(_plus(block.mlp_norm(x) @ block.mlp_in, block.mlp_in_bias))
        x = x + at("mlp_out", _plus(at("neuron", neurons) @ block.mlp_out, block.mlp_out_bias))
    return at("resid_post", x)


def _attention(
    block: ToyBlock, x: Float[Tensor, "B T D"], hidden: Bool[Tensor, "*rest T"],
    at: Callable[[SiteKind, Tensor], Tensor],
) -> Float[Tensor, "B T D"]:  # fmt: skip
    q = at("q", _plus(torch.einsum("btd,ndh->btnh", x, block.q), block.q_bias))
    k = at("k", _plus(torch.einsum("btd,ndh->btnh", x, block.k), block.k_bias))
    v = at("v", _plus(torch.einsum("btd,ndh->btnh", x, block.v), block.v_bias))
    if k.shape[2] < q.shape[2]:
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqnh,bknh->bnqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(hidden, torch.finfo(x.dtype).min)
    pattern = at("pattern", at("scores", scores).softmax(-1))
    z = at("head", torch.einsum("bnqk,bknh->bqnh", pattern, v))
    return _plus(torch.einsum("btnh,nhd->btd", z, block.o), block.o_bias)


def _hidden(w: ToyWeights, ids: Int[Tensor, "B T"], lengths: Sequence[int]) -> Bool[Tensor, "*rest T"]:
    """Keys that a query must not see: those after it; where all are seen, the padding."""
    width = ids.shape[1]
    if w.causal:
        return torch.ones(width, width, dtype=torch.bool, device=ids.device).triu(1)
    ends = torch.tensor(lengths, device=ids.device)
    return (torch.arange(width, device=ids.device) >= ends[:, None])[:, None, None]


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
    found += [("unembedding_bias", w.unembedding_bias)]
    return [(name, tensor) for name, tensor in found if tensor is not None]


def _info(w: ToyWeights, name: str, source: str, n_ctx: int, words: Words) -> ModelInfo:
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
        attention="eager", tokenizer="words", adds_bos=words.bos is not None, causal=w.causal,
        sites=tuple(kind for kind in KINDS if kind not in without_mlp), weights_hash=fingerprint(_tensors(w)),
        load_seconds=0.0,
    )  # fmt: skip
