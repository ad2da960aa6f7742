"""Labels on axes: short enough to be read, one per index even where two are the same, thinned out where they crowd."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .theme import LABEL

LONGEST = 34  # characters of a label
CHARACTER = 0.56 * LABEL  # mean width in pixels
COUNTED = 20  # consecutive numbers from here on are labelled at every second: each label costs as much as 30 cells


def shown(text: str) -> str:
    """A label as it is drawn: control characters spelled out, blanks in quotes, no middle when it is long."""
    plain = text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    plain = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in plain)
    if plain and not plain.strip():
        return f"'{plain}'"
    if len(plain) <= LONGEST:
        return plain
    return plain[: LONGEST - 9] + "…" + plain[-8:]


def width(labels: Sequence[str]) -> float:
    """Pixels of the longest label."""
    return max((len(shown(label)) for label in labels), default=0) * CHARACTER


def index_axis(title: str | None, labels: Sequence[str], step: float, *, flat: bool) -> dict[str, object]:
    """An axis over the indices 0, 1, ...: every label that has room (`step` pixels an index), upright where need be.

    `flat`: the axis runs from left to right.
    """
    upright = flat and width(labels) > step - 4
    room = LABEL + 2.0 if upright or not flat else width(labels) + 6
    every = max(1, -(-int(room) // max(1, int(step))))
    if len(labels) > COUNTED and list(labels) == [str(i) for i in range(len(labels))]:
        every = max(every, 2)
    axis: dict[str, object] = {
        "title": title,
        "values": list(range(0, len(labels), every)),
        "labelExpr": f"{json.dumps([shown(label) for label in labels], ensure_ascii=False)}[datum.value]",
        "labelLimit": 260,
        "labelOverlap": False,
        "ticks": False,
        "domain": False,
        "grid": False,
    }
    if flat:
        axis |= {"labelAngle": -60 if upright else 0, "labelAlign": "right" if upright else "center"}
        axis |= {"labelBaseline": "middle"} if upright else {}
    return axis
