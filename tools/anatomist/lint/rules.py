# ruff: noqa: E501  # a table of words
"""The rules: what each library of the field removed, renamed, or lets pass without a word.

Each was seen by running it with transformer-lens 3.9, nnsight 0.7, nnterp 1.3, sae-lens 6.54 and mcp 2.3.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .reading import (
    Find,
    Place,
    Source,
    called,
    dotted,
    either,
    imported,
    is_constant,
    keyword,
    named_keyword,
    taken,
    text_of,
    with_keyword,
    written,
)  # fmt: skip
from .traces import batch_row, executed, one_line, out_of_order, threads, unsaved

_HOOK = re.compile(
    r"(hook_(embed|pos_embed|tokens)|ln_final(\.hook_(scale|normalized))?|unembed\.hook_(in|out)|embed\.hook_(in|out)"
    r"|blocks\.\d+\.(hook_(resid_pre|resid_mid|resid_post|attn_in|attn_out|mlp_in|mlp_out|q_input|k_input|v_input|in|out)"
    r"|(attn|self_attn|attention)\.(hook_(q|k|v|z|rot_q|rot_k|attn_scores|pattern|result|in|out|hidden_states)"
    r"|(q|k|v|o|qkv)\.hook_(in|out)|hook_attention_weights)"
    r"|mlp\.(hook_(pre|pre_linear|post|in|out|mid)|(in|out|gate)\.hook_(in|out))"
    r"|ln\d(_post)?\.hook_(scale|normalized|in|out)|ln\d(_post)?))"
)


@dataclass(frozen=True)
class Rule:
    """One thing to look for."""

    name: str
    wrong: str
    fix: str
    find: Find


def _hook_names(source: Source) -> Iterator[Place]:
    """Names of hook points that are written out; a filter or a name that is computed is not judged."""
    for call, argument in _with_hook_names(source):
        for node in _elements(source.value(argument)):
            named = node.elts[0] if isinstance(node, ast.Tuple) and node.elts else node
            text = text_of(named)
            if text is not None and not _HOOK.fullmatch(text):
                yield named if hasattr(named, "lineno") else call, ast.unparse(named)


def _with_hook_names(source: Source) -> Iterator[tuple[ast.Call, ast.expr | None]]:
    for name, argument in (("run_with_hooks", "fwd_hooks"), ("run_with_cache", "names_filter"), ("hooks", "fwd_hooks")):
        yield from ((call, keyword(call, argument)) for call in source.calls(name))


def _elements(node: ast.expr | None) -> Iterator[ast.expr]:
    if isinstance(node, ast.List | ast.Set) or (isinstance(node, ast.Tuple) and not _is_hook(node)):
        yield from node.elts
    elif isinstance(node, ast.ListComp):
        yield node.elt
    elif node is not None:
        yield node


def _is_hook(node: ast.Tuple) -> bool:
    """A single (name, function), not a tuple of names."""
    return len(node.elts) == 2 and text_of(node.elts[1]) is None


def _no_result(source: Source) -> Iterator[Place]:
    if not any(source.calls("set_use_attn_result")):
        for node in ast.walk(source.tree):
            if (text := text_of(node)) and text.endswith(".hook_result"):  # anatomist: ok
                yield node, ""


def _kv_heads(source: Source) -> Iterator[Place]:
    """A head picked out of cached keys or values: cache["blocks.0.attn.hook_k"][:, :, head]."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Subscript):
            text = text_of(node.value.slice)
            picks_head = isinstance(node.slice, ast.Tuple) and len(node.slice.elts) >= 3
            if text and picks_head and re.search(r"hook_[kv]$", text):
                yield node, repr(text)


def _sae_tuple(source: Source) -> Iterator[Place]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Subscript) or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)):
            call = node.value
            if isinstance(call, ast.Call) and dotted(call.func).endswith("SAE.from_pretrained"):
                yield node, ""


def _old_sae_fields(source: Source) -> Iterator[Place]:
    moved = {"hook_name", "hook_layer", "context_size", "prepend_bos", "model_name"}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in moved and re.search(r"sae\w*\.cfg$", ast.unparse(node.value), re.I):
            yield node, ast.unparse(node)


