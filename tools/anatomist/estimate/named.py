"""Operations that are no technique (or none yet) but that people ask the cost of."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import BadArguments
from . import formulas as f
from .calibration import Rate
from .cost import Cost, Part, cost
from .sizes import Sizes

NAMED = (
    "load", "forward", "generate", "full_cache", "residual_sweep", "head_sweep", "attribution_patching",
    "integrated_gradients", "train_dictionary",
)  # fmt: skip


PREPARING = 2.0  # seconds to wrap a model and measure its parity, on two cores
DISK_RATE = 0.5e9  # bytes a second at which weights are read and converted, on two cores


class Work(NamedTuple):
    """How much of it."""

    rows: int
    tokens: int
    steps: int = 5
    d_dictionary: int | None = None


def standing_parts(s: Sizes) -> tuple[int, int]:
    """Bytes of the weights, and of keys and values per token."""
    return f.weight_bytes(s), f.kv_bytes_per_token(s)


def cost_of_named(operation: str, s: Sizes, work: Work, rate: Rate) -> Cost:
    """The cost of one of `NAMED`."""
    rows, tokens = work.rows, work.tokens
    shape = f"{rows} prompts of {tokens} tokens"
    match operation:
        case "load":
            seconds = PREPARING + f.weight_bytes(s) / DISK_RATE
            basis = f"reading {DISK_RATE / 1e9} GB/s and {PREPARING:.0f} s to prepare and prove it; a rough figure"
            return Cost(parts=(), peak_bytes=0, flops=0.0, seconds=seconds, basis=basis)
        case "forward":
            parts = [_logits(s, rows, tokens), _work(s, rows, tokens)]
            return cost(parts, f.forward_flops(s, rows, tokens), 1, s, rate, f"one pass over {shape}, all logits")
        case "generate":
            return _generate(s, work, rate, shape)
        case "full_cache":
            whole = _part("every activation", f.HOOKED_CACHE, rows * f.hooked_cache_bytes(s, tokens))
            basis = f"one pass over {shape}, everything kept in HookedTransformer's layout"
            return cost([whole], f.forward_flops(s, rows, tokens), 1, s, rate, basis)
        case "residual_sweep":
            flops, cells = f.residual_sweep_flops(s, rows, tokens), f"{s.layers} x {tokens} cells"
            return cost(_sweep_parts(s, rows, tokens), flops, s.layers, s, rate, f"{cells}, {shape}")
        case "head_sweep":
            flops, cells = f.head_sweep_flops(s, rows, tokens), f"{s.layers} x {s.heads} cells"
            return cost(_sweep_parts(s, rows, tokens), flops, s.layers, s, rate, f"{cells}, {shape}")
        case "attribution_patching" | "integrated_gradients":
            return _gradients(operation, s, work, rate, shape)
        case _:
            return _dictionary(s, work, rate)


def _generate(s: Sizes, work: Work, rate: Rate, shape: str) -> Cost:
    total = work.tokens + work.steps
    flops = f.forward_flops(s, work.rows, total, logits_per_row=work.steps)
    parts = [_part("keys and values", "B T 2 L K h s", work.rows * total * f.kv_bytes_per_token(s))]
    return cost(parts, flops, 1 + work.steps, s, rate, f"{work.steps} new tokens after {shape}")


def _gradients(operation: str, s: Sizes, work: Work, rate: Rate, shape: str) -> Cost:
    steps = work.steps if operation == "integrated_gradients" else 1
    saved = work.rows * work.tokens * f.autograd_bytes_per_token(s, work.tokens, eager=True)
    parts = [
        _part("saved for the backward pass", "B T L (3 F + 2 d + 3 H h + H T + 2) s", saved),
        _part("head outputs and their gradients", "2 B T L H h s", 2 * f.head_bytes(s, work.rows, work.tokens)),
    ]
    flops = f.attribution_flops(s, work.rows, work.tokens, steps)
    return cost(parts, flops, 4 * steps, s, rate, f"{steps} x (two forwards and a backward) over {shape}")


def _dictionary(s: Sizes, work: Work, rate: Rate) -> Cost:
    if work.d_dictionary is None:
        raise BadArguments("train_dictionary needs d_dictionary, the number of features (often 8 to 32 times d_model).")
    n, tokens = f.dictionary_parameters(s.d_model, work.d_dictionary), work.rows * work.tokens
    parts = [
        _part("dictionary with Adam in float32", "16 (2 d d_sae + d_sae + d)", 16 * n),
        _part("activations", "B T d s", tokens * s.d_model * s.item_bytes),
    ]
    flops = f.forward_flops(s, work.rows, work.tokens, logits_per_row=0) + 6.0 * n * tokens
    return cost(parts, flops, 1, s, rate, f"{tokens} tokens read once and trained on once")


def _sweep_parts(s: Sizes, rows: int, tokens: int) -> list[Part]:
    return [
        _part("both runs' residuals", "2 B T L d s", 2 * f.residual_bytes(s, rows, tokens)),
        _part("the base run's keys and values", "2 B T L K h s", rows * tokens * f.kv_bytes_per_token(s)),
        _work(s, rows, tokens),
    ]


def _logits(s: Sizes, rows: int, tokens: int) -> Part:
    return _part("logits at every position", "B T V s", f.logit_bytes(s, rows, tokens))


def _work(s: Sizes, rows: int, tokens: int) -> Part:
    return _part("one block at work", f.BLOCK_AT_WORK, f.block_at_work_bytes(s, rows, tokens))


def _part(what: str, formula: str, size: int) -> Part:
    return Part(what=what, formula=formula, bytes=size)
