# ruff: noqa: E501  # a table of words
"""The rules: what each library of the field removed, renamed, or lets pass without a word.

Each was seen by running it with transformer-lens 3.9, nnsight 0.7, nnterp 1.3, sae-lens 6.54 and mcp 2.3.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Place = tuple[ast.AST, str]  # where, and what was written there
_HOOK = re.compile(
    r"(hook_(embed|pos_embed|tokens)|ln_final(\.hook_(scale|normalized))?|unembed\.hook_(in|out)|embed\.hook_(in|out)"
    r"|blocks\.\d+\.(hook_(resid_pre|resid_mid|resid_post|attn_in|attn_out|mlp_in|mlp_out|q_input|k_input|v_input|in|out)"
    r"|(attn|self_attn|attention)\.(hook_(q|k|v|z|rot_q|rot_k|attn_scores|pattern|result|in|out|hidden_states)"
    r"|(q|k|v|o|qkv)\.hook_(in|out)|hook_attention_weights)"
    r"|mlp\.(hook_(pre|pre_linear|post|in|out|mid)|(in|out|gate)\.hook_(in|out))"
    r"|ln\d(_post)?\.hook_(scale|normalized|in|out)|ln\d(_post)?))"
)


@dataclass(frozen=True)
class Source:
    """A parsed file."""

    tree: ast.Module
    lines: tuple[str, ...]
    modules: frozenset[str]  # top-level names of what it imports

    @classmethod
    def of(cls, tree: ast.Module, text: str) -> Source:
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(a.name.split(".")[0] for a in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        return cls(tree, (*text.splitlines(), ""), frozenset(names))

    def calls(self, name: str) -> Iterator[ast.Call]:
        """Calls whose dotted name ends in `name`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and f".{_dotted(node.func)}".endswith(f".{name}"):
                yield node


@dataclass(frozen=True)
class Rule:
    """One thing to look for."""

    name: str
    wrong: str
    fix: str
    find: Callable[[Source], Iterator[Place]]


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    return _dotted(node.func) if isinstance(node, ast.Call) else "?"


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is type(value) and node.value == value


def _called(name: str) -> Callable[[Source], Iterator[Place]]:
    return lambda source: ((call, "") for call in source.calls(name))


def _with_keyword(name: str, value: object) -> Callable[[Source], Iterator[Place]]:
    def find(source: Source) -> Iterator[Place]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and _is(_keyword(node, name), value):
                yield node, ""

    return find


def _imported(module: str, name: str | None = None) -> Callable[[Source], Iterator[Place]]:
    def find(source: Source) -> Iterator[Place]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import) and name is None:
                if any(a.name == module or a.name.startswith(f"{module}.") for a in node.names):
                    yield node, ""
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = name is None and (node.module == module or node.module.startswith(f"{module}."))
                if whole or (node.module.split(".")[0] == module and any(a.name == name for a in node.names)):
                    yield node, ""

    return find


def _batch_row(source: Source) -> Iterator[Place]:
    if not source.modules & {"nnsight", "nnterp"}:
        return
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "output"
            and isinstance(node.slice, ast.Constant)
            and node.slice.value == 0
            and re.search(r"layers|\.h\b|blocks", ast.unparse(node.value.value))
            and not re.search(r"attn|attention", ast.unparse(node.value.value))
        ):
            yield node, ast.unparse(node)


def _trace_line(source: Source) -> Iterator[Place]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.With) and node.body[0].lineno == node.lineno and ".trace" in ast.unparse(node.items[0]):
            yield node, ""


def _unpacked(source: Source) -> Iterator[Place]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            call = node.value
            if isinstance(call, ast.Call) and _dotted(call.func).endswith("SAE.from_pretrained"):
                yield node, ""


def _old_sae_fields(source: Source) -> Iterator[Place]:
    moved = {"hook_name", "hook_layer", "context_size", "prepend_bos", "model_name"}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in moved and re.search(r"sae\w*\.cfg$", ast.unparse(node.value)):
            yield node, ast.unparse(node)


def _texts(node: ast.AST) -> Iterator[ast.Constant]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part


def _hook_names(source: Source) -> Iterator[Place]:
    for name, argument in (("run_with_hooks", "fwd_hooks"), ("run_with_cache", "names_filter"), ("hooks", "fwd_hooks")):
        for call in source.calls(name):
            given = _keyword(call, argument)
            for text in _texts(given) if isinstance(given, ast.List | ast.Tuple | ast.Constant) else ():
                if not _HOOK.fullmatch(str(text.value)):
                    yield text, repr(text.value)


def _no_result(source: Source) -> Iterator[Place]:
    if not any(source.calls("set_use_attn_result")):
        yield from ((t, repr(t.value)) for t in _texts(source.tree) if str(t.value).endswith("hook_result"))


def _wandb_on(source: Source) -> Iterator[Place]:
    for call in source.calls("LanguageModelSAERunnerConfig"):
        logger = _keyword(call, "logger")
        if not (isinstance(logger, ast.Call) and _is(_keyword(logger, "log_to_wandb"), False)):
            yield call, ""


def _no_patterns(source: Source) -> Iterator[Place]:
    if "attention_probabilities" not in ast.unparse(source.tree):
        return
    for call in source.calls("StandardizedTransformer"):
        if not _is(_keyword(call, "enable_attention_probs"), True):
            yield call, ""


