"""What a result is: frozen, closed, finite, and carrying what its numbers mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Base of all data that crosses a seam: immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Frozen):
    """A mean over prompts with its confidence interval (cluster bootstrap unless `method` says otherwise)."""

    mean: float = Field(description="Mean over prompts, in the unit of the metric.")
    low: float | None = Field(default=None, description="Lower end of the interval; absent for a single prompt.")
    high: float | None = Field(default=None, description="Upper end of the interval; absent for a single prompt.")
    level: float = Field(default=0.95, description="Confidence level of the interval.")
    n: int = Field(description="Number of prompts.")
    clusters: int = Field(default=1, description="Number of independent clusters (template and names) resampled.")
    method: str = Field(default="cluster bootstrap", description="How the interval was made.")

    def __str__(self) -> str:
        interval = f" [{self.low:.3g}, {self.high:.3g}]" if self.low is not None and self.high is not None else ""
        return f"{self.mean:.3f}{interval} (n={self.n})"


class Axis(Frozen):
    """One axis of a grid, with a label for every index."""

    name: str = Field(description="What runs along the axis: layer, head, position, component, ...")
    labels: tuple[str, ...] = Field(description="One label per index; positions carry their token, e.g. '9: John'.")


class Grid(Frozen):
    """A labelled array of numbers, row-major; missing cells are null."""

    name: str = Field(description="What the numbers are.")
    unit: str = Field(description="Unit of the numbers, e.g. 'logits', 'probability', 'fraction of the gap'.")
    axes: tuple[Axis, ...] = Field(description="The axes, outermost first.")
    values: tuple[float | None, ...] | None = Field(
        description="Row-major values; null when left out for size: read them with get_run."
    )

    @model_validator(mode="after")
    def _shape_agrees(self) -> Grid:
        if self.values is not None and len(self.values) != self.size:
            raise ValueError(f"grid {self.name!r} has {len(self.values)} values, its axes say {self.size}")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis.labels) for axis in self.axes)

    @property
    def size(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size

    def at(self, *index: int) -> float | None:
        """The value at one index per axis."""
        if self.values is None:
            raise ValueError(f"grid {self.name!r} was left out for size")
        flat = 0
        for i, n in zip(index, self.shape, strict=True):
            flat = flat * n + i % n
        return self.values[flat]

    def top(self, k: int, *, by: Literal["magnitude", "value"] = "magnitude") -> list[Cell]:
        """The k largest cells by magnitude or by signed value, each with its labels."""
        if self.values is None:
            raise ValueError(f"grid {self.name!r} was left out for size")
        key = abs if by == "magnitude" else float
        found = [(i, v) for i, v in enumerate(self.values) if v is not None]
        return [self._cell(i, v) for i, v in sorted(found, key=lambda iv: -key(iv[1]))[:k]]

    def _cell(self, flat: int, value: float) -> Cell:
        index: list[int] = []
        rest = flat
        for n in reversed(self.shape):
            rest, i = divmod(rest, n)
            index.insert(0, i)
        return Cell(labels=tuple(a.labels[i] for a, i in zip(self.axes, index, strict=True)), value=value)


class Cell(Frozen):
    """One cell of a grid: a label per axis and the value."""

    labels: tuple[str, ...] = Field(description="One label per axis of the grid.")
    value: float = Field(description="The value, in the grid's unit.")


class SelfTest(Frozen):
    """A check that a technique makes of itself on this very run."""

    name: str = Field(description="What was checked.")
    expected: float = Field(description="The value a correct run gives.")
    found: float = Field(description="The value found.")
    tolerance: float = Field(description="Largest difference accepted.")
    passed: bool = Field(description="Whether the difference is within tolerance.")


class About(Frozen):
    """What a result's numbers depend on; stamped by the runner."""

    run: str = Field(description="Id of the stored run; pass it to get_run.")
    technique: str
    model: str = Field(description="Model handle and source.")
    backend: str
    dtype: str
    device: str
    bos: bool = Field(description="Whether a beginning-of-sequence token was put before the prompts.")
    seed: int
    n: int | None = Field(default=None, description="Number of prompts, where there are any.")
    exploratory: bool = Field(description="True below 32 prompts, or outside a confirmatory plan.")
    seconds: float = Field(description="Wall-clock seconds of the computation.")
    estimated_seconds: float | None = Field(default=None, description="What was estimated before the run.")
    versions: Mapping[str, str] = Field(description="Versions of the packages that computed it.")


class Result(Frozen):
    """Base of every technique's result."""

    about: About | None = Field(default=None, description="Provenance; stamped when the run is stored.")
    summary: str = Field(description="What was found, in words a reader can act on; says what it does not show.")
    warnings: tuple[str, ...] = Field(default=(), description="What a careful reader must know before using this.")


Unit = Annotated[str, Field(description="Unit of the number.")]


def grid(name: str, unit: str, axes: Sequence[tuple[str, Iterable[object]]], values: Iterable[float | None]) -> Grid:
    """Build a grid from plain sequences (row-major values)."""
    return Grid(
        name=name,
        unit=unit,
        axes=tuple(Axis(name=n, labels=tuple(str(x) for x in labels)) for n, labels in axes),
        values=tuple(values),
    )
