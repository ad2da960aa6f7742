"""What a technique takes, from the arguments that techniques share.

A technique that knows better says so itself with `cost(arguments, sizes, on, rate) -> Cost`. For the others the passes
follow from their arguments: a grid or an ablation is a sweep over cells; a sample to be re-checked goes with
gradients; receivers are ends of paths; all else reads.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import ModuleType

from ..causal.each_part import MOST_TESTED
from ..errors import BadSite
from ..model.sites import SiteKind, parse_site
from ..result import Frozen
from . import formulas as f
from .calibration import Rate
from .cost import Cost, Part, cost
from .edited import erasure_cost, steering_cost, weight_edit_cost
from .extent import Cells, Extent, Given, items_of, names_of, needs_every_logit, number_of, passing, widths_of
from .knockout import knockout_cost
from .sizes import Sizes

ROWS_A_CHUNK = 64  # cells that read the weights together


def cost_of_technique(module: ModuleType, arguments: Frozen, sizes: Sizes, on: Extent, rate: Rate) -> Cost:
    """Memory and time of a technique."""
    if own := getattr(module, "cost", None):
        return own(arguments, sizes, on, rate)
    given = {name: getattr(arguments, name) for name in type(arguments).model_fields}
    if {"rows", "length"} <= given.keys():
        on = _random_tokens(given, on)
    if "examples" in given:
        on = _labelled(given, on)
    if {"direction", "strengths"} <= given.keys():
        return steering_cost(given, sizes, on, rate)
    if {"changes", "keep"} <= given.keys():
        return weight_edit_cost(given, sizes, on, rate)
    if {"shrinkage", "positive"} <= given.keys():
        return erasure_cost(given, sizes, on, rate)
    if {"test_tokens", "batch"} <= given.keys():
        return lens_training_cost(given, sizes, on, rate)
    if {"target", "target_position"} <= given.keys():
        return sweep_cost(transplant_cells(given, sizes, on), sizes, on, rate)
    if {"n_tokens", "width"} <= given.keys():
        on = _running_text(given, on)
    if "sae" in given and "sample" in given:
        return feature_cost(given, sizes, on, rate)
    if "minimality" in given:
        return circuit_cost(given, sizes, on, rate)
    if "sample" in given and "top" in given:
        return gradient_cost(given, sizes, on, rate)
    if {"dimension", "subspace"} <= given.keys():
        return search_cost(given, sizes, on, rate)
    if {"queries", "sources"} <= given.keys():
        return knockout_cost(given, sizes, on, rate)
    if "receivers" in given:
        return sweep_cost(path_cells(given, sizes, on), sizes, on, rate)
    if "grid" in given or "ablation" in given:
        return sweep_cost(sweep_cells(given, sizes, on), sizes, on, rate)
    return reading_cost(given, sizes, on, rate)


def sweep_cost(cells: Cells, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """One edit a cell, beside a pass over either run."""
    rows, width = on.rows, on.width
    a_token = f.block_flops(s, width) / width
    flops = 2 * f.forward_flops(s, rows, width, logits_per_row=1)
    flops += rows * (cells.block_tokens * a_token + cells.logits * f.unembed_flops(s))
    keys = rows * width * f.kv_bytes_per_token(s)
    parts = [
        Part(what="both runs' residuals", formula="2 B T L d s", bytes=2 * f.residual_bytes(s, rows, width)),
        Part(what="the base run's keys and values", formula="2 B T L K h s", bytes=keys),
        *passing(s, on),
    ]
    passes = 2 + rows * cells.block_tokens / (s.layers * width * ROWS_A_CHUNK)
    basis = f"{cells.n:.0f} cells x {on.prompts}, each restarted at its layer"
    return cost(parts, flops, passes, s, rate, basis, rows=rows, budget=on.budget)


def gradient_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """Two passes and a backward pass a step, then the cells that are re-checked exactly."""
    steps = number_of(given, "steps", 1) if given.get("method") == "integrated" else 1
    every = sweep_cells(given, s, on)
    checked = min(every.n, number_of(given, "top", 0) + number_of(given, "sample", 0))
    share = checked / max(every.n, 1)
    checks = sweep_cost(Cells(checked, every.block_tokens * share, every.logits * share), s, on, rate)
    saved = on.rows * on.width * f.autograd_bytes_per_token(s, on.width, eager=True)
    parts = [
        Part(what="saved for the backward pass", formula="B T L (3 F + 2 d + 3 H h + H T + 2) s", bytes=saved),
        *passing(s, on),
    ]
    flops = f.attribution_flops(s, on.rows, on.width, steps) + checks.flops
    basis = f"{steps} x (two forwards and a backward) over {on.prompts}, then {checked:.0f} cells exactly"
    return cost(parts, flops, 4 * steps + 2, s, rate, basis, rows=on.rows, budget=on.budget)


CURVES, SEARCH, HALVES = 60, 16, 8  # circuits of the curves, of the search for a size, of the completeness check


def circuit_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """Gradients along the steps (or a pass a part), then a whole pass for every circuit that is measured."""
    edges, exact = given.get("level") == "edges", given.get("method") == "exact"
    nodes = s.layers * (s.heads + 1)
    inputs = s.layers * (s.heads + 2 * s.kv_heads + 1)
    parts_of = nodes * inputs // 2 if edges else nodes
    steps = number_of(given, "steps", 1) if given.get("method") == "eap_ig" else 1
    checked = parts_of if exact else min(parts_of, number_of(given, "top", 0) + number_of(given, "sample", 0))
    n = checked + CURVES + SEARCH + HALVES + number_of(given, "minimality", 0)
    n += number_of(given, "controls", 0) * (1 if edges else 2)
    live = on.width - on.shared
    circuits = sweep_cost(Cells(n, n * s.layers * live, n * needs_every_logit(given)), s, on, rate)
    saved = on.rows * on.width * f.autograd_bytes_per_token(s, on.width, eager=True)
    parts = [
        Part(what="saved for the backward pass", formula="B T L (3 F + 2 d + 3 H h + H T + 2) s", bytes=saved),
        *passing(s, on),
    ]
    between = 0
    if edges:  # what every sender writes, twice, and what every input reads
        size = on.rows * on.width * (2 * nodes + inputs) * s.d_model * s.item_bytes
        parts.append(Part(what="what parts write and read", formula="B T (2 S + R) d s", bytes=size))
        between = 2 * n * on.rows * int(live) * parts_of * s.d_model
    flops = circuits.flops + between + (0 if exact else f.attribution_flops(s, on.rows, on.width, steps))
    basis = f"{'no gradients' if exact else f'{steps} backward passes'}, then {n:.0f} circuits x {on.prompts}"
    return cost(parts, flops, 4 * steps + n, s, rate, basis, rows=on.rows, budget=on.budget)


LENS_LOOKS, LENS_CHECK = 12, 128  # at the check part: starts and stops; its tokens


def lens_training_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """Reading the text, a regression a layer, then an unembedding forth and back for each token of a batch, step, layer
    and seed, one for every look at the check part, and those of the test."""
    width, batch = int(number_of(given, "width", 1)), number_of(given, "batch", 1)
    layers = len(names_of(given.get("layers"))) or s.layers
    tokens, tested = (0 if given.get("maps") else number_of(given, "n_tokens", 0)), number_of(given, "test_tokens", 0)
    seeds = number_of(given, "seeds", 1)
    trained = (seeds * number_of(given, "steps", 0) * batch) if tokens else 0
    looks = seeds * LENS_LOOKS * min(LENS_CHECK, tokens // 16)
    read = math.ceil((tokens + 4 * tested) / width)  # of a tested row only some tokens are used
    unembeddings = layers * (2 * trained + looks + (1 + seeds) * tested)
    fits = 4 * layers * seeds * tokens * s.d_model**2
    flops = f.forward_flops(s, read, width, logits_per_row=0) + fits + unembeddings * f.unembed_flops(s)
    parts = [
        Part(what="residuals trained on", formula="n L d s", bytes=tokens * layers * s.d_model * s.item_bytes),
        Part(what="maps under training", formula="8 L d^2 4", bytes=32 * layers * s.d_model**2 if tokens else 0),
        Part(what="logits of a batch", formula="6 batch V 4", bytes=24 * batch * s.d_vocab),
        Part(what="maps", formula="L d^2 4", bytes=4 * layers * s.d_model**2 if tokens else 0, place="disk"),
    ]
    basis = f"{trained:.0f} tokens through {layers} layers' lenses forth and back, {read} rows of {width} tokens read"
    return cost(parts, flops, 2, s, rate, basis, rows=layers, budget=on.budget)


def transplant_cells(given: Given, s: Sizes, on: Extent) -> Cells:
    """A target of about twenty tokens, patched at one position from every layer, with its random controls."""
    layers = len(names_of(given.get("layers"))) or s.layers
    n = layers * (1 + number_of(given, "controls", 0))
    return Cells(n, n * s.layers / 2, n)


def feature_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """A forward and a backward pass, then features taken away exactly, as if at the middle layer."""
    n = number_of(given, "top", 0) + number_of(given, "sample", 0) + number_of(given, "controls", 0) + 2
    checks = sweep_cost(Cells(n, n * s.layers / 2 * on.width, n), s, on, rate)
    saved = on.rows * on.width * f.autograd_bytes_per_token(s, on.width, eager=True)
    written = n * f.residual_bytes(s, on.rows, on.width) / s.layers
    parts = [
        Part(what="saved for the backward pass", formula="B T L (3 F + 2 d + 3 H h + H T + 2) s", bytes=saved),
        Part(what="values that are written", formula="n B T d s", bytes=int(written)),
        *passing(s, on),
    ]
    flops = f.attribution_flops(s, on.rows, on.width, 1) + checks.flops
    basis = f"a forward and a backward pass over {on.prompts}, then {n:.0f} sets of features taken away"
    return cost(parts, flops, 6, s, rate, basis, rows=on.rows, budget=on.budget)


def search_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """Steps of gradient descent for every place and seed (one more in an untrained model), then the controls."""
    places = max(len(names_of(given.get("layers"))), len(names_of(given.get("heads"))), 1)
    places *= max(len(names_of(given.get("positions"))), 1)
    seeds = number_of(given, "seeds", 1)
    searches = 0 if given.get("subspace") is not None else places * (seeds + bool(given.get("random_model")))
    steps, batch = searches * number_of(given, "steps", 1), number_of(given, "batch", 1)
    ways = 2 if given.get("direction") == "both" else 1
    judged = places * ways * (4 * seeds + number_of(given, "controls", 0) + 5)
    saved = batch * on.width * f.autograd_bytes_per_token(s, on.width, eager=True)
    parts = [
        Part(what="saved for the backward pass", formula="B T L (3 F + 2 d + 3 H h + H T + 2) s", bytes=saved),
        *passing(s, on),
    ]
    a_pass = f.forward_flops(s, on.rows, on.width, logits_per_row=1)
    flops = 3 * steps * f.forward_flops(s, batch, on.width, logits_per_row=1) + judged * a_pass
    basis = f"{steps} steps of {batch} interchanges, then {judged} passes over {on.prompts}"
    return cost(parts, flops, 3 * steps + judged, s, rate, basis, rows=on.rows, budget=on.budget)


def reading_cost(given: Given, s: Sizes, on: Extent, rate: Rate) -> Cost:
    """Two passes (clean and corrupted) with what is kept of them."""
    flops = 2 * f.forward_flops(s, on.rows, on.width, logits_per_row=1)
    parts = [*passing(s, on), *_reads(given, s, on)]
    return cost(parts, flops, 2, s, rate, f"2 passes over {on.prompts}", rows=on.rows, budget=on.budget)


def sweep_cells(given: Given, s: Sizes, on: Extent) -> Cells:
    """The cells that arguments mean: each computes the layers from its own on, and the positions from its own on."""
    live = on.width - on.shared if "direction" in given else on.width
    a_layer = {"head": s.heads, "q": s.heads, "k": s.kv_heads, "v": s.kv_heads, "neuron": s.d_mlp}
    units = a_layer.get(str(given.get("site")), 1)
    # A name that is no head is left to the technique, which says what heads look like.
    found = (re.match(r"L(\d+)(?:H|KV|N|F)\d+$", str(name)) for name in names_of(given.get("heads")))
    named = [int(match[1]) for match in found if match]
    layers = named or [int(layer) for layer in names_of(given.get("layers"))] or list(range(s.layers))
    grid = given.get("grid") or ("layer_head" if units > 1 or "ablation" in given else "layer_position")
    whole = needs_every_logit(given)
    starts = [layer for layer in layers for _ in range(1 if named or grid == "layer_position" else units)]
    blocks = sum(s.layers - start for start in starts)
    if grid == "layer_head":
        sets = _joint_sets(given, len(starts))
        n = len(starts) + sets
        return Cells(n, (blocks + sets * (s.layers - min(starts))) * live, n * whole)
    positions = len(names_of(given.get("positions"))) or on.width
    n = len(starts) * positions
    return Cells(n, blocks * positions * live**2 / (2 * on.width), n * whole)


def path_cells(given: Given, s: Sizes, on: Extent) -> Cells:
    """Every sender through every receiver, from the sender's layer on, half the layers on average."""
    senders = len(names_of(given.get("senders"))) or s.layers * (s.heads + 1)
    ends = len(names_of(given.get("receivers"))) + bool(given.get("together"))
    n = senders * ends
    return Cells(n, n * s.layers / 2 * (on.width - on.shared), n * needs_every_logit(given))