def _sdpa_patterns(source: Source) -> Iterator[Place]:
    eager = any(_keyword(c, "attn_implementation") for c in source.calls("from_pretrained"))
    if not eager:
        yield from _with_keyword("output_attentions", True)(source)


def _bare_tool(source: Source) -> Iterator[Place]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Attribute) and decorator.attr in ("tool", "resource", "prompt"):
                    yield decorator, ast.unparse(decorator)


def _unsafe_load(source: Source) -> Iterator[Place]:
    for call in source.calls("torch.load"):
        if not _is(_keyword(call, "weights_only"), True):
            yield call, ""


def _threads(source: Source) -> Iterator[Place]:
    if "nnsight" in source.modules or "nnterp" in source.modules:
        for name in ("ThreadPoolExecutor", "Thread"):
            for call in source.calls(name):
                yield call, name


RULES: tuple[Rule, ...] = (
    Rule("hooked-transformer", "HookedTransformer is deprecated, refuses unknown names, and is gone in TransformerLens 4",
         "Use transformer_lens.model_bridge.TransformerBridge.boot_transformers(name).",
         lambda s: iter([*_imported("transformer_lens", "HookedTransformer")(s), *_called("HookedTransformer.from_pretrained")(s)])),
    Rule("transformer-lens-utils", "transformer_lens.utils and .loading are gone in TransformerLens 4",
         "Use torch and transformers for what they did; pin transformer-lens>=3.9,<4 until then.",
         lambda s: iter([*_imported("transformer_lens", "utils")(s), *_imported("transformer_lens.utils")(s),
                         *_imported("transformer_lens.loading_from_pretrained")(s)])),
    Rule("hooked-sae-transformer", "HookedSAETransformer is the old class with other hook names",
         "Use SAETransformerBridge, and ask it for the name: get_sae_hook_name(sae).",
         _imported("sae_lens", "HookedSAETransformer")),
    Rule("logit-attrs", "cache.logit_attrs on a raw bridge leaves out the norm's weight: 1.688 where the logit difference was 4.126",
         "Apply the final norm with the whole residual's scale and its weight yourself, and check that the parts add up to the "
         "logit difference; or use direct_logit_attribution.",
         _called("logit_attrs")),
    Rule("unknown-hook", "no hook point is called so, and TransformerLens 3.9 passes over an unknown name in silence",
         "Take the name from model.hook_dict, and count that the hook fired.", _hook_names),
    Rule("hook-result", "hook_result stays empty", "Call model.set_use_attn_result(True) first.", _no_result),
    Rule("start-at-layer", "the bridge does not support start_at_layer",
         "Run from the tokens; stop_at_layer=k gives the residual that enters block k.",
         lambda s: ((c, "") for c in ast.walk(s.tree) if isinstance(c, ast.Call) and _keyword(c, "start_at_layer"))),
    Rule("compatibility-mode", "enable_compatibility_mode() folds norms and centres weights: every raw logit shifts (by up to 12.1), for good",
         "Compare log-probabilities or logit differences only, or leave it out.", _called("enable_compatibility_mode")),
    Rule("batch-row", "under transformers 5 a layer's .output is a tensor: [0] takes the first prompt of the batch",
         "Use .output (nnterp: model.layers_output[i]).", _batch_row),
    Rule("trace-one-line", "nnsight reads its own source: the body of `with model.trace():` must start on its own line",
         "Put the body on the next line.", _trace_line),
    Rule("nnsight-threads", "nnsight is not thread-safe, even across two models",
         "One process, one thread of work.", _threads),
    Rule("no-attention-probabilities", "sdpa returns no attention patterns",
         "StandardizedTransformer(name, enable_attention_probs=True) forces eager attention.", _no_patterns),
    Rule("sdpa-attentions", "output_attentions needs eager attention",
         "Load with attn_implementation='eager'.", _sdpa_patterns),
    Rule("sae-tuple", "SAE.from_pretrained returns the SAE alone (the tuple is deprecated and its sparsity is None)",
         "sae = SAE.from_pretrained(release, sae_id)", _unpacked),
    Rule("sae-metadata", "this field moved to sae.cfg.metadata, where a missing one is None without a word",
         "Read sae.cfg.metadata.<name> and check that it is not None.", _old_sae_fields),
    Rule("wandb-on", "SAELens logs to Weights & Biases by default",
         "Pass logger=LoggingConfig(log_to_wandb=False) unless it was asked for.", _wandb_on),
    Rule("unsafe-load", "a pickle runs whatever code is in it",
         "Use safetensors, or torch.load(..., weights_only=True).",
         lambda s: iter([*_unsafe_load(s), *_called("pickle.load")(s), *_called("pickle.loads")(s)])),
    Rule("trust-remote-code", "trust_remote_code=True runs code from the hub",
         "Leave it off, or pin the revision after reading that code.", _with_keyword("trust_remote_code", True)),
    Rule("mps", "on MPS with torch 2.8.0 IOI logit differences come out inverted, in silence",
         "Check on the CPU first.", _with_keyword("device", "mps")),
    Rule("fastmcp-import", "mcp.server.fastmcp is gone", "from mcp.server import MCPServer",
         _imported("mcp.server.fastmcp")),
    Rule("bare-decorator", "the MCP decorator needs its parentheses", "Write @mcp.tool().", _bare_tool),
)  # fmt: skip
