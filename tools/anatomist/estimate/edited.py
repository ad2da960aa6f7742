"""What edits of activations and weights cost: adding directions, changing a copy's weights, erasing a concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..prompts.templates import END
from . import formulas as f
from .calibration import Rate
from .cost import Cost, Part, cost
from .extent import Extent, Given, items_of, needs_every_logit, number_of, passing, widths_of
from .sizes import Sizes

NEUTRAL_CONTROLS = 3  # random edits whose loss on neutral text is measured
NEUTRAL_PROMPTS = 8  # prompts that stand for neutral text where steering has none
COMPONENT_ROWS = 8  # prompts whose residual is looked at before and after a projection
SPOT_ROWS, SPOT_CELLS = 4, 3  # of a sweep that are computed again
COPIED = 2.0  # the weights of a copy, and what is kept of them while they are changed


def steering_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """Every direction, sign and control at every strength from its layer on; losses on neutral text; continuations."""
    layers = [n for n in items_of(given.get("layers")) if isinstance(n, int)]
    starts = [min(layers, default=0)] if given.get("together") else layers
    strengths, controls = len(items_of(given.get("strengths"))), number_of(given, "controls", 0)
    conditions = strengths * (2 + len(items_of(given.get("beside"))) + controls)
    cells = conditions * len(starts)
    live = live_tokens(given.get("positions"), on.width)
    late = int(given.get("site") == "resid_post")
    a_cell = [after(s, start + late, live, on.width) for start in starts]
    logits = f.unembed_flops(s) if needs_every_logit(given) else 0
    a_row = f.forward_flops(s, 1, on.width, logits_per_row=1)
    checked = min(SPOT_ROWS, on.rows)  # of each sweep, the one that adds nothing included, a few cells as whole passes
    again = checked * (2 + len(starts) * (1 + min(SPOT_CELLS, conditions))) * a_row
    plain = 2 + len(starts) + bool(given.get("instruction")) + sum(starts) / s.layers
    swept = on.rows * (conditions * sum(a_cell) + sum(a_cell[:1]) + cells * logits) + again
    losses = 1 + len(starts) * strengths * (1 + min(NEUTRAL_CONTROLS, controls))
    neutral = _neutral(given, s) or f.forward_flops(s, min(on.rows, NEUTRAL_PROMPTS), on.width)
    pushes = 1 + bool(given.get("instruction")) + 3 * len(starts) * strengths
    samples, new = min(number_of(given, "samples", 0), on.rows), number_of(given, "new_tokens", 0)
    said = pushes * (f.forward_flops(s, samples, on.width + new, logits_per_row=new) if samples else 0)
    judged = pushes * (f.forward_flops(s, samples, on.width + new) if samples else 0)
    keys = on.rows * on.width * f.kv_bytes_per_token(s)
    parts = [
        Part(what="the prompts' keys and values", formula="2 B T L K h s", bytes=keys),
        Part(what="vectors", formula="C d s", bytes=conditions * s.d_model * s.item_bytes),
        *passing(s, on),
    ]
    flops = plain * on.rows * a_row + swept + losses * neutral + said + judged
    passes = plain + cells * live / on.width + losses + pushes * (1 + new) * bool(samples)
    basis = f"{cells} vectors x {on.prompts}, {losses} losses on neutral text, {pushes * samples} continuations"
    return cost(parts, flops, passes, s, rate, basis, rows=on.rows, budget=on.budget)


def after(s: Sizes, start: int, live: float, width: int) -> float:
    """One row's tokens from a layer on; of the last layer keys and values alone, but for the token that is read."""
    if start >= s.layers:
        return 0.0
    a_token = f.block_flops(s, width) / width
    keys = 4 * s.d_model * s.kv_heads * s.d_head
    return (s.layers - start - 1) * live * a_token + live * keys + a_token


def live_tokens(positions: object, width: int) -> float:
    """Tokens from the first that is edited on; half of them where a role or a text says which."""
    if positions == "all":
        return width
    firsts = [
        (width - p if p >= 0 else -p) if isinstance(p, int) else 1 if p in ("last", END) else width / 2
        for p in items_of(positions)
    ]
    return min(width, max(firsts, default=width))


