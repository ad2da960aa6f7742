"""The anatomy and the weights of every family reproduce the plain model, head by head, from one orientation."""

from __future__ import annotations

import pytest
import torch
from anatomist.errors import Unsupported
from anatomist.model.backends.architecture import HFWeights, anatomy_of, try_anatomy
from anatomist.model.backends.blocks import Anatomy
from einops import einsum
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from tests.backends.families import FAMILIES, randomised

IDS = torch.tensor([[5, 9, 3, 77, 12, 40, 8], [1, 2, 3, 4, 5, 6, 7]])
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "attn_implementation": "eager",
}  # fmt: skip


def mistral() -> PreTrainedModel:
    return randomised(MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=3)))


def gemma2() -> PreTrainedModel:
    config = Gemma2Config(
        **SIZES, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=20, sliding_window=3,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    )  # fmt: skip
    return randomised(Gemma2ForCausalLM(config))


def phi() -> PreTrainedModel:
    return randomised(PhiForCausalLM(PhiConfig(**SIZES, num_key_value_heads=2, qk_layernorm=True)))


def neox_sequential() -> PreTrainedModel:
    return randomised(GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, use_parallel_residual=False)))


ALL = {**FAMILIES, "mistral": mistral, "gemma2": gemma2, "phi": phi, "neox_sequential": neox_sequential}


@pytest.mark.parametrize("family", ALL)
def test_weights_alone_reproduce_each_head_and_the_logits(family: str) -> None:
    """Rules out a transposed matrix, heads out of order, a norm weight without its 1, a missing bias or cap."""
    model = ALL[family]()
    anatomy = anatomy_of(model)
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(anatomy.blocks):
        block.o.module.register_forward_pre_hook(lambda _, args, i=i: seen.update({i: args[0]}))
    logits = model(IDS).logits
    found, z = forward_by_hand(anatomy)
    for i, mixed in enumerate(z):
        torch.testing.assert_close(mixed.flatten(-2), seen[i], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_are_views_of_the_models_own_parameters(family: str) -> None:
    model = FAMILIES[family]()
    weights = HFWeights(anatomy_of(model))
    stored = {p.untyped_storage().data_ptr() for p in model.parameters()}
    given = [weights.q(1), weights.k(1), weights.v(1), weights.o(1), weights.mlp_in(1), weights.mlp_out(1)]
    given += [weights.unembed()] + [m for m in (weights.mlp_gate(1), weights.position_embed()) if m is not None]
    for matrix in given:
        assert matrix.untyped_storage().data_ptr() in stored
        assert not matrix.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_columns_of_the_unembedding_are_those_of_the_tokens(family: str) -> None:
    weights = HFWeights(anatomy_of(FAMILIES[family]()))
    torch.testing.assert_close(weights.unembed([7, 3]), weights.unembed()[:, [7, 3]])


def test_the_anatomy_survives_replacement_of_the_models_submodules() -> None:
    """A library that wraps a model replaces its parts: the leaves held before stay as they were."""
    model = FAMILIES["llama"]()
    anatomy = anatomy_of(model)
    before, _ = forward_by_hand(anatomy)
    for layer in model.model.layers:
        layer.self_attn.q_proj = nn.Identity()
        layer.input_layernorm = nn.Identity()
    after, _ = forward_by_hand(anatomy)
    assert torch.equal(before, after)


@pytest.mark.bad_input
def test_an_unknown_architecture_is_refused_by_name_with_those_that_are_known() -> None:
    config = MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config)
    with pytest.raises(Unsupported, match="MambaForCausalLM is not known; known are GPT2LMHeadModel"):
        anatomy_of(model)
    anatomy, reason = try_anatomy(model)
    assert anatomy is None
    assert "generic path" in reason


def forward_by_hand(anatomy: Anatomy) -> tuple[Tensor, list[Tensor]]:
    """The whole model from the Weights protocol, written out without any fused kernel; z of every layer beside it."""
    weights = HFWeights(anatomy)
    x = weights.embed()[IDS]
    positions = weights.position_embed()
    x = x if positions is None else x + positions[: IDS.shape[1]]
    turns, mixed = anatomy.rotations(IDS.shape[1]), []
    for i in range(anatomy.sizes.n_layers):
        z = _attend(anatomy, weights, i, weights.attention_norm(i)(x), turns)
        mixed.append(z)
        attn = einsum(z, weights.o(i), "b t n h, n h d -> b t d") + _or_zero(weights.o_bias(i))
        post = weights.post_attention_norm(i)
        attn = attn if post is None else post(attn)
        mid = x if anatomy.parallel else x + attn
        mlp = _mlp(anatomy, weights, i, weights.mlp_norm(i)(mid))
        x = x + attn + mlp
    logits = weights.final_norm()(x) @ weights.unembed() + _or_zero(weights.unembed_bias())
    cap = weights.logit_softcap()
    return (logits if cap is None else cap * torch.tanh(logits / cap)), mixed


def _attend(anatomy: Anatomy, weights: HFWeights, i: int, x: Tensor, turns: dict) -> Tensor:
    block = anatomy.blocks[i]
    q, k, v = (
        einsum(x, getattr(weights, name)(i), "b t d, n d h -> b t n h") + _or_zero(weights.qkv_bias(i, name))
        for name in ("q", "k", "v")
    )
    if block.q_norm is not None and block.k_norm is not None:
        q, k = block.q_norm.norm()(q), block.k_norm.norm()(k)
    if turns:
        q, k = (_turn(t, *turns[block.rotary_kind]) for t in (q, k))
    groups = anatomy.sizes.n_heads // anatomy.sizes.n_kv_heads
    k, v = (t.repeat_interleave(groups, dim=2) for t in (k, v))
    scores = einsum(q, k, "b t n h, b s n h -> b n t s") * block.scaling
    if block.score_cap is not None:
        scores = block.score_cap * torch.tanh(scores / block.score_cap)
    apart = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    hidden = (apart < 0) | (apart >= (block.window or x.shape[1]))
    return einsum(scores.masked_fill(hidden, -torch.inf).softmax(-1), v, "b n t s, b s n h -> b t n h")


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    half = width // 2
    swapped = torch.cat([-part[..., half:], part[..., :half]], -1)
    return torch.cat([part * cos[:, None] + swapped * sin[:, None], rest], -1)


def _mlp(anatomy: Anatomy, weights: HFWeights, i: int, x: Tensor) -> Tensor:
    inner = x @ weights.mlp_in(i) + _or_zero(weights.mlp_in_bias(i))
    gate, act = weights.mlp_gate(i), anatomy.blocks[i].activation
    inner = act(inner) if gate is None else act(x @ gate) * inner
    out = inner @ weights.mlp_out(i) + _or_zero(weights.mlp_out_bias(i))
    post = weights.post_mlp_norm(i)
    return out if post is None else post(out)


def _or_zero(bias: Tensor | None) -> Tensor | float:
    return 0.0 if bias is None else bias
