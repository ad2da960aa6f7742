"""The oracle of the conformance suite: plain transformers, bare module hooks, an attention function of our own.

It shares no code with the backends: each family's module names are written out here, attention is computed here (so
that queries, keys, scores and pattern are seen from the inside), and an edit is made by a loop over its places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from anatomist.model.edits import Edit
from anatomist.model.tokens import Tokens
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

At = Callable[[str, int | None, Tensor], Tensor]
_active: list[At] = []


class Names(NamedTuple):
    """Where one family keeps its modules; the last four are relative to a layer."""

    layers: str
    norm: str
    attention: str
    o: str
    attention_end: str  # its output is added to the residual
    mlp_norm: str
    mlp_end: str
    down: str


_LLAMA = Names(
    "model.layers", "model.norm", "self_attn", "self_attn.o_proj", "self_attn.o_proj", "post_attention_layernorm",
    "mlp", "mlp.down_proj",
)  # fmt: skip
NAMES = {
    "gpt2": Names(
        "transformer.h", "transformer.ln_f", "attn", "attn.c_proj", "attn.c_proj", "ln_2", "mlp", "mlp.c_proj"
    ),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3": _LLAMA._replace(
        attention_end="post_attention_layernorm", mlp_norm="pre_feedforward_layernorm",
        mlp_end="post_feedforward_layernorm",
    ),
    "gpt_neox": Names(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "attention.dense", "attention.dense",
        "post_attention_layernorm", "mlp", "mlp.dense_4h_to_h",
    ),
}  # fmt: skip


def _attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, Tensor]:
    """softmax(q k / c) v with a stop at every place; shapes [B, heads, T, h]."""
    layer = module.layer_idx

    def heads_last(kind: str, x: Tensor) -> Tensor:
        return _active[-1](kind, layer, x.transpose(1, 2)).transpose(1, 2)

    q, k, v = heads_last("q", q), heads_last("k", k), heads_last("v", v)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * scaling
    assert mask is not None, "the eager mask was asked for"
    scores = _active[-1]("scores", layer, scores + mask[..., : k.shape[2]])
    pattern = _active[-1]("pattern", layer, scores.softmax(-1))
    return (pattern @ v).transpose(1, 2).contiguous(), pattern


AttentionInterface.register("oracle", _attention)
AttentionMaskInterface.register("oracle", eager_mask)


class Plain:
    """A plain model with a stop at every place."""

    def __init__(self, hf: PreTrainedModel, family: str, d_head: int) -> None:
        hf.set_attn_implementation("oracle")
        self.hf, self.names, self.d_head = hf, NAMES[family], d_head

    @torch.no_grad()
    def run(self, tokens: Tokens, edit: Edit | None = None) -> tuple[dict[tuple[str, int | None], Tensor], Tensor]:
        """Every place and the logits [B, T, V], with one edit made."""
        reads: dict[tuple[str, int | None], Tensor] = {}

        def at(kind: str, layer: int | None, x: Tensor) -> Tensor:
            if edit is not None and (edit.site.kind, edit.site.layer) == (kind, layer):
                x = by_loop(x, edit, tokens)
            reads[kind, layer] = x.clone()
            return x

        width = tokens.width
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens.ids])
        handles = self._hooks(at)
        _active.append(at)
        try:
            logits = at("logits", None, self.hf(input_ids=ids, use_cache=False).logits)
        finally:
            _active.pop()
            for handle in handles:
                handle.remove()
        return reads, logits

    def _hooks(self, at: At) -> list[Any]:
        handles = [_after(self.hf.get_submodule(self.names.norm), lambda y: at("final_norm", None, y))]
        for i, layer in enumerate(self.hf.get_submodule(self.names.layers)):  # type: ignore[arg-type]
            handles += self._block(at, i, layer)
        return handles

    def _block(self, at: At, i: int, layer: Any) -> list[Any]:
        kept: dict[str, Tensor] = {}

        def entry(x: Tensor) -> Tensor:
            kept["pre"] = at("resid_pre", i, at("embed", None, x) if i == 0 else x)
            return kept["pre"]

        def attention_end(y: Tensor) -> Tensor:
            kept["attn"] = at("attn_out", i, y)
            return kept["attn"]

        def middle(_: Tensor) -> Tensor:
            before = kept["pre"] + kept["attn"]
            after = at("resid_mid", i, before)
            kept["shift"] = after - before  # the block kept the residual before the edit and will add to that
            return after

        def leave(y: Tensor) -> Tensor:
            return at("resid_post", i, y + kept.pop("shift", 0))

        def z(x: Tensor) -> Tensor:
            return at("head", i, x.unflatten(-1, (-1, self.d_head))).flatten(-2)

        sub = layer.get_submodule
        handles = [_before(layer, entry), _before(sub(self.names.o), z)]
        handles.append(_after(sub(self.names.attention_end), attention_end))
        if not getattr(self.hf.config, "use_parallel_residual", False):
            handles.append(_before(sub(self.names.mlp_norm), middle))
        handles.append(_before(sub(self.names.down), lambda x: at("neuron", i, x)))
        handles.append(_after(sub(self.names.mlp_end), lambda y: at("mlp_out", i, y)))
        handles.append(_after(layer, leave))
        return handles


def by_loop(x: Tensor, edit: Edit, tokens: Tokens) -> Tensor:
    """The edit, one place after another: x is [B, T, ...], or [B, H, T, T] for scores and pattern."""
    square = edit.site.kind in ("scores", "pattern")
    x = x.transpose(1, 2).clone() if square else x.clone()  # [B, T, (heads), ...]
    rows = list(range(tokens.n_rows)) if edit.rows is None else list(edit.rows)
    for i, row in enumerate(rows):
        if edit.positions is None:
            places: list[int] = list(range(tokens.lengths[row]))
        else:
            places = list(edit.positions[i] if isinstance(edit.positions[0], tuple) else edit.positions)  # type: ignore[arg-type]
        for j, position in enumerate(places):
            where = (row, position) if edit.site.index is None else (row, position, edit.site.index)
            x[where] = _rule(x[where], edit, i, j)
    return x.transpose(1, 2) if square else x


def _rule(x: Tensor, edit: Edit, i: int, j: int) -> Tensor:
    value = torch.zeros(()) if edit.value is None else edit.value
    if edit.rule != "project_out" and value.dim() == x.dim() + 2:
        value = value[min(i, value.shape[0] - 1), min(j, value.shape[1] - 1)]
    if edit.rule == "project_out":
        unit = value / value.pow(2).sum().sqrt()
        return x - (x * unit).sum() * unit
    return {
        "zero": 0 * x, "scale": edit.factor * x, "add": x + edit.factor * value,
        "multiply": x * value,
        "interpolate": (1 - edit.factor) * x + edit.factor * value,
    }.get(edit.rule, value.expand_as(x))  # fmt: skip


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _after(module: Any, act: Callable[[Tensor], Tensor]) -> Any:
    def hook(_module: object, _inputs: object, output: Any) -> Any:
        y = act(_tensor(output))
        return (y, *output[1:]) if isinstance(output, tuple) else y

    return module.register_forward_hook(hook)


def _before(module: Any, act: Callable[[Tensor], Tensor]) -> Any:
    def hook(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (act(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": act(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)
