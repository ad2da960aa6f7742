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
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

from einops import einsum

from ..errors import BadPrompts, ParityError
from ..measures.metrics import widened
from ..model.edits import Edit
from ..model.protocol import Model, Norm, Weights
from ..model.sites import Site, SiteKind
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts, Ids
from ..result import SelfTest

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Term(NamedTuple):
    """One term of the sum."""

    name: str
    part_of: str | None  # the site it is a part of; None: one of those that add up to the logit difference


class Effects(NamedTuple):
    """Terms of the logit difference of every row, in logits, and what they are checked against."""

    terms: tuple[Term, ...]
    values: Float[Tensor, "B C"]  # one column a term
    logit_diff: Float[Tensor, " B"]  # from the model's own final norm, before any soft-cap
    capped: Float[Tensor, " B"]  # the same after the soft-cap, worked out here
    given: Float[Tensor, " B"]  # from the model's logits
    final: Float[Tensor, "B D"]  # the last residual at the position read


class Split(NamedTuple):
    """A sublayer's output taken apart."""

    units: Tensor  # [B, H] or [B, F]
    bias: Tensor | None  # [B]; of the output matrix and of the norm after it


def single_answers(prompts: EncodedPrompts) -> tuple[list[int], list[int]]:
    """The answer and the wrong token of every prompt.

    Raises:
        BadPrompts: one is a set.
    """
    for part, sets in (("answer", prompts.answers), ("wrong", prompts.wrongs)):
        several = [row for row, ids in enumerate(sets or ()) if len(ids) > 1]
        if several:
            raise BadPrompts(
                f"the `{part}` of {len(several)} of {prompts.n} prompts is a set (first: prompt {several[0]}); the log "
                "of a sum of exponentials does not split into terms. Give one token each, or use patch_activations."
            )
    return _first(prompts.answers), _first(prompts.wrongs)


def _first(sets: Ids | None) -> list[int]:
    assert sets is not None
    return [ids[0] for ids in sets]


def sites_read(model: Model, neuron_layers: Sequence[int]) -> list[Site]:
    """The places that a split needs."""
    info = model.info
    last = info.n_layers - 1
    wanted: tuple[SiteKind, ...] = ("head", "attn_out", "mlp_out")
    kinds: list[SiteKind] = [kind for kind in wanted if kind in info.sites]
    found = [Site("embed"), *(Site(kind, layer) for layer in range(info.n_layers) for kind in kinds)]
    behind_norm = [layer for layer in range(info.n_layers) if "mlp_out" in kinds and _biased_behind_norm(model, layer)]
    found += [Site("neuron", layer) for layer in sorted({*neuron_layers, *behind_norm})]
    return [*found, Site("resid_post", last), Site("final_norm")]


def _biased_behind_norm(model: Model, layer: int) -> bool:
    """Whether an MLP bias passes a norm, whose scale then has to be known."""
    return model.weights.mlp_out_bias(layer) is not None and model.weights.post_mlp_norm(layer) is not None


def direct_effects(
    model: Model, tokens: Tokens, answers: Sequence[int], wrongs: Sequence[int], neuron_layers: Sequence[int] = (),
    *, edits: Sequence[Edit] = (), scale_of: Float[Tensor, "B D"] | None = None,
) -> Effects:  # fmt: skip
    """Every term of answer minus wrong at each row's last token, one answer and one wrong token a row.

    With `edits` those of the edited run. `scale_of` is the final residual whose scale the final norm divides by, the
    run's own when absent: with another run's the terms add up to the logit difference under that run's frozen norm.

    Raises:
        Unsupported: the backend knows no weights of this architecture.
    """
    weights = model.weights
    ran = model.run(tokens, read=sites_read(model, neuron_layers), edits=edits, logits_at=tokens.last)
    rows, logits = list(range(tokens.n_rows)), ran.logits
    at = {site: widened(x[rows, list(tokens.last)]) for site, x in ran.reads.items()}
    norm, final = wide(weights.final_norm()), at[Site("resid_post", model.info.n_layers - 1)]
    contrast = (widened(weights.unembed(answers)) - widened(weights.unembed(wrongs))).T
    direction = pulled_back(norm, contrast, norm.scale(final if scale_of is None else scale_of))
    columns = _embedding(weights, tokens, at[Site("embed")], direction)
    for layer in range(model.info.n_layers):
        columns |= _layer(weights, layer, at, direction, layer in neuron_layers)
    if norm.bias is not None:
        columns[Term("final_norm bias", None)] = (norm.bias * contrast).sum(-1)
    every = weights.unembed_bias()
    if every is not None and bool(every.any()):  # wrapping a model can add a bias of zeros, which is no component
        columns[Term("unembedding bias", None)] = _bias(weights, answers, final) - _bias(weights, wrongs, final)
    sides = (answers, wrongs)
    normed = at[Site("final_norm")]
    before = [(normed * widened(weights.unembed(s)).T).sum(-1) + _bias(weights, s, final) for s in sides]
    capped = [_soft_capped(x, weights.logit_softcap()) for x in before]
    assert logits is not None
    given = [widened(logits[rows, list(s)]) for s in sides]
    return Effects(
        tuple(columns), stacked(columns), before[0] - before[1], capped[0] - capped[1], given[0] - given[1], final
    )


