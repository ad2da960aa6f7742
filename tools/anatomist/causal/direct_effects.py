"""What each part of the final residual adds to a logit difference, with every norm on its way frozen.

B rows, read at one position each; D model width; H heads; F MLP width. With x the final residual, u the unembedding of
the answer minus that of the wrong token, and a norm y = C x / s(x) * w + b (C centres in layer norms, else C = 1):

    logit difference = (C x / s * w + b) . u + bias        a part p of x adds p . d,  d = C (w * u) / s(x)

Freezing s at the whole residual's value makes the split exact. A norm between a sublayer and the residual (Gemma) is
frozen the same way, at the sublayer's whole output. Source: Elhage et al. 2021, "A mathematical framework for
transformer circuits"; Wang et al., arXiv 2211.00593, appendix (the logit difference as a direction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from einops import einsum

from ..measures.metrics import widened
from ..model.protocol import Model, Norm, Weights
from ..model.sites import Site
from ..model.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Split(NamedTuple):
    """A sublayer's output taken apart; every number is in logits."""

    units: Tensor  # [B, H] or [B, F]
    bias: Tensor | None  # [B]; of the output matrix and of the norm after it


class Effects(NamedTuple):
    """Terms of the logit difference of every row, and what they are checked against."""

    sites: Mapping[str, Tensor]  # name -> [B]; these alone add up to the logit difference
    heads: Mapping[int, Split]  # layer -> its attn_out by head
    neurons: Mapping[int, Split]  # layer -> its mlp_out by neuron, of the layers asked for
    mlp_bias: Mapping[int, Tensor]  # layer -> [B], where there is one
    logit_diff: Float[Tensor, " B"]  # from the model's own final norm, before any soft-cap
    capped: Float[Tensor, " B"]  # the same after the soft-cap, worked out here
    given: Float[Tensor, " B"]  # from the model's logits


def sites_read(model: Model, neuron_layers: Sequence[int]) -> list[Site]:
    """The places that a split needs."""
    info = model.info
    last = info.n_layers - 1
    kinds = [kind for kind in ("head", "attn_out", "mlp_out") if kind in info.shape.kinds]
    found = [Site("embed"), *(Site(kind, layer) for layer in range(info.n_layers) for kind in kinds)]
    behind_norm = [layer for layer in range(info.n_layers) if "mlp_out" in kinds and _biased_behind_norm(model, layer)]
    found += [Site("neuron", layer) for layer in sorted({*neuron_layers, *behind_norm})]
    return [*found, Site("resid_post", last), Site("final_norm")]


def _biased_behind_norm(model: Model, layer: int) -> bool:
    """Whether an MLP bias passes a norm, whose scale then has to be known."""
    return model.weights.mlp_out_bias(layer) is not None and model.weights.post_mlp_norm(layer) is not None


def direct_effects(
    model: Model, tokens: Tokens, answers: Sequence[int], wrongs: Sequence[int], neuron_layers: Sequence[int] = ()
) -> Effects:
    """Every term of answer minus wrong at each row's last token, one answer and one wrong token a row.

    Raises:
        Unsupported: the backend knows no weights of this architecture.
    """
    weights, layers = model.weights, range(model.info.n_layers)
    ran = model.run(tokens, read=sites_read(model, neuron_layers), logits_at=tokens.last)
    rows = list(range(tokens.n_rows))
    at = {site: widened(x[rows, list(tokens.last)]) for site, x in ran.reads.items()}
    contrast, constant = _contrast(weights, answers, wrongs)
    norm = wide(weights.final_norm())
    direction = pulled_back(norm, contrast, norm.scale(at[Site("resid_post", layers[-1])]))
    sites = _embedding(weights, tokens, at[Site("embed")], direction)
    for layer in layers:
        for kind in ("attn_out", "mlp_out"):
            if (site := Site(kind, layer)) in at:
                sites[str(site)] = (at[site] * direction).sum(-1)
    if norm.bias is not None:
        sites["final_norm bias"] = (norm.bias * contrast).sum(-1)
    if constant is not None:
        sites["unembedding bias"] = constant
    heads = {layer: _heads(weights, layer, at[Site("head", layer)], direction) for layer in layers}
    mlps = {layer: _neurons(weights, layer, at[Site("neuron", layer)], direction) for layer in layers
            if Site("neuron", layer) in at}  # fmt: skip
    logits = ran.logits
    assert logits is not None
    before = [
        (at[Site("final_norm")] * widened(weights.unembed(ids)).T).sum(-1) + _bias_of(weights, ids, direction)
        for ids in (answers, wrongs)
    ]
    capped = [_soft_capped(x, weights.logit_softcap()) for x in before]
    given = [widened(logits[rows, list(ids)]) for ids in (answers, wrongs)]
    return Effects(
        sites=sites,
        heads=heads,
        neurons={layer: mlps[layer] for layer in neuron_layers},
        mlp_bias=_mlp_biases(weights, layers, mlps, direction) if Site("mlp_out", 0) in at else {},
        logit_diff=before[0] - before[1],
        capped=capped[0] - capped[1],
        given=given[0] - given[1],
    )


