"""A change of weights is data: which matrix, which of its heads or neurons, what rule, which direction.

D model width. Matrices that write to the residual stream: embed, position_embed, o (with its bias), mlp_out (with its
bias). Matrices that read it, through a norm: q, k, v, mlp_in, mlp_gate, unembed.

| rule | a matrix that writes | a matrix that reads |
|---|---|---|
| zero | its rows (all, or those of the heads or neurons) and, when whole, its bias become 0 | not offered |
| project_out | each row w becomes w - (w . u) u, u along v | each column likewise, u along norm weight * v |

So after project_out a matrix writes nothing along v, or does not notice what stands along v. A post-norm (Gemma) scales
what is written by its weight: there u lies along norm weight * v too. A norm's scale still depends on all of its input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import BadArguments, BadSite
from .sites import Shape

if TYPE_CHECKING:
    from torch import Tensor

WeightRule = Literal["zero", "project_out"]
Matrix = Literal["embed", "position_embed", "o", "mlp_out", "q", "k", "v", "mlp_in", "mlp_gate", "unembed"]
WRITERS: tuple[Matrix, ...] = ("embed", "position_embed", "o", "mlp_out")
READERS: tuple[Matrix, ...] = ("q", "k", "v", "mlp_in", "mlp_gate", "unembed")
OUTSIDE: frozenset[Matrix] = frozenset({"embed", "position_embed", "unembed"})
_PART = re.compile(r"L(\d+)(?:H(\d+)|N(\d+)| attn| mlp)")


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """One change to one matrix."""

    matrix: Matrix
    layer: int | None  # none for matrices outside the blocks
    rule: WeightRule
    index: int | None = None  # a head of o, a neuron of mlp_out; None: the whole matrix
    direction: Tensor | None = None  # [D]

    def __str__(self) -> str:
        where = self.matrix if self.layer is None else f"L{self.layer} {self.matrix}"
        return f"{self.rule} {where}" + ("" if self.index is None else f" {self.index}")


def weight_edits(
    parts: Sequence[str] | Literal["writers", "readers"], rule: WeightRule, shape: Shape, *,
    layers: Sequence[int] | None = None, direction: Tensor | None = None,
) -> tuple[WeightEdit, ...]:  # fmt: skip
    """The changes that names of parts mean: 'L3H7', 'L3N17', 'L3 attn', 'L3 mlp', 'embed', 'unembed', or a whole side.

    `layers` limits 'writers' and 'readers' to those blocks.

    Raises:
        BadArguments: nothing named, one named twice, a rule that the part does not take, or a missing direction.
        BadSite: a part that the model does not have.
    """
    if (rule == "project_out") != (direction is not None):
        raise BadArguments("project_out needs a `direction`, and zero takes none.")
    if isinstance(parts, str):
        if rule == "zero":
            raise BadArguments(f"zeroing all {parts} leaves no model: name parts, or project a direction out.")
        return _side(parts, rule, shape, layers, direction)
    if not parts or len(set(parts)) < len(parts) or layers is not None:
        raise BadArguments(f"parts {list(parts)}: name some, each once; `layers` is for 'writers' and 'readers'.")
    return tuple(e for part in parts for e in _part(part, rule, shape, direction))


def _side(
    side: str, rule: WeightRule, shape: Shape, layers: Sequence[int] | None, direction: Tensor | None
) -> tuple[WeightEdit, ...]:
    matrices = WRITERS if side == "writers" else READERS
    inside = range(shape.n_layers) if layers is None else layers
    if bad := [layer for layer in inside if not 0 <= layer < shape.n_layers]:
        raise BadSite(f"layers {bad} do not exist: layers are 0 to {shape.n_layers - 1}.")
    edits = [
        WeightEdit(m, layer, rule, direction=direction)
        for layer in inside
        for m in matrices
        if m not in OUTSIDE and (shape.d_mlp or not m.startswith("mlp"))
    ]
    if layers is None:
        edits += [WeightEdit(m, None, rule, direction=direction) for m in matrices if m in OUTSIDE]
    return tuple(edits)


def _part(part: str, rule: WeightRule, shape: Shape, direction: Tensor | None) -> tuple[WeightEdit, ...]:
    if part in OUTSIDE:
        if rule == "zero":
            raise BadArguments(f"zeroing {part} leaves no model; project a direction out of it instead.")
        return (WeightEdit(part, None, rule, direction=direction),)  # type: ignore[arg-type]
    found = _PART.fullmatch(part)
    if not found:
        raise BadSite(
            f"{part!r} is no part of a model. Write a head as 'L3H7', a neuron as 'L3N17', a whole output as 'L3 attn' "
            "or 'L3 mlp', or 'embed', 'position_embed', 'unembed'."
        )
    layer, head, neuron = int(found[1]), found[2], found[3]
    if layer >= shape.n_layers:
        raise BadSite(f"{part} does not exist: layers are 0 to {shape.n_layers - 1}.")
    matrix: Matrix = "mlp_out" if neuron is not None or part.endswith("mlp") else "o"
    count = shape.n_heads if matrix == "o" else shape.d_mlp
    index = head if head is not None else neuron
    if count == 0 or (index is not None and int(index) >= count):
        raise BadSite(f"{part} does not exist: layer {layer} has {count} {'heads' if matrix == 'o' else 'neurons'}.")
    return (WeightEdit(matrix, layer, rule, None if index is None else int(index), direction),)
