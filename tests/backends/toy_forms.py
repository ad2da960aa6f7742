"""The same weights in two forms: a toy's as a Hugging Face GPT-2, and a GPT-2's as a toy."""

from __future__ import annotations

from typing import Any

import torch
from anatomist.model.backends.hf_weights import HFWeights
from anatomist.model.backends.toy import ToyBlock, ToyModel, ToyWeights
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

CARRIER = 1e4


def toy_of_gpt2(weights: HFWeights, name: str = "toy-of-gpt2") -> ToyModel:
    """A GPT-2's own weights in the toy backend: layer norm, learned positions, biases, a tanh-approximated GELU."""
    blocks = tuple(
        ToyBlock(
            q=weights.q(i), k=weights.k(i), v=weights.v(i), o=weights.o(i),
            q_bias=weights.qkv_bias(i, "q"), k_bias=weights.qkv_bias(i, "k"), v_bias=weights.qkv_bias(i, "v"),
            o_bias=weights.o_bias(i), mlp_in=weights.mlp_in(i), mlp_in_bias=weights.mlp_in_bias(i),
            mlp_out=weights.mlp_out(i), mlp_out_bias=weights.mlp_out_bias(i),
            attention_norm=weights.attention_norm(i), mlp_norm=weights.mlp_norm(i),
        )
        for i in range(len(weights.anatomy.blocks))
    )  # fmt: skip
    return ToyModel(
        ToyWeights(
            embedding=weights.embed(), positions=weights.position_embed(), blocks=blocks, norm=weights.final_norm(),
            unembedding=weights.unembed(), activation="gelu_tanh",
        ),
        name=name,
    )  # fmt: skip


def gpt2_of_toy(toy: ToyModel) -> PreTrainedModel:
    """An attention-only toy without norms as a GPT-2 in double precision that computes the same.

    GPT-2's layer norm subtracts the mean and divides by the standard deviation. The residual becomes
    [x, -x, C, -C, 0...]: its mean is exactly 0 and its variance 2 (|x|^2 + C^2) / width, so that with a norm weight of
    C sqrt(2 / width) the norm returns x (1 - |x|^2 / 2C^2 + ...), which is x to 1e-7 for C = 1e4 and |x| of a few.
    """
    w, info = toy.weights, toy.info
    d, heads = info.d_model, info.n_heads
    d_head = max(info.d_head, -(-(2 * d + 2) // heads))
    width = heads * d_head
    config = GPT2Config(
        vocab_size=info.d_vocab, n_positions=info.n_ctx, n_embd=width, n_layer=info.n_layers, n_head=heads, n_inner=1,
        layer_norm_epsilon=0.0, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double().requires_grad_(False).eval()
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    state["transformer.wte.weight"] = _carried(w.embedding.double(), width)
    if w.positions is not None:
        state["transformer.wpe.weight"] = _mirrored(w.positions.double(), width)
    state["lm_head.weight"][:, :d] = w.unembedding.double().T
    for name in state:
        if ".ln_" in name and name.endswith("weight"):
            state[name] += CARRIER * (2 / width) ** 0.5
    for i, block in enumerate(w.blocks):
        _attention(state, f"transformer.h.{i}.attn.", block, width, d_head)
    model.load_state_dict(state)
    return model


def _attention(state: dict[str, Any], prefix: str, block: ToyBlock, width: int, d_head: int) -> None:
    n, d, narrow = block.q.shape
    fused = torch.zeros(width, 3, n, d_head, dtype=torch.float64)
    scale = (d_head / narrow) ** 0.5  # scores are divided by the root of the wider head
    for part, matrix in enumerate((block.q * scale, block.k, block.v)):
        fused[:d, part, :, :narrow] = matrix.double().transpose(0, 1)
    state[prefix + "c_attn.weight"] = fused.flatten(1)
    out = torch.zeros(n, d_head, width, dtype=torch.float64)
    out[:, :narrow] = _mirrored(block.o.double(), width)
    state[prefix + "c_proj.weight"] = out.flatten(0, 1)


def _mirrored(x: torch.Tensor, width: int) -> torch.Tensor:
    """[x, -x, 0...]"""
    rest = x.new_zeros(*x.shape[:-1], width - 2 * x.shape[-1])
    return torch.cat([x, -x, rest], dim=-1)


def _carried(x: torch.Tensor, width: int) -> torch.Tensor:
    """[x, -x, C, -C, 0...]"""
    out, d = _mirrored(x, width), x.shape[-1]
    out[..., 2 * d], out[..., 2 * d + 1] = CARRIER, -CARRIER
    return out
