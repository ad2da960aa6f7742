"""Two stored runs side by side: what was asked differently, and which numbers differ by how much."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pydantic import Field, JsonValue

from .result import Frozen

SKIPPED = frozenset({"about", "seconds", "cost", "estimated_seconds"})  # what differs between any two runs
LISTED = 20


class Changed(Frozen):
    """One thing that differs."""

    where: str = Field(description="Path in the record.")
    first: str = Field(description="Its value in the first run, as text.")
    second: str = Field(description="Its value in the second run, as text.")


class NumberGap(Frozen):
    """One number that differs beyond tolerance."""

    where: str = Field(description="Path in the result.")
    first: float | None = Field(description="Value in the first run.")
    second: float | None = Field(description="Value in the second run.")


class Comparison(Frozen):
    """What two results have in common."""

    compared: int = Field(description="Numbers that both have.")
    only_one: int = Field(description="Numbers that only one of them has.")
    beyond: int = Field(description="Numbers that differ beyond tolerance.")
    largest: float = Field(description="Largest absolute difference.")
    absolute: float = Field(description="Absolute tolerance.")
    relative: float = Field(description="Relative tolerance.")
    gaps: tuple[NumberGap, ...] = Field(description="The largest differences beyond tolerance, at most twenty.")

    @property
    def same(self) -> bool:
        return not self.beyond and not self.only_one and self.compared > 0


def compare_numbers(
    first: Mapping[str, JsonValue], second: Mapping[str, JsonValue], *, absolute: float, relative: float
) -> Comparison:
    """Every number of two results, by its path; timings and provenance are left out."""
    a, b = dict(numbers(dict(first))), dict(numbers(dict(second)))
    shared = a.keys() & b.keys()
    gaps = {path: abs(a[path] - b[path]) for path in shared}
    beyond = [p for p in shared if gaps[p] > absolute + relative * max(abs(a[p]), abs(b[p]))]
    worst = sorted(beyond, key=lambda p: -gaps[p])[:LISTED]
    return Comparison(
        compared=len(shared),
        only_one=len(a.keys() ^ b.keys()),
        beyond=len(beyond),
        largest=max(gaps.values(), default=0.0),
        absolute=absolute,
        relative=relative,
        gaps=tuple(NumberGap(where=p, first=a[p], second=b[p]) for p in sorted(worst, key=lambda p: -gaps[p])),
    )


def changed(first: JsonValue, second: JsonValue, path: str = "") -> Iterator[Changed]:
    """Leaves of two records that differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            yield from changed(first.get(key), second.get(key), f"{path}.{key}" if path else key)
    elif first != second:
        yield Changed(where=path, first=_short(first), second=_short(second))


def numbers(value: JsonValue, path: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number of a record with its path."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float) and math.isfinite(value):
        yield path, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in SKIPPED:
                yield from numbers(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from numbers(inner, f"{path}.{i}")


def _short(value: JsonValue) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
