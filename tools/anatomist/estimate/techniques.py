"""What a technique takes, from the arguments that techniques share.

A technique that knows better says so itself with `cost(arguments, sizes, rows, width, rate) -> Cost`; for the others
the passes follow from their arguments: those with a direction or an ablation sweep over cells, all else reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from ..errors import BadSite
from ..model.sites import SiteKind, parse_site
from ..result import Frozen
from . import formulas as f
from .calibration import Rate
from .cost import Cost, Part, cost
from .sizes import Sizes

Given = Mapping[str, object]
ROWS_A_CHUNK = 64  # cells that read the weights together


class Cells(NamedTuple):
    """The cells of a sweep: how many, and how many blocks and tokens they compute in all, on one prompt."""

    n: int
    block_tokens: float


def cost_of_technique(
    module: ModuleType, arguments: Frozen, sizes: Sizes, rows: int, width: int, rate: Rate, *, shared: float = 0
) -> Cost:
    """Memory and time of a technique on `rows` prompts of `width` tokens.

    shared: tokens that a prompt and its counterfactual begin with alike; patching between them computes none of these.
    """
    if own := getattr(module, "cost", None):
        return own(arguments, sizes, rows, width, rate)
    given = {name: getattr(arguments, name) for name in type(arguments).model_fields}
    if "direction" in given or "ablation" in given:
        return sweep_cost(given, sizes, rows, width, rate, shared=shared if "direction" in given else 0)
    return reading_cost(given, sizes, rows, width, rate)


def sweep_cost(given: Given, s: Sizes, rows: int, width: int, rate: Rate, *, shared: float = 0) -> Cost:
    """One edit a cell: a cell computes the layers from its own on and, where it edits one position, those after it."""
    cells = sweep_cells(given, s, width, width - shared)
    a_token = f.block_flops(s, width) / width
    flops = 2 * f.forward_flops(s, rows, width, logits_per_row=1)
    flops += rows * (cells.block_tokens * a_token + cells.n * f.unembed_flops(s))
    keys = rows * width * f.kv_bytes_per_token(s)
    parts = [
        Part(what="both runs' residuals", formula="2 B T L d s", bytes=2 * f.residual_bytes(s, rows, width)),
        Part(what="the base run's keys and values", formula="2 B T L K h s", bytes=keys),
        Part(what="logits at the read position", formula="B V s", bytes=f.logit_bytes(s, rows, 1)),
        _working(s, 1, width),
    ]
    basis = f"{cells.n} cells x {rows} prompts of {width} tokens, each restarted at its layer"
    passes = 2 + rows * cells.block_tokens / (s.layers * width * ROWS_A_CHUNK)
    return cost(parts, flops, passes, s, rate, basis)


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
    n_layers = len(_names(given.get("layers"))) or s.layers
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


def sweep_cells(given: Given, s: Sizes, width: int, live: float) -> Cells:
    """The cells that arguments mean; `live` of `width` tokens are not shared with the other run."""
    a_layer = {"head": s.heads, "q": s.heads, "k": s.kv_heads, "v": s.kv_heads, "neuron": s.d_mlp}
    units = a_layer.get(str(given.get("site")), 1)
    named = [_layer_of(name) for name in _names(given.get("heads"))]
    layers = named or [int(layer) for layer in _names(given.get("layers"))] or list(range(s.layers))
    grid = given.get("grid") or ("layer_head" if units > 1 or "ablation" in given else "layer_position")
    starts = [layer for layer in layers for _ in range(1 if named or grid == "layer_position" else units)]
    blocks = sum(s.layers - start for start in starts)
    if grid == "layer_head":
        sets = _joint_sets(given)
        joint = sets * (s.layers - min(starts)) * live
        return Cells(len(starts) + sets, blocks * live + joint)
    positions = len(_names(given.get("positions"))) or width
    return Cells(len(starts) * positions, blocks * positions * live**2 / (2 * width))


def _layer_of(unit: str) -> int:
    """The layer of `L23H3`; 0 for what is no unit's name, which the technique itself refuses with the right words."""
    digits = unit[1:].partition("H")[0].partition("K")[0].partition("N")[0]
    return int(digits) if unit.startswith("L") and digits.isdigit() else 0


def _joint_sets(given: Given) -> int:
    """Sets that an ablation takes out together: the choice and its random controls."""
    together, controls = given.get("together"), given.get("controls")
    if together is None:
        together = bool(given.get("heads") or given.get("layers"))
    return 1 + controls if "together" in given and together and isinstance(controls, int) else 0


def _names(named: object) -> list[str]:
    """What a selection names; nothing for all."""
    return [str(n) for n in named] if isinstance(named, Sequence) and not isinstance(named, str) else []
