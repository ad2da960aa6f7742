"""What cutting attention edges costs: a sweep whose cells compute the cut queries and what follows them."""

from __future__ import annotations

import re

from . import formulas as f
from .calibration import Rate
from .cost import Cost, Part, cost
from .edited import SPOT_CELLS, SPOT_ROWS, after, live_tokens
from .extent import Extent, Given, names_of, needs_every_logit, number_of, passing
from .sizes import Sizes

USUAL_SOURCES = 5  # roles of a prompt and the rest, where none are named
TOKENS_A_CHUNK = 6_656  # that travel together, and read the weights together


def knockout_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """The intact run and one that shows its attention; rows by sources with their random sets, each from its first
    layer and first query on; the largest cut read back, and a few cells again as whole passes."""
    starts = first_layers(given, s)
    each = (len(names_of(given.get("sources"))) or USUAL_SOURCES) * (1 + number_of(given, "controls", 0))
    n, live = each * len(starts), live_tokens(given.get("queries"), on.width)
    a_row = f.forward_flops(s, 1, on.width, logits_per_row=1)
    checked = min(SPOT_ROWS, on.rows) * (2 + min(SPOT_CELLS, n))  # with their intact run, and the cut read back
    cells = each * sum(_cell(given, s, start, live, on.width) for start in starts)
    logits = n * f.unembed_flops(s) if needs_every_logit(given) else 0
    flops = (2 * on.rows + checked) * a_row + on.rows * (cells + logits)
    keys = on.rows * on.width * f.kv_bytes_per_token(s)
    tokens = on.rows * n * live
    chunk = int(min(tokens, TOKENS_A_CHUNK)) * f.block_at_work_bytes(s, 1, 1)
    parts = [
        Part(what="the intact run's keys and values", formula="2 B T L K h s", bytes=keys),
        Part(what="tokens of the cells", formula="t (6 d + 6 H h + 3 F + 3 H) s", bytes=chunk),
        *passing(s, on),
    ]
    basis = f"{n} cuts x {on.prompts}, each from its first layer and query on"
    passes = 2 + 3 + tokens / TOKENS_A_CHUNK
    return cost(parts, flops, passes, s, rate, basis, rows=on.rows, budget=on.budget)


def _cell(given: Given, s: Sizes, start: int, live: float, width: int) -> float:
    """One row's cut: in its first layer the queries alone, projected by the intact run; then all that follows them."""
    projected = 2 * s.d_model * (s.heads + 2 * s.kv_heads) * s.d_head
    queries = len(names_of(given.get("queries"))) * (f.block_flops(s, width) / width - projected)
    return queries + after(s, start + 1, live, width)


def first_layers(given: Given, s: Sizes) -> list[int]:
    """Of every row: its head's layer, or its window's first; the last row cuts all layers."""
    named = [int(match[1]) for name in names_of(given.get("heads")) if (match := re.match(r"L(\d+)H\d+$", name))]
    layers = [int(layer) for layer in names_of(given.get("layers"))] or list(range(s.layers))
    if given.get("by") == "head":
        return named or [layer for layer in layers for _ in range(s.heads)]
    layers = [layer for layer in layers if not named or layer in named]
    width = number_of(given, "window", 0) or max(1, len(layers) // 5)
    stride = number_of(given, "stride", 0) or width
    starts = [layer for i, layer in enumerate(layers[::stride]) if i == 0 or (i - 1) * stride + width < len(layers)]
    return [*starts, starts[0]] if len(starts) > 1 else starts
