"""The colour scale of cells and tokens: its ends, its legend, and where text on it must be light."""

from __future__ import annotations

from collections.abc import Iterable

STRONG = 0.6  # share of the colour scale from which text is drawn in the light colour
LINE = 16  # characters of a line in a legend's title


def ends(
    values: Iterable[float | None], given: tuple[float, float] | None, *, diverging: bool
) -> tuple[float, float]:
    """The ends of the colour scale: given, or the values' own with 0; symmetric about 0 when diverging."""
    present = [v for v in values if v is not None] or [0.0]
    low, high = given or (min(0.0, *present), max(present))
    if diverging:
        reach = max(abs(low), abs(high)) or 1.0
        return -reach, reach
    return (low, high) if low < high else (low, low + 1.0)


def colour(unit: str, domain: tuple[float, float], *, diverging: bool, height: float) -> dict[str, object]:
    """The encoding of field `v` with a legend that is about `height` pixels long."""
    scale: dict[str, object] = {"domain": list(domain), "clamp": True, "interpolate": "rgb"}
    if diverging:
        scale |= {"domainMid": 0}
    drawn = {"title": wrapped(unit), "gradientLength": max(70, min(170, int(height))), "tickCount": 5}
    return {"field": "v", "type": "quantitative", "scale": scale, "legend": drawn}


def strong(value: float | None, domain: tuple[float, float], *, diverging: bool) -> bool:
    """Whether the colour of a value is too deep for dark text."""
    if value is None:
        return False
    low, high = domain
    return (abs(value) / high if diverging else (value - low) / (high - low)) > STRONG


def wrapped(unit: str) -> list[str]:
    """A legend title in lines of about 16 characters."""
    lines = [""]
    for word in unit.split():
        if lines[-1] and len(lines[-1]) + len(word) > LINE:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