def _layer(
    weights: Weights, layer: int, at: Mapping[Site, Tensor], direction: Float[Tensor, "B D"], by_neuron: bool
) -> dict[Term, Tensor]:
    """The terms of one layer: each sublayer's output, then its parts."""
    attention, mlp = Site("attn_out", layer), Site("mlp_out", layer)
    heads = _heads(weights, layer, at[Site("head", layer)], direction)
    found = _sublayer(attention, at[attention], direction, heads, f"L{layer}H")
    if mlp not in at:
        return found
    active = at.get(Site("neuron", layer))
    if active is None:
        neurons = Split(direction[:, :0], _before_norm(None, direction, weights.mlp_out_bias(layer), direction)[1])
    else:
        neurons = _neurons(weights, layer, active, direction)
    if not by_neuron:
        neurons = neurons._replace(units=neurons.units[:, :0])
    return found | _sublayer(mlp, at[mlp], direction, neurons, f"L{layer}N")


def _sublayer(
    site: Site, out: Float[Tensor, "B D"], direction: Float[Tensor, "B D"], parts: Split, letter: str
) -> dict[Term, Tensor]:
    found = {Term(str(site), None): (out * direction).sum(-1)}
    found |= {Term(f"{letter}{i}", str(site)): parts.units[:, i] for i in range(parts.units.shape[1])}
    if parts.bias is not None:
        found[Term(f"{site} bias", str(site))] = parts.bias
    return found


def stacked(columns: Mapping[Term, Tensor]) -> Float[Tensor, "B C"]:
    """The terms side by side."""
    first = next(iter(columns.values()))
    out = first.new_empty((first.shape[0], len(columns)))
    for i, column in enumerate(columns.values()):
        out[:, i] = column
    return out


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


def _bias(weights: Weights, ids: Sequence[int], like: Tensor) -> Float[Tensor, " B"]:
    bias = weights.unembed_bias(ids)
    return like.new_zeros(len(ids)) if bias is None else widened(bias)


def _soft_capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * (x / cap).tanh()


def _embedding(
    weights: Weights, tokens: Tokens, embed: Float[Tensor, "B D"], direction: Float[Tensor, "B D"]
) -> dict[Term, Tensor]:
    """What enters block 0: the token's embedding, and the position's where it is learned."""
    positions = weights.position_embed()
    if positions is None:
        return {Term("embed", None): (embed * direction).sum(-1)}
    token = widened(weights.embed()[[row[-1] for row in tokens.ids]])
    position = widened(positions[list(tokens.last)])
    return {
        Term("embed", None): (token * direction).sum(-1), Term("position_embed", None): (position * direction).sum(-1),
    }  # fmt: skip


def _heads(weights: Weights, layer: int, z: Float[Tensor, "B H h"], direction: Float[Tensor, "B D"]) -> Split:
    """attn_out of one layer by head; a norm after it is frozen at the scale of all heads together."""
    o, bias = widened(weights.o(layer)), weights.o_bias(layer)
    raw = einsum(z, o, "b n h, n h d -> b d")
    before, constant = _before_norm(weights.post_attention_norm(layer), raw, bias, direction)
    return Split(einsum(z, o, before, "b n h, n h d, b d -> b n"), constant)


def of_changed_heads(
    weights: Weights, layer: int, z: Float[Tensor, "B H h"], change: Float[Tensor, "B H h"],
    direction: Float[Tensor, "B D"],
) -> Float[Tensor, "B H"]:  # fmt: skip
    """What changes of the heads' z add directly, a norm after attention frozen at z."""
    o, bias = widened(weights.o(layer)), weights.o_bias(layer)
    raw = einsum(z, o, "b n h, n h d -> b d")
    before, _ = _before_norm(weights.post_attention_norm(layer), raw, bias, direction)
    return einsum(change, o, before, "b n h, n h d, b d -> b n")


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


def self_tests(effects: Effects, tolerance: float) -> tuple[SelfTest, ...]:
    """The identities, on the worst prompt, relative to the larger of the logit difference and its largest term.

    Raises:
        ParityError: one does not hold.
    """
    whole = [i for i, term in enumerate(effects.terms) if term.part_of is None]
    largest = effects.values[:, whole].abs().amax(1).maximum(effects.logit_diff.abs()).clamp(min=1e-6)

    def test(name: str, gap: Tensor) -> SelfTest:
        found = float((gap.abs() / largest).max())
        return SelfTest(name=name, expected=0.0, found=found, tolerance=tolerance, passed=found <= tolerance)

    tests = [test("terms add up to the logit difference", effects.values[:, whole].sum(1) - effects.logit_diff)]
    for what, sites in taken_apart(effects.terms).items():
        gaps = [effects.values[:, parts].sum(1) - effects.values[:, site] for site, parts in sites]
        tests.append(test(f"{what} of each layer add up to its output", reduce(_larger, gaps)))
    tests.append(test("final norm and unembedding give the model's logits", effects.capped - effects.given))
    for failed in (t for t in tests if not t.passed):
        raise ParityError(
            f"{failed.name}: not so, the gap is {failed.found:.3g} of the largest term where {tolerance:g} is allowed. "
            "Load the model in float32 if it is not. Else it computes something that its weights here do not "
            "describe: use ablate, which needs no weights."
        )
    return tuple(tests)


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return a.abs().maximum(b.abs())


def taken_apart(terms: Sequence[Term]) -> dict[str, list[tuple[int, list[int]]]]:
    """Sites whose parts are all there, each with its parts: attention always, MLPs where neurons are told apart."""
    found: dict[str, list[tuple[int, list[int]]]] = {}
    for i, site in enumerate(terms):
        parts = [j for j, term in enumerate(terms) if term.part_of == site.name]
        if any(not terms[j].name.endswith("bias") for j in parts):
            what = "heads and bias" if site.name.endswith("attn_out") else "neurons and bias"
            found.setdefault(what, []).append((i, parts))
    return found
