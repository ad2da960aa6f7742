"""Cut attention edges as an edit of a forward pass: which query may no longer read which key.

N rows of a pass, P queries of the row that has most, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .edits import Edit
from .protocol import ModelInfo
from .sites import Site
from .sweep_cost import item_bytes
from .sweep_plan import Cell, SweepPlan


def cut_edit(cell: Cell, site: Site, places: Sequence[tuple[int, int]], width: int) -> Edit:
    """The cut of one cell at one site, on (row of the pass, base row) pairs; the pass is `width` tokens wide."""
    assert cell.positions is not None
    assert cell.keys is not None, "check_plan has seen to it"
    rows, base = zip(*places, strict=True)
    queries = tuple(cell.positions[b] for b in base)
    cut = _cut([cell.keys[b] for b in base], width)
    cut = cut if site.index is not None else cut[:, :, None]
    softmax = site.kind == "scores"
    value = torch.zeros_like(cut).masked_fill_(cut.bool(), float("-inf")) if softmax else 1 - cut
    return Edit(site=site, rule="add" if softmax else "multiply", rows=rows, positions=queries, value=value)


def _cut(keys: Sequence[Sequence[Sequence[int]]], width: int) -> Float[Tensor, "N P T"]:
    """1 at the keys that are cut, 0 elsewhere."""
    found = torch.zeros(len(keys), max(map(len, keys)), width)
    index = [(n, p, key) for n, row in enumerate(keys) for p, of in enumerate(row) for key in of]
    found[tuple(map(list, zip(*index, strict=True)))] = 1
    return found


def cut_bytes(info: ModelInfo, plan: SweepPlan) -> int:
    """Bytes of the cuts of one row of a pass: the values of the cell that needs most, made twice, and two copies of the
    scores or pattern that are changed (what the pass holds of them besides is counted there)."""
    width = plan.base.width
    values = max(len(cell.sites) * max(map(len, cell.keys or ((),))) for cell in plan.cells) * width * 4
    return 2 * values + 2 * info.n_heads * width**2 * item_bytes(info)
