"""Tiny random models of several families, each built from a configuration: nothing to download, nothing trained.

Norm weights and biases are drawn too, so that a wrong orientation, a forgotten bias or a forgotten (1 + w) shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 97
CONTEXT = 64


def randomised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Every parameter drawn anew: matrices with gain about one, norm weights around one, biases away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:  # norm weights; Gemma's are offsets from one, and are moved away from zero as well
                parameter.copy_(1.0 + 0.4 * noise)
    model.set_attn_implementation("eager")
    return model.eval().requires_grad_(False)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=32, n_layer=3, n_head=4)
    return randomised(GPT2LMHeadModel(config))


def llama() -> PreTrainedModel:
    config = LlamaConfig(**_sizes(), num_key_value_heads=2)
    return randomised(LlamaForCausalLM(config))


def gpt_neox() -> PreTrainedModel:
    config = GPTNeoXConfig(
        **_sizes(), rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    return randomised(GPTNeoXForCausalLM(config))


def gemma3() -> PreTrainedModel:
    """Sliding windows of four tokens in two layers of three, head width apart from d_model / heads."""
    config = Gemma3TextConfig(
        **_sizes(), num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return randomised(Gemma3ForCausalLM(config))


def qwen2() -> PreTrainedModel:
    config = Qwen2Config(**_sizes(), num_key_value_heads=2)
    return randomised(Qwen2ForCausalLM(config))


def qwen3() -> PreTrainedModel:
    config = Qwen3Config(**_sizes(), num_key_value_heads=2, head_dim=12)
    return randomised(Qwen3ForCausalLM(config))


def _sizes() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": CONTEXT,
    }  # fmt: skip


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2, "llama": llama, "gpt_neox": gpt_neox, "gemma3": gemma3, "qwen2": qwen2, "qwen3": qwen3,
}  # fmt: skip