def _wandb_on(source: Source) -> Iterator[Place]:
    for call in source.calls("LanguageModelSAERunnerConfig"):
        logger = source.value(keyword(call, "logger"))
        if not (isinstance(logger, ast.Call) and is_constant(keyword(logger, "log_to_wandb"), False)):
            yield call, ""


def _no_patterns(source: Source) -> Iterator[Place]:
    if "attention_probabilities" not in ast.unparse(source.tree):
        return
    for call in source.calls("StandardizedTransformer"):
        if not is_constant(keyword(call, "enable_attention_probs"), True):
            yield call, ""


def _sdpa_patterns(source: Source) -> Iterator[Place]:
    if not any(keyword(c, "attn_implementation") for c in source.calls("from_pretrained")):
        yield from with_keyword("output_attentions", True)(source)


def _gguf_saved(source: Source) -> Iterator[Place]:
    """save_pretrained on a name that was loaded from a GGUF file."""
    for call in source.calls("save_pretrained"):
        owner = source.value(call.func.value) if isinstance(call.func, ast.Attribute) else None
        if isinstance(owner, ast.Call) and keyword(owner, "gguf_file") and "Tokenizer" not in dotted(owner.func):
            yield call, ""


def _bare_tool(source: Source) -> Iterator[Place]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Attribute) and decorator.attr in ("tool", "resource", "prompt"):
                    yield decorator, ast.unparse(decorator)


def _unsafe_load(source: Source) -> Iterator[Place]:
    for call in source.calls("torch.load"):
        if not is_constant(keyword(call, "weights_only"), True):
            yield call, ""


def _mps(source: Source) -> Iterator[Place]:
    yield from with_keyword("device", "mps")(source)
    for name in ("to", "torch.device"):
        yield from ((c, "") for c in source.calls(name) if c.args and is_constant(c.args[0], "mps"))