def pulled_back(
    norm: Norm, direction: Float[Tensor, "B D"], scale: Float[Tensor, "B 1"]
) -> Float[Tensor, "B D"]:
    """The direction before a frozen norm: part . pulled_back = norm.frozen(part, scale) . direction for every part."""
    weighted = direction if norm.weight is None else direction * norm.weight
    return replace(norm, weight=None, bias=None).frozen(weighted, scale)


def wide(norm: Norm) -> Norm:
    """The norm with its weights in at least float32."""
    weight, bias = (None if x is None else widened(x) for x in (norm.weight, norm.bias))
    return replace(norm, weight=weight, bias=bias)


def _contrast(
    weights: Weights, answers: Sequence[int], wrongs: Sequence[int]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"] | None]:
    """Unembedding of the answer minus that of the wrong token, and of their biases."""
    contrast = widened(weights.unembed(answers)) - widened(weights.unembed(wrongs))
    right, wrong = weights.unembed_bias(answers), weights.unembed_bias(wrongs)
    return contrast.T, None if right is None or wrong is None else widened(right) - widened(wrong)


def _bias_of(weights: Weights, ids: Sequence[int], like: Tensor) -> Tensor:
    bias = weights.unembed_bias(ids)
    return like.new_zeros(len(ids)) if bias is None else widened(bias)


def _soft_capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * (x / cap).tanh()


def _embedding(
    weights: Weights, tokens: Tokens, embed: Float[Tensor, "B D"], direction: Float[Tensor, "B D"]
) -> dict[str, Tensor]:
    """What enters block 0: the token's embedding, and the position's where it is learned."""
    positions = weights.position_embed()
    if positions is None:
        return {"embed": (embed * direction).sum(-1)}
    token = widened(weights.embed()[[row[-1] for row in tokens.ids]])
    position = widened(positions[list(tokens.last)])
    return {"embed": (token * direction).sum(-1), "position_embed": (position * direction).sum(-1)}


def _heads(weights: Weights, layer: int, z: Float[Tensor, "B H h"], direction: Float[Tensor, "B D"]) -> Split:
    """attn_out of one layer by head; a norm after it is frozen at the scale of all heads together."""
    o, bias = widened(weights.o(layer)), weights.o_bias(layer)
    raw = einsum(z, o, "b n h, n h d -> b d")
    before, constant = _before_norm(weights.post_attention_norm(layer), raw, bias, direction)
    return Split(einsum(z, o, before, "b n h, n h d, b d -> b n"), constant)


def _neurons(weights: Weights, layer: int, active: Float[Tensor, "B F"], direction: Float[Tensor, "B D"]) -> Split:
    """mlp_out of one layer by neuron."""
    out, bias = weights.mlp_out(layer), weights.mlp_out_bias(layer)
    assert out is not None
    raw = active @ widened(out)
    before, constant = _before_norm(weights.post_mlp_norm(layer), raw, bias, direction)
    return Split(active * (before @ widened(out).T), constant)


def _before_norm(
    post: Norm | None, raw: Float[Tensor, "B D"], bias: Tensor | None, direction: Float[Tensor, "B D"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"] | None]:
    """The direction as the sublayer's output matrix sees it, and what the biases write along it."""
    whole = raw if bias is None else raw + widened(bias)
    before, constant = direction, None
    if post is not None:
        norm = wide(post)
        before = pulled_back(norm, direction, norm.scale(whole))
        constant = None if norm.bias is None else (norm.bias * direction).sum(-1)
    if bias is not None:
        own = (widened(bias) * before).sum(-1)
        constant = own if constant is None else own + constant
    return before, constant


def _mlp_biases(
    weights: Weights, layers: Sequence[int], mlps: Mapping[int, Split], direction: Float[Tensor, "B D"]
) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for layer in layers:
        bias = weights.mlp_out_bias(layer)
        if layer in mlps:
            term = mlps[layer].bias
        else:
            term = None if bias is None else (widened(bias) * direction).sum(-1)
        if term is not None:
            found[layer] = term
    return found
