"""Several quantities at every layer, each with its interval: a table for the reader, a line a quantity to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..figures import Series
from ..measures.statistics import Intervals
from ..result import Frozen, Grid, grid

if TYPE_CHECKING:
    from numpy import ndarray


class Quantities(Frozen):
    """A table of layer by quantity."""

    values: Grid = Field(description="Layer by quantity; null where a quantity has no meaning.")
    low: Grid | None = Field(description="Lower interval ends; absent where nothing has an interval.")
    high: Grid | None = Field(description="Upper interval ends.")

    @property
    def layers(self) -> tuple[str, ...]:
        return self.values.axes[0].labels

    @property
    def names(self) -> tuple[str, ...]:
        return self.values.axes[1].labels

    def column(self, name: str, side: Literal["values", "low", "high"] = "values") -> tuple[float | None, ...] | None:
        """One quantity at every layer; None where that side is absent."""
        table: Grid | None = getattr(self, side)
        if table is None:
            return None
        place = self.names.index(name)
        return tuple(table.at(layer, place) for layer in range(len(self.layers)))

    def series(self, name: str) -> Series:
        """One quantity as a line with its band."""
        low, high = self.column(name, "low"), self.column(name, "high")
        banded = low is not None and any(v is not None for v in low)
        return Series(
            name=name, values=self.column(name) or (), low=low if banded else None, high=high if banded else None
        )


def quantities(name: str, unit: str, layers: Sequence[str], found: Mapping[str, Intervals]) -> Quantities:
    """The table of quantities that each have one number a layer."""
    sides = {side: [getattr(v, side) for v in found.values()] for side in ("mean", "low", "high")}
    banded = any(v is not None for v in sides["low"])
    return Quantities(
        values=_grid(name, unit, layers, found, sides["mean"]),
        low=_grid(f"{name}, lower end", unit, layers, found, sides["low"]) if banded else None,
        high=_grid(f"{name}, upper end", unit, layers, found, sides["high"]) if banded else None,
    )


def _grid(
    name: str, unit: str, layers: Sequence[str], found: Mapping[str, Intervals], columns: Sequence[ndarray | None]
) -> Grid:
    cells = [None if c is None else float(c[i]) for i in range(len(layers)) for c in columns]
    return grid(name, unit, [("layer", layers), ("quantity", found)], cells)
