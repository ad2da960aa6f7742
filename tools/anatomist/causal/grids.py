"""Cells of a sweep laid out as a grid with labelled axes: layer x position, layer x head, head x position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..model.sites import Shape, Site, SiteKind
from ..model.sweep_plan import Cell
from ..prompts.columns import Column
from ..result import Grid, grid
from .units import AXES, LETTERS, unit_name

Positions = tuple[tuple[int, ...], ...] | None  # per row; None: all


@dataclass(frozen=True)
class CellGrid:
    """Cells and where each stands in a labelled grid; places without a cell are null."""

    axes: tuple[tuple[str, tuple[str, ...]], ...]  # name and labels, outermost first
    cells: tuple[Cell, ...]
    where: tuple[int, ...]  # flat row-major index of each cell

    @property
    def size(self) -> int:
        size = 1
        for _, labels in self.axes:
            size *= len(labels)
        return size

    def fill(self, name: str, unit: str, values: Iterable[float]) -> Grid:
        """A grid of one number per cell."""
        out: list[float | None] = [None] * self.size
        for place, value in zip(self.where, values, strict=True):
            out[place] = float(value)
        return grid(name, unit, self.axes, out)

    def labels(self, cell: int) -> tuple[str, ...]:
        """One label per axis."""
        found: list[str] = []
        rest = self.where[cell]
        for _, labels in reversed(self.axes):
            rest, i = divmod(rest, len(labels))
            found.insert(0, labels[i])
        return tuple(found)

    def name(self, cell: int) -> str:
        """A cell in words: 'L3H7', 'L3 resid_pre at 9: John'."""
        unit = unit_name(self.cells[cell].sites[0])
        at = [label for (axis, _), label in zip(self.axes, self.labels(cell), strict=True) if axis == "position"]
        return " at ".join([unit, *at])


def by_layer_and_position(kind: SiteKind, layers: Sequence[int], columns: Sequence[Column]) -> CellGrid:
    """One whole place (all heads or neurons of it) at one position."""
    cells = [Cell((Site(kind, layer),), _each(column)) for layer in layers for column in columns]
    axes = (("layer", tuple(map(str, layers))), ("position", tuple(c.label for c in columns)))
    return CellGrid(axes, tuple(cells), tuple(range(len(cells))))


def by_unit_and_position(units: Sequence[Site], columns: Sequence[Column]) -> CellGrid:
    """One head (or neuron) at one position."""
    cells = [Cell((unit,), _each(column)) for unit in units for column in columns]
    axes = ((_axis(units), tuple(map(unit_name, units))), ("position", tuple(c.label for c in columns)))
    return CellGrid(axes, tuple(cells), tuple(range(len(cells))))


def by_layer_and_head(units: Sequence[Site], shape: Shape, positions: Positions) -> CellGrid:
    """One head at the given positions together; a square of all layers named by heads of a layer."""
    layers = sorted({unit.layer or 0 for unit in units})
    letter, count = LETTERS[units[0].kind], shape.count(units[0].kind)
    axes = (("layer", tuple(map(str, layers))), (_axis(units), tuple(f"{letter}{i}" for i in range(count))))
    where = tuple(layers.index(unit.layer or 0) * count + (unit.index or 0) for unit in units)
    return CellGrid(axes, tuple(Cell((unit,), positions) for unit in units), where)


def in_a_row(sites: Sequence[Site], positions: Positions, axis: str) -> CellGrid:
    """Places one after the other, each at the given positions together."""
    cells = tuple(Cell((site,), positions) for site in sites)
    return CellGrid(((axis, tuple(map(unit_name, sites))),), cells, tuple(range(len(cells))))


def together(columns: Sequence[Column]) -> tuple[tuple[int, ...], ...]:
    """Several columns as one joint choice: per row its positions, each once."""
    return tuple(tuple(dict.fromkeys(places)) for places in zip(*(c.positions for c in columns), strict=True))


def _each(column: Column) -> tuple[tuple[int, ...], ...]:
    return tuple((position,) for position in column.positions)


def _axis(units: Sequence[Site]) -> str:
    return AXES[LETTERS[units[0].kind]]