def _neutral(given: Given, s: Sizes) -> int:
    """One pass over the neutral texts, all logits; 0 without any."""
    return sum(f.forward_flops(s, 1, width) for width in widths_of(given.get("neutral_text")))


def weight_edit_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """A copy of the weights, and a pass over the prompts before, after and under every control."""
    controls, keep = number_of(given, "controls", 0), bool(given.get("keep"))
    every = f.forward_flops(s, on.rows, on.width)  # a copy is run as it is: logits at every position
    last = f.forward_flops(s, on.rows, on.width, logits_per_row=1)
    few = min(on.rows, COMPONENT_ROWS)
    looks = 2 * f.forward_flops(s, few, on.width, logits_per_row=0) * _all_writers(given)
    neutral = _neutral(given, s)
    flops = (1 + keep) * last + (2 + controls) * every + looks + (2 + min(NEUTRAL_CONTROLS, controls)) * neutral
    copied = int(COPIED * f.weight_bytes(s))
    held = (2 + controls) * on.rows * s.d_vocab * 4
    parts = [
        Part(what="the copy, and weights kept while they are changed", formula="2 N s", bytes=copied),
        Part(what="logits before, after and of every control", formula="(2 + C) B V 4", bytes=held),
        *passing(s, on),
        *([Part(what="the edited model", formula="N s", bytes=f.weight_bytes(s), place="disk")] if keep else []),
    ]
    passes = 3 + keep + controls + (2 + min(NEUTRAL_CONTROLS, controls)) * bool(neutral)
    basis = f"a copy of the weights, {3 + keep + controls} passes over {on.prompts}"
    return cost(parts, flops, passes, s, rate, basis)


def _all_writers(given: Given) -> bool:
    changes = items_of(given.get("changes"))
    first = changes[0] if len(changes) == 1 else None
    return getattr(first, "rule", "") == "project_out" and getattr(first, "parts", "") == "writers"


def erasure_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """The texts read up to every layer in turn, a fit at each, then the task under all erasures and random edits."""
    layers = [n for n in items_of(given.get("layers")) if isinstance(n, int)] or list(range(s.layers))
    texts = _texts(given, on)
    blocks = max(layers) + 1 + sum(layer + 1 for layer in layers) + 0.7 * (max(layers) + 1)
    read = sum(f.block_flops(s, width) for width in texts) * blocks
    fits = len(layers) * (FIT * s.d_model**3 + 2 * len(texts) * s.d_model**2)
    prompts, controls = given.get("prompts") is not None, number_of(given, "controls", 0)
    tried = (2 + controls) * prompts * f.forward_flops(s, on.rows, on.width, logits_per_row=1)
    neutral = _neutral(given, s)
    flops = read + fits + tried + (2 + min(NEUTRAL_CONTROLS, controls)) * neutral
    kept = 8 * len(layers) * len(texts) * s.d_model
    logits = (2 + controls) * prompts * on.rows * s.d_vocab * 4
    parts = [
        Part(what="activations of the texts, with and without erasures", formula="n L d 8", bytes=2 * kept),
        Part(what="logits before, after and of every control", formula="(2 + C) B V 4", bytes=logits),
        *passing(s, replace(on, rows=max(on.rows, 1))),
    ]
    passes = len(layers) * 2 + (2 + controls) * prompts
    basis = f"{len(texts)} texts read up to each of {len(layers)} layers, {(2 + controls) * prompts} passes of the task"
    return cost(parts, flops, passes, s, rate, basis)


FIT = 30  # d^3 operations of one layer's eraser and probes


def _texts(given: Given, on: Extent) -> Sequence[int]:
    """Tokens of every text that is read: those given, or both sides of discovery and held-out prompts."""
    own = [*widths_of(given.get("positive")), *widths_of(given.get("negative"))]
    return own or [on.width] * (4 * on.rows)
