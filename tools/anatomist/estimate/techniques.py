"""What a technique takes, from the arguments that techniques share.

A technique that knows better says so itself with `cost(arguments, sizes, rows, width, rate) -> Cost`; for the others
the passes follow from their arguments: those with a direction or an ablation sweep over cells, all else reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

from ..errors import BadSite
from ..model.sites import SiteKind, parse_site
from ..result import Frozen
from . import formulas as f
from .calibration import Rate
from .cost import Cost, Part, cost
from .sizes import Sizes

Given = Mapping[str, object]


def cost_of_technique(
    module: ModuleType, arguments: Frozen, sizes: Sizes, rows: int, width: int, rate: Rate
) -> Cost:
    """Memory and time of a technique on `rows` prompts of `width` tokens."""
    if own := getattr(module, "cost", None):
        return own(arguments, sizes, rows, width, rate)
    given = {name: getattr(arguments, name) for name in type(arguments).model_fields}
    sweeps = "direction" in given or "ablation" in given
    return (sweep_cost if sweeps else reading_cost)(given, sizes, rows, width, rate)


def sweep_cost(given: Given, s: Sizes, rows: int, width: int, rate: Rate) -> Cost:
    """One edit a cell: a cell computes the layers from its own on and, where it edits one position, those after it."""
    cells, one_position = _cells(given, s, width)
    share = 0.5 * (0.5 if one_position else 1.0)  # of a whole forward, on average over the grid
    flops = 2 * f.forward_flops(s, rows, width, logits_per_row=1) + rows * cells * (
        share * s.layers * f.block_flops(s, width) + f.unembed_flops(s)
    )
    keys = rows * width * f.kv_bytes_per_token(s)
    parts = [
        Part(what="both runs' residuals", formula="2 B T L d s", bytes=2 * f.residual_bytes(s, rows, width)),
        Part(what="the base run's keys and values", formula="2 B T L K h s", bytes=keys),
        Part(what="logits at the read position", formula="B V s", bytes=f.logit_bytes(s, rows, 1)),
        _working(s, 1, width),
    ]
    basis = f"{cells} cells x {rows} prompts of {width} tokens, each restarted at its layer"
    return cost(parts, flops, passes=2 + share * cells * rows / 64, sizes=s, rate=rate, basis=basis)


def reading_cost(given: Given, s: Sizes, rows: int, width: int, rate: Rate) -> Cost:
    """Two passes (clean and corrupted) with what is read of them."""
    parts = [
        _working(s, rows, width),
        Part(what="logits at the read position", formula="B V s", bytes=f.logit_bytes(s, rows, 1)),
        *_reads(given, s, rows, width),
    ]
    flops = 2 * f.forward_flops(s, rows, width, logits_per_row=1)
    return cost(parts, flops, passes=2, sizes=s, rate=rate, basis=f"2 passes over {rows} prompts of {width} tokens")


def site_bytes(kind: SiteKind, s: Sizes, rows: int, width: int) -> int:
    """Bytes of one place, read at every position, with all heads or neurons."""
    kv = s.kv_heads * s.d_head
    per_token = {
        "head": s.heads * s.d_head, "q": s.heads * s.d_head, "k": kv, "v": kv, "scores": s.heads * width,
        "pattern": s.heads * width, "neuron": s.d_mlp, "logits": s.d_vocab,
    }.get(kind, s.d_model)  # fmt: skip
    return rows * width * per_token * s.item_bytes


def _working(s: Sizes, rows: int, width: int) -> Part:
    return Part(what="one block at work", formula=f.BLOCK_AT_WORK, bytes=f.block_at_work_bytes(s, rows, width))


def _reads(given: Given, s: Sizes, rows: int, width: int) -> list[Part]:
    """The places that `sites` or `site` names, by layers where it names a kind alone."""
    named = given.get("sites") or ((given["site"],) if given.get("site") else ())
    if not isinstance(named, Sequence) or isinstance(named, str):
        return []
    layers = given.get("layers")
    n_layers = len(layers) if isinstance(layers, Sequence) else s.layers
    parts = []
    for name in map(str, named):
        kind, times = _kind(name, n_layers)
        size = times * site_bytes(kind, s, rows, width)
        parts.append(Part(what=f"{name}, {times} layer(s)", formula="its shape x s", bytes=size))
    return parts


def _kind(name: str, layers: int) -> tuple[SiteKind, int]:
    try:
        return parse_site(name).kind, 1
    except BadSite:
        return name, layers  # type: ignore[return-value]  # a bare kind; an unknown one is counted as a residual


def _cells(given: Given, s: Sizes, width: int) -> tuple[int, bool]:
    """How many cells a sweep has, and whether each edits a single position."""
    site, grid = str(given.get("site")), str(given.get("grid"))
    layers = _count(given.get("layers")) or s.layers
    a_layer = {"head": s.heads, "q": s.heads, "k": s.kv_heads, "v": s.kv_heads, "neuron": s.d_mlp}.get(site, 1)
    units = _count(given.get("heads")) or layers * a_layer
    positions = _count(given.get("positions")) or width
    match grid:
        case "layer_position":
            return layers * positions, True
        case "head_position":
            return units * positions, True
        case _:
            return (units, False) if a_layer > 1 or "ablation" in given else (layers * positions, True)


def _count(named: object) -> int:
    """How many a selection names; 0 for all of them."""
    return len(named) if isinstance(named, Sequence) and not isinstance(named, str) else 0
