"""Nodes on levels, joined by edges: a circuit from the embedding at the bottom to the logits at the top."""

from __future__ import annotations

from ..figures import Graph
from .labels import shown, width
from .parts import Part

Row = dict[str, object]
LEVEL, NARROW, WIDE = 62.0, 340.0, 760.0  # pixels: between levels, and across
THICK = 6.0  # pixels of the largest edge
NEAR, MARKED = 0.72, 40  # where on an edge its mark stands; edges up to which marks are written
SIGNS = ("works for it", "works against it")


def graph(panel: Graph) -> Part:
    """Edges as lines, as thick as they are large; nodes as labels, evenly spread over their level."""
    levels = sorted(set(panel.levels))
    step = width(panel.nodes) + 26
    most = max((panel.levels.count(level) for level in levels), default=1)
    wide = min(WIDE, max(NARROW, most * step))
    places = _places(panel, levels)
    largest = max((abs(v) for v in panel.values), default=0.0) or 1.0
    lines: list[Row] = []
    drawn_before: dict[tuple[int, int], int] = {}
    for i in sorted(range(len(panel.edges)), key=lambda i: -abs(panel.values[i])):
        edge, value = panel.edges[i], panel.values[i]
        (x, y), (x2, y2) = places[edge[0]], places[edge[1]]
        beside = _aside(drawn_before.get(edge, 0)) / wide
        drawn_before[edge] = drawn_before.get(edge, 0) + 1
        lines.append({
            "x": x + beside, "y": y, "x2": x2 + beside, "y2": y2, "v": value, "label": panel.labels[i],
            "g": SIGNS[value < 0], "w": 0.6 + (THICK - 0.6) * abs(value) / largest,
            "at": x + NEAR * (x2 - x) + beside, "up": y + NEAR * (y2 - y),
            "mark": panel.marks[i] if panel.marks else "",
        })  # fmt: skip
    nodes: list[Row] = [
        {"x": x, "y": y, "label": shown(name)} for (x, y), name in zip(places, panel.nodes, strict=True)
    ]
    x, y = _side("x", [0.0, 1.0]), _side("y", [-0.5, len(levels) - 0.5])
    drawn = {
        "x": x, "y": y, "x2": {"field": "x2"}, "y2": {"field": "y2"},
        "strokeWidth": {"field": "w", "type": "quantitative", "scale": None},
        "color": {"field": "g", "type": "nominal", "scale": {"domain": list(SIGNS)}, "legend": {"title": None}},
        "tooltip": [
            {"field": "label", "title": "edge", "type": "nominal"},
            {"field": "v", "title": panel.value_title, "type": "quantitative", "format": ".3g"},
        ],
    }  # fmt: skip
    layers: list[Row] = [
        {"data": {"values": lines}, "mark": {"type": "rule", "opacity": 0.7}, "encoding": drawn},
        {"data": {"values": nodes}, "mark": {"type": "circle", "size": 90, "opacity": 1}, "encoding": {"x": x, "y": y}},
        {
            "data": {"values": nodes},
            "mark": {"type": "text", "style": "point-label", "align": "left", "dx": 9, "dy": -5},
            "encoding": {"x": x, "y": y, "text": {"field": "label"}},
        },
    ]  # fmt: skip
    if panel.marks and len(lines) <= MARKED:
        layers.append({
            "data": {"values": lines}, "mark": {"type": "text", "style": "point-label", "dx": 7},
            "encoding": {
                "x": x | {"field": "at"}, "y": y | {"field": "up"}, "text": {"field": "mark"},
            },
        })  # fmt: skip
    return Part({"width": wide, "height": max(LEVEL, LEVEL * len(levels)), "layer": layers}, wide)


def _aside(times: int) -> float:
    """Pixels by which an edge stands aside of others between the same nodes: 0, 7, -7, 14, ..."""
    return 7.0 * ((times + 1) // 2) * (1 if times % 2 else -1)


def _places(panel: Graph, levels: list[int]) -> list[tuple[float, float]]:
    """x between 0 and 1, evenly over a level in the order given; y the level's rank. A lone node stands aside of the
    ones below and above, so that edges that pass its level do not run through it."""
    count = {level: panel.levels.count(level) for level in levels}
    done = dict.fromkeys(levels, 0)
    found: list[tuple[float, float]] = []
    for level in panel.levels:
        n, i = count[level], done[level]
        done[level] += 1
        x = (i + 0.5) / n if n > 1 or level in (levels[0], levels[-1]) else (0.35 if levels.index(level) % 2 else 0.65)
        found.append((x, float(levels.index(level))))
    return found


def _side(name: str, domain: list[float]) -> Row:
    scale = {"domain": domain, "nice": False, "zero": False}
    return {"field": name, "type": "quantitative", "axis": None, "scale": scale}
