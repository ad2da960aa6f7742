"""What was loaded: the facts about a plain Hugging Face model, read before any backend wraps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch

from ..protocol import Backend, ModelInfo
from ..sites import SiteKind
from .text import TextCodec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ALWAYS_PARALLEL = frozenset({"gptj", "codegen", "phi", "cohere", "cohere2"})


def fingerprint(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes of the weights, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str,
    source: str,
    backend: Backend,
    sites: tuple[SiteKind, ...],
    load_seconds: float,
    revision: str | None = None,
) -> ModelInfo:
    """The facts about a plain Hugging Face causal language model."""
    config = hf_model.config.get_text_config()
    heads = int(config.num_attention_heads)
    parameters = list(hf_model.named_parameters())  # tied weights are listed once
    return ModelInfo(
        name=name,
        source=source,
        backend=backend,
        architecture=type(hf_model).__name__,
        n_layers=int(config.num_hidden_layers),
        d_model=int(config.hidden_size),
        n_heads=heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        d_head=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        d_mlp=_mlp_width(config),
        d_vocab=int(config.vocab_size),
        n_ctx=int(config.max_position_embeddings),
        parameters=sum(p.numel() for _, p in parameters),
        weight_bytes=sum(p.numel() * p.element_size() for _, p in parameters),
        positional=_positional(hf_model),
        norm=_norm(hf_model),
        parallel=is_parallel(config),
        qk_norm=_has_module(hf_model, "q_norm"),
        post_norms=_has_module(hf_model, "post_feedforward_layernorm"),
        dtype=str(parameters[0][1].dtype).removeprefix("torch."),
        device=str(parameters[0][1].device),
        attention=str(config._attn_implementation),
        tokenizer=None if tokenizer is None else type(tokenizer).__name__,
        adds_bos=TextCodec(tokenizer, d_vocab=int(config.vocab_size), n_ctx=1).adds_bos,
        sites=sites,
        weights_hash=fingerprint(parameters),
        configuration=_configuration(hf_model),
        revision=revision,
        load_seconds=load_seconds,
    )


def _configuration(model: PreTrainedModel) -> str:
    """Equal for models that differ in their weights alone."""
    settings = model.config.to_dict()
    for unrelated in ("_name_or_path", "architectures", "dtype", "quantization_config", "transformers_version"):
        settings.pop(unrelated, None)
    text = json.dumps([type(model).__name__, model.config._attn_implementation, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_parallel(config: PretrainedConfig) -> bool:
    """Whether attention and MLP read the same residual."""
    if config.model_type in ALWAYS_PARALLEL:
        return True
    if config.model_type == "falcon":
        return bool(config.parallel_attn or config.new_decoder_architecture)
    return bool(getattr(config, "use_parallel_residual", False))


def _mlp_width(config: PretrainedConfig) -> int:
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return int(width or 4 * config.hidden_size)


def _has_module(model: PreTrainedModel, name: str) -> bool:
    return any(path.endswith("." + name) for path, _ in model.named_modules())


def _positional(model: PreTrainedModel) -> Literal["rotary", "learned", "none"]:
    if _has_module(model, "rotary_emb"):
        return "rotary"
    return "learned" if _has_module(model, "wpe") or _has_module(model, "embed_positions") else "none"


def _norm(model: PreTrainedModel) -> Literal["rms", "layer", "none"]:
    kinds = {type(module).__name__ for module in model.modules()}
    if any("RMSNorm" in kind for kind in kinds):
        return "rms"
    return "layer" if any("LayerNorm" in kind for kind in kinds) else "none"
