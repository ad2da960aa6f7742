"""What a drawn panel is: its specification without data kept apart, and the pixels it is wide."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """One panel, ready to be placed."""

    body: dict[str, object]  # a Vega-Lite view
    width: float  # pixels of the plotting area