def site_bytes(kind: SiteKind, s: Sizes, rows: int, width: int) -> int:
    """Bytes of one place, read at every position, with all heads or neurons."""
    kv = s.kv_heads * s.d_head
    per_token = {
        "head": s.heads * s.d_head, "q": s.heads * s.d_head, "k": kv, "v": kv, "scores": s.heads * width,
        "pattern": s.heads * width, "neuron": s.d_mlp, "logits": s.d_vocab,
    }.get(kind, s.d_model)  # fmt: skip
    return rows * width * per_token * s.item_bytes


def _random_tokens(given: Given, on: Extent) -> Extent:
    """Rows of random tokens, each repeated once, for every seed; untrained twins read as many as one seed."""
    sets = number_of(given, "seeds", 1) + number_of(given, "null_models", 0)
    return replace(on, rows=sets * number_of(given, "rows", 1), width=2 * number_of(given, "length", 1))


def _labelled(given: Given, on: Extent) -> Extent:
    """Texts in the arguments, at about three characters a token, read by the model and its untrained twins."""
    texts = [getattr(e, "text", ()) for e in items_of(given.get("examples"))]
    widths = widths_of(texts)
    return replace(on, rows=len(texts) * (1 + number_of(given, "null_models", 0)), width=max(widths, default=1))


