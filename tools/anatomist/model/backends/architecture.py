"""Which module is what, in each family of Hugging Face causal language models: `anatomy_of(model)`.

To be called on the plain model, before a library wraps it. A family is added by one reader of its block and one line
in READERS; the shapes and the orientation are then the same for everyone (`blocks.py`, `hf_weights.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...errors import Unsupported
from .blocks import Affine, Anatomy, Block, Heads, LeafNorm, Sizes
from .hf_weights import HFWeights

__all__ = ["READERS", "Anatomy", "HFWeights", "anatomy_of", "try_anatomy"]

Module = Any  # submodules are reached by the names of their own architecture


class Head(NamedTuple):
    """What stands outside the blocks."""

    inner: Module
    layers: nn.ModuleList
    embedding: nn.Module
    positions: nn.Module | None
    rotary: nn.Module | None
    final_norm: nn.Module
    lm_head: nn.Module


def anatomy_of(model: nn.Module) -> Anatomy:
    """Take a plain causal language model apart.

    Raises:
        Unsupported: an architecture that is not known here, or a variant that changes the arithmetic.
    """
    name = type(model).__name__
    if name not in READERS:
        raise Unsupported(
            f"the anatomy of {name} is not known; known are {', '.join(sorted(READERS))}. "
            "Reading and editing still work through the generic path; weights and fast sweeps do not, on any "
            "backend: take a model of one of those for them."
        )
    return READERS[name](model)


def try_anatomy(model: nn.Module) -> tuple[Anatomy | None, str]:
    """The anatomy, or none and the reason."""
    try:
        return anatomy_of(model), ""
    except Unsupported as error:
        return None, str(error)


def _llama(model: Module) -> Anatomy:
    """Llama, Mistral, Qwen 2 and 3: norms before, rotary positions, grouped keys and values, a gated MLP."""
    inner = model.model
    head = Head(inner, inner.layers, inner.embed_tokens, None, inner.rotary_emb, inner.norm, model.lm_head)
    return _assemble("llama", model, head, _llama_block)


def _llama_block(model: Module, layer: Module) -> Block:
    at, mlp, config = layer.self_attn, layer.mlp, model.config
    window = getattr(at, "sliding_window", None)
    if type(model).__name__ == "MistralForCausalLM":
        window = config.sliding_window
    return Block(
        module=layer, attention=at, mlp=mlp, **_separate(at, config), o=Affine.of(at.o_proj), **_gated(mlp),
        attention_norm=_norm(layer.input_layernorm), mlp_norm=_norm(layer.post_attention_layernorm),
        post_attention_norm=None, post_mlp_norm=None,
        q_norm=_maybe_norm(getattr(at, "q_norm", None)), k_norm=_maybe_norm(getattr(at, "k_norm", None)),
        scaling=at.scaling, window=window, score_cap=None, rotary_kind=None,
    )  # fmt: skip


def _gemma(model: Module) -> Anatomy:
    """Gemma 1 to 3 (text): a scaled embedding and norm weights stored minus one; from 2 on norms around each part."""
    inner = model.model
    if getattr(model.config, "use_bidirectional_attention", None):
        raise Unsupported(
            "this Gemma attends in both directions; sweeps and weights here need a causal model. "
            "Load a checkpoint without use_bidirectional_attention."
        )
    head = Head(inner, inner.layers, inner.embed_tokens, None, inner.rotary_emb, inner.norm, model.lm_head)
    return _assemble("gemma", model, head, _gemma_block, plus_one=True)


def _gemma_block(model: Module, layer: Module) -> Block:
    at, mlp, config = layer.self_attn, layer.mlp, model.config
    around = hasattr(layer, "pre_feedforward_layernorm")
    several = type(model).__name__.startswith("Gemma3")
    q_norm, k_norm = getattr(at, "q_norm", None), getattr(at, "k_norm", None)
    mlp_norm = layer.pre_feedforward_layernorm if around else layer.post_attention_layernorm
    return Block(
        module=layer, attention=at, mlp=mlp, **_separate(at, config), o=Affine.of(at.o_proj), **_gated(mlp),
        attention_norm=_norm(layer.input_layernorm, plus_one=True), mlp_norm=_norm(mlp_norm, plus_one=True),
        post_attention_norm=_norm(layer.post_attention_layernorm, plus_one=True) if around else None,
        post_mlp_norm=_norm(layer.post_feedforward_layernorm, plus_one=True) if around else None,
        q_norm=_maybe_norm(q_norm, plus_one=True), k_norm=_maybe_norm(k_norm, plus_one=True),
        scaling=at.scaling, window=getattr(at, "sliding_window", None),
        # transformers stores a score cap on Gemma 3's attention and does not apply it
        score_cap=None if several else getattr(at, "attn_logit_softcapping", None),
        rotary_kind=at.layer_type if several else None,
    )  # fmt: skip


def _gpt2(model: Module) -> Anatomy:
    """GPT-2: layer norm, learned positions, one matrix for queries, keys and values stored [in, out]."""
    if model.config.add_cross_attention:
        raise Unsupported("this GPT-2 has cross-attention; only decoder-only models are known. Load one without it.")
    inner = model.transformer
    head = Head(inner, inner.h, inner.wte, inner.wpe, None, inner.ln_f, model.lm_head)
    return _assemble("gpt2", model, head, _gpt2_block)


def _gpt2_block(model: Module, layer: Module) -> Block:
    at, mlp = layer.attn, layer.mlp
    return Block(
        module=layer, attention=at, mlp=mlp, **_fused(at.c_attn, model.config, "thirds"), o=Affine.of(at.c_proj),
        mlp_in=Affine.of(mlp.c_fc), mlp_gate=None, mlp_out=Affine.of(mlp.c_proj), activation=mlp.act,
        attention_norm=_norm(layer.ln_1), mlp_norm=_norm(layer.ln_2), post_attention_norm=None, post_mlp_norm=None,
        q_norm=None, k_norm=None, scaling=at.scaling, window=None, score_cap=None, rotary_kind=None,
    )  # fmt: skip


def _neox(model: Module) -> Anatomy:
    """GPT-NeoX and Pythia: part of each head rotated, queries, keys and values interleaved by head."""
    inner = model.gpt_neox
    lm_head = getattr(model, "embed_out", None) or model.lm_head
    head = Head(inner, inner.layers, inner.embed_in, None, inner.rotary_emb, inner.final_layer_norm, lm_head)
    return _assemble("gpt_neox", model, head, _neox_block, parallel=model.config.use_parallel_residual)


def _neox_block(model: Module, layer: Module) -> Block:
    at, mlp = layer.attention, layer.mlp
    return Block(
        module=layer, attention=at, mlp=mlp, **_fused(at.query_key_value, model.config, "interleaved"),
        o=Affine.of(at.dense), mlp_in=Affine.of(mlp.dense_h_to_4h), mlp_gate=None,
        mlp_out=Affine.of(mlp.dense_4h_to_h), activation=mlp.act, attention_norm=_norm(layer.input_layernorm),
        mlp_norm=_norm(layer.post_attention_layernorm), post_attention_norm=None, post_mlp_norm=None,
        q_norm=None, k_norm=None, scaling=at.scaling, window=None, score_cap=None, rotary_kind=None,
    )  # fmt: skip


def _phi(model: Module) -> Anatomy:
    """Phi 1 and 2: attention and MLP side by side behind one layer norm, part of each head rotated."""
    inner = model.model
    head = Head(inner, inner.layers, inner.embed_tokens, None, inner.rotary_emb, inner.final_layernorm, model.lm_head)
    return _assemble("phi", model, head, _phi_block, parallel=True)


def _phi_block(model: Module, layer: Module) -> Block:
    at, mlp = layer.self_attn, layer.mlp
    norm = _norm(layer.input_layernorm)
    return Block(
        module=layer, attention=at, mlp=mlp, **_separate(at, model.config), o=Affine.of(at.dense),
        mlp_in=Affine.of(mlp.fc1), mlp_gate=None, mlp_out=Affine.of(mlp.fc2), activation=mlp.activation_fn,
        attention_norm=norm, mlp_norm=norm, post_attention_norm=None, post_mlp_norm=None,
        q_norm=_maybe_norm(getattr(at, "q_layernorm", None)), k_norm=_maybe_norm(getattr(at, "k_layernorm", None)),
        scaling=at.scaling, window=None, score_cap=None, rotary_kind=None,
    )  # fmt: skip


READERS: dict[str, Callable[[Module], Anatomy]] = {
    "GPT2LMHeadModel": _gpt2,
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _llama,
    "Qwen2ForCausalLM": _llama,
    "Qwen3ForCausalLM": _llama,
    "GPTNeoXForCausalLM": _neox,
    "GemmaForCausalLM": _gemma,
    "Gemma2ForCausalLM": _gemma,
    "Gemma3ForCausalLM": _gemma,
    "PhiForCausalLM": _phi,
}


def _assemble(
    family: str,
    model: Module,
    head: Head,
    read: Callable[[Module, Module], Block],
    *,
    parallel: bool = False,
    plus_one: bool = False,
) -> Anatomy:
    blocks = tuple(read(model, layer) for layer in head.layers)
    first = blocks[0]
    table: Tensor = head.embedding.weight  # type: ignore[assignment]
    vocabulary, width = table.shape
    return Anatomy(
        family=family,
        model=model,
        sizes=Sizes(
            n_layers=len(blocks), d_model=width, n_heads=first.q.n, n_kv_heads=first.k.n, d_head=first.q.d_head,
            d_mlp=first.mlp_in.weight.shape[1], d_vocab=vocabulary, n_ctx=model.config.max_position_embeddings,
        ),
        embedding=head.embedding,
        embed_scale=float(getattr(head.embedding, "scalar_embed_scale", 1.0)),
        position_embedding=head.positions,
        rotary=head.rotary,
        blocks=blocks,
        parallel=parallel,
        final_norm=_norm(head.final_norm, plus_one=plus_one),
        lm_head=Affine.of(head.lm_head),
        logit_cap=getattr(model.config, "final_logit_softcapping", None),
    )  # fmt: skip


def _separate(at: Module, config: Module) -> dict[str, Heads]:
    n, kv = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return {
        "q": Heads(Affine.of(at.q_proj), n, at.head_dim),
        "k": Heads(Affine.of(at.k_proj), kv, at.head_dim),
        "v": Heads(Affine.of(at.v_proj), kv, at.head_dim),
    }


def _fused(module: nn.Module, config: Module, layout: Any) -> dict[str, Heads]:
    linear, n = Affine.of(module), config.num_attention_heads
    width = config.hidden_size // n
    return {name: Heads(linear, n, width, layout, third) for third, name in enumerate(("q", "k", "v"))}


def _gated(mlp: Module) -> dict[str, Any]:
    return {
        "mlp_in": Affine.of(mlp.up_proj), "mlp_gate": Affine.of(mlp.gate_proj), "mlp_out": Affine.of(mlp.down_proj),
        "activation": mlp.act_fn,
    }  # fmt: skip


def _norm(module: Module, *, plus_one: bool = False) -> LeafNorm:
    if isinstance(module, nn.LayerNorm):
        return LeafNorm(module, "layer", module.eps)
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return LeafNorm(module, "rms", float(eps), plus_one)


def _maybe_norm(module: Module | None, *, plus_one: bool = False) -> LeafNorm | None:
    return None if module is None else _norm(module, plus_one=plus_one)