RULES: tuple[Rule, ...] = (
    Rule("hooked-transformer", "HookedTransformer is deprecated, refuses unknown names, and is gone in TransformerLens 4",
         "Use transformer_lens.model_bridge.TransformerBridge.boot_transformers(name).",
         either(taken("transformer_lens", "HookedTransformer"), called("HookedTransformer.from_pretrained"))),
    Rule("transformer-lens-utils", "transformer_lens.utils and .loading are gone in TransformerLens 4",
         "Use torch and transformers for what they did; pin transformer-lens>=3.9,<4 until then.",
         either(taken("transformer_lens", "utils|loading(_from_pretrained)?"), imported("transformer_lens.utils"),
                imported("transformer_lens.loading_from_pretrained"))),
    Rule("hooked-sae-transformer", "HookedSAETransformer is the old class with other hook names",
         "Use SAETransformerBridge, and ask it for the name: get_sae_hook_name(sae).",
         taken("sae_lens", "HookedSAETransformer")),
    Rule("logit-attrs", "cache.logit_attrs on a raw bridge leaves out the norm's weight: 1.688 where the logit difference was 4.126",
         "Apply the final norm with the whole residual's scale and its weight yourself, and check that the parts add up to the "
         "logit difference; or use direct_logit_attribution.",
         called("logit_attrs")),
    Rule("unknown-hook", "no hook point is called so, and TransformerLens 3.9 passes over an unknown name in silence",
         "Take the name from model.hook_dict, and count that the hook fired.", _hook_names),
    Rule("hook-result", "hook_result stays empty", "Call model.set_use_attn_result(True) first.", _no_result),
    Rule("kv-heads", "with grouped-query attention hook_k and hook_v have one place for each key-value head, not for each head",
         "Index with head // (n_heads // n_key_value_heads).", _kv_heads),
    Rule("start-at-layer", "the bridge does not support start_at_layer",
         "Run from the tokens; stop_at_layer=k gives the residual that enters block k.",
         named_keyword("start_at_layer")),
    Rule("compatibility-mode", "enable_compatibility_mode() folds norms and centres weights: every raw logit shifts (by up to 12.1), for good",
         "Compare log-probabilities or logit differences only, or leave it out.", called("enable_compatibility_mode")),
    Rule("batch-row", "under transformers 5 a layer's .output is a tensor: [0] takes the first prompt of the batch",
         "Use .output (nnterp: model.layers_output[i]).", batch_row),
    Rule("trace-one-line", "nnsight reads its own source: the body of `with model.trace():` must start on its own line",
         "Put the body on the next line.", one_line),
    Rule("trace-unsaved", "a value that is not saved is gone after the block",
         "Write name = value.save() inside the block.", unsaved),
    Rule("trace-order", "nnsight meets modules in the order they run: this layer is touched after a later one",
         "Touch the layers in ascending order.", out_of_order),
    Rule("trace-exec", "nnsight reads its own source, which exec does not give it",
         "Register the code in linecache under the name it is compiled with.", executed),
    Rule("nnsight-threads", "nnsight is not thread-safe, even across two models",
         "One process, one thread of work.", threads),
    Rule("no-attention-probabilities", "sdpa returns no attention patterns",
         "StandardizedTransformer(name, enable_attention_probs=True) forces eager attention.", _no_patterns),
    Rule("sdpa-attentions", "output_attentions needs eager attention",
         "Load with attn_implementation='eager'.", _sdpa_patterns),
    Rule("sae-tuple", "SAE.from_pretrained returns the SAE alone (the tuple is deprecated and its sparsity is None)",
         "sae = SAE.from_pretrained(release, sae_id)", _sae_tuple),
    Rule("sae-metadata", "this field moved to sae.cfg.metadata, where a missing one is None without a word",
         "Read sae.cfg.metadata.<name> and check that it is not None.", _old_sae_fields),
    Rule("sae-extra", "sae-lens has no extra called train", "pip install sae-lens; training is part of it.",
         written(r"sae[-_]lens\[train\]")),
    Rule("no-crosscoder", "sae-lens has no crosscoder class", "Transcoder and SkipTranscoder exist; a crosscoder needs another library.",
         taken("sae_lens", ".*[Cc]ross_?[Cc]oder.*")),
    Rule("wandb-on", "SAELens logs to Weights & Biases by default",
         "Pass logger=LoggingConfig(log_to_wandb=False) unless it was asked for.", _wandb_on),
    Rule("nnterp-pair", "nnterp 1.3 does not import with nnsight 0.8, and an installer picks that pair",
         "pip install nnterp 'nnsight>=0.7,<0.8'", written(r"pip3? install\b.*\bnnterp\b", r"nnsight\s*(==\s*0\.7|.*<\s*0\.8)")),
    Rule("other-environment", "circuit-tracer and sae-dashboard pin transformers<=4.57 and cannot share an environment with transformers 5",
         "Give it an environment of its own.", either(imported("circuit_tracer"), imported("sae_dashboard"))),
    Rule("gguf-save", "save_pretrained on a model loaded from GGUF raises 'not serializable'",
         "Copy its state dict into a new model made from the config without quantization_config, and save that.", _gguf_saved),
    Rule("unsafe-load", "a pickle runs whatever code is in it",
         "Use safetensors, or torch.load(..., weights_only=True).",
         either(_unsafe_load, called("pickle.load"), called("pickle.loads"), with_keyword("allow_pickle", True))),
    Rule("trust-remote-code", "trust_remote_code=True runs code from the hub",
         "Leave it off, or pin the revision after reading that code.", with_keyword("trust_remote_code", True)),
    Rule("mps", "on MPS with torch 2.8.0 IOI logit differences come out inverted, in silence",
         "Check on the CPU first.", _mps),
    Rule("fastmcp-import", "mcp.server.fastmcp is gone", "from mcp.server import MCPServer",
         imported("mcp.server.fastmcp")),
    Rule("camel-hints", "MCP annotations are snake_case in mcp 2", "read_only_hint, destructive_hint, idempotent_hint, open_world_hint.",
         named_keyword("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")),
    Rule("bare-decorator", "the MCP decorator needs its parentheses", "Write @mcp.tool().", _bare_tool),
)  # fmt: skip