def _running_text(given: Given, on: Extent) -> Extent:
    """Windows of text, as many as the tokens asked for fill."""
    width = max(1, int(number_of(given, "width", 1)))
    return replace(on, rows=math.ceil(number_of(given, "n_tokens", width) / width), width=width)


def _reads(given: Given, s: Sizes, on: Extent) -> list[Part]:
    """The places that `sites` names, by layers where it names a kind alone; kept ones go to disk."""
    n_layers = len(names_of(given.get("layers"))) or s.layers
    place = "disk" if given.get("keep") else "memory"
    parts = []
    for name in names_of(given.get("sites")):
        kind, times = _kind(name, n_layers)
        size = times * site_bytes(kind, s, on.rows, on.width)
        parts.append(Part(what=f"{name}, {times} layer(s)", formula="its shape x s", bytes=size, place=place))
    return parts


def _kind(name: str, layers: int) -> tuple[SiteKind, int]:
    try:
        return parse_site(name).kind, 1
    except BadSite:
        return name, layers  # type: ignore[return-value]  # a bare kind; an unknown one is counted as a residual


def _joint_sets(given: Given, parts: int) -> int:
    """Sets taken out together: the choice and its random sets; of several parts each with others in its place.

    These others are measured alone (parts of neighbouring layers share most of them) and in the part's place.
    """
    together, controls = given.get("together"), given.get("controls")
    if together is None:
        together = bool(given.get("heads") or given.get("layers"))
    if not ("together" in given and together and isinstance(controls, int)):
        return 0
    rests = parts if parts > 2 else 0  # without one of two parts the other is left: measured already
    return 1 + controls + (controls * (min(parts, MOST_TESTED) + 1) + rests if parts > 1 else 0)
