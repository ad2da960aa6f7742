"""Slices written as text: '0, 3:8, :, -1'."""

from __future__ import annotations

from .errors import BadArguments

Index = tuple[int | slice, ...]


def parse_slice(text: str, shape: tuple[int, ...]) -> Index:
    """One integer or `start:stop:step` per axis, from the first; axes not named are taken whole.

    Raises:
        BadArguments: not such a text, more parts than axes, or an index outside its axis.
    """
    parts = [p.strip() for p in text.split(",")] if text.strip() else []
    if len(parts) > len(shape):
        raise BadArguments(f"slice {text!r} has {len(parts)} parts; the array has {len(shape)} axes {shape}.")
    index = [_part(part, n, axis, text) for axis, (part, n) in enumerate(zip(parts, shape, strict=False))]
    return (*index, *(slice(None) for _ in shape[len(parts) :]))


def sliced_shape(index: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what a slice gives."""
    return tuple(len(range(*i.indices(n))) for i, n in zip(index, shape, strict=True) if isinstance(i, slice))


def _part(part: str, n: int, axis: int, text: str) -> int | slice:
    try:
        bounds = [int(p) if p.strip() else None for p in part.split(":")]
        if len(bounds) == 1 and bounds[0] is not None and -n <= bounds[0] < n:
            return bounds[0]
        if len(bounds) in (2, 3) and bounds[2:] != [0]:
            return slice(*bounds)
    except ValueError:
        pass
    raise BadArguments(
        f"part {part!r} of slice {text!r} does not fit axis {axis} of {n}: write an integer from {-n} to {n - 1}, "
        "or start:stop, or ':'."
    )
