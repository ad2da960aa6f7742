"""Lines with bands, bars with intervals, points with labels."""

from __future__ import annotations

from collections.abc import Sequence

from ..figures import Bars, Lines, Scatter
from .labels import index_axis, shown, width
from .parts import Part
from .theme import LABEL

Row = dict[str, object]
LINES_WIDTH, HEIGHT = 460.0, 230.0
BARS_WIDTH, BAR = 340.0, 17.0
SQUARE = 330.0
INWARD = 0.6  # of the width: names of points further right stand to their left
DOTS = 45  # points on a line up to which each is marked
ALL, NAMED = 24, 10  # points up to which all are labelled that have room; labels among more
OUTLYING = 6.0  # squared distance from the middle, in spreads, from which a point is labelled among many


def lines(panel: Lines) -> Part:
    """Series over a shared x axis, each with its band."""
    wide = LINES_WIDTH
    numeric = all(isinstance(x, int | float) for x in panel.x)
    labels = [str(x) for x in panel.x]
    if numeric:
        x: Row = {"field": "x", "type": "quantitative", "title": panel.x_title, "scale": {"zero": False, "nice": False}}
        whole = all(float(v).is_integer() for v in panel.x)
        x["axis"] = {"grid": False} | ({"tickMinStep": 1} if whole else {})
    else:
        wide = max(260.0, min(680.0, 26.0 * len(labels)))
        axis = index_axis(panel.x_title, labels, wide / max(1, len(labels)), flat=True)
        x = {"field": "x", "type": "ordinal", "axis": axis, "scale": {"padding": 0.4}}
    y = _measure(panel.y_title, panel.log_y)
    stroke = {"title": None, "symbolStrokeWidth": 3, "symbolOpacity": 1, "symbolType": "stroke"}
    legend = stroke if len(panel.series) > 1 else None
    names = [s.name for s in panel.series]
    colour = {"field": "name", "type": "nominal", "scale": {"domain": names}, "legend": legend}
    tooltip = [_tip("name", "series"), _tip("label", panel.x_title), _number("v", panel.y_title)]
    layers: list[Row] = []
    if any(s.low for s in panel.series):
        tooltip += [_number("low", "low"), _number("high", "high")]
        band = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": colour}
        layers.append({
            "mark": {"type": "area", "opacity": 0.18, "line": False}, "encoding": band,
            "transform": [{"filter": "datum.low !== null && datum.high !== null"}],
        })  # fmt: skip
    point = {"filled": True, "size": 26} if len(panel.x) <= DOTS else {"filled": True, "size": 30, "opacity": 0}
    drawn = {"x": x, "y": y | {"field": "v"}, "color": colour, "tooltip": tooltip}
    layers.append({"mark": {"type": "line", "point": point}, "encoding": drawn})
    body: Row = {"width": wide, "height": HEIGHT, "data": {"values": _line_rows(panel, numeric)}}
    values = [v for s in panel.series for v in (*s.values, *(s.low or ()), *(s.high or ())) if v is not None]
    body["layer"] = [*_levels(values, panel.reference, "y", panel.log_y), *layers]
    return Part(body, wide)


def bars(panel: Bars) -> Part:
    """Labelled bars from top to bottom, each with its interval."""
    axis = index_axis(None, panel.labels, BAR, flat=False)
    y: Row = {"field": "i", "type": "ordinal", "axis": axis, "scale": {"paddingInner": 0.22, "paddingOuter": 0.1}}
    tooltip = [_tip("label", "what"), _number("v", panel.value_title)]
    colour: Row = {}
    if panel.groups:
        domain = list(dict.fromkeys(panel.groups))
        colour = {"color": {"field": "g", "type": "nominal", "scale": {"domain": domain}, "legend": {"title": None}}}
        tooltip.insert(1, _tip("g", "group"))
    x = _measure(panel.value_title)
    if panel.domain:
        x["scale"] = {"domain": list(panel.domain)}
    layers: list[Row] = [{"mark": "bar", "encoding": {"y": y, "x": x | {"field": "v"}, "tooltip": tooltip} | colour}]
    if panel.low and panel.high:
        tooltip += [_number("low", "low"), _number("high", "high")]
        layers.append({
            "mark": {"type": "rule", "style": "whisker"}, "transform": [{"filter": "datum.low !== null"}],
            "encoding": {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}},
        })  # fmt: skip
    values = [v for v in (*panel.values, *(panel.low or ()), *(panel.high or ())) if v is not None]
    body = {
        "width": BARS_WIDTH,
        "height": BAR * len(panel.labels),
        "data": {"values": _bar_rows(panel)},
        "layer": [*layers, *_levels(values, panel.reference, "x", log=False)],
    }
    return Part(body, BARS_WIDTH + width(panel.labels))


def scatter(panel: Scatter) -> Part:
    """Points in the plane; the furthest out are named, all of them when they are few."""
    sides = [[min(v), max(v)] for v in (panel.x, panel.y)] if panel.x else [[0.0, 1.0], [0.0, 1.0]]
    ends = [min(s[0] for s in sides), max(s[1] for s in sides)]
    x, y = (_measure(title) | {"field": f} for f, title in (("x", panel.x_title), ("y", panel.y_title)))
    tooltip = [_tip("label", "point"), _number("x", panel.x_title), _number("y", panel.y_title)]
    colour: Row = {"datum": panel.title, "legend": None}
    if panel.groups:
        domain = list(dict.fromkeys(panel.groups))
        colour = {"field": "g", "type": "nominal", "scale": {"domain": domain}, "legend": {"title": None}}
    points = {"x": x, "y": y, "color": colour, "tooltip": tooltip}
    layers: list[Row] = [*_levels(list(panel.x), None, "x", False), *_levels(list(panel.y), None, "y", False)]
    if panel.diagonal:
        layers.append({
            "data": {"values": [{"x": end, "y": end} for end in ends]},
            "mark": {"type": "line", "style": "reference"}, "encoding": {"x": x, "y": y},
        })  # fmt: skip
    layers.append({"mark": {"type": "circle", "size": 42, "opacity": 0.75}, "encoding": points})
    cut = sides[0][0] + INWARD * (sides[0][1] - sides[0][0])
    for align, dx, side in (("left", 6, "<="), ("right", -6, ">")):  # names at the right edge would run into the legend
        layers.append({
            "mark": {"type": "text", "style": "point-label", "align": align, "dx": dx, "dy": -5},
            "transform": [{"filter": f"datum.named && datum.x {side} {cut}"}],
            "encoding": {"x": x, "y": y, "text": {"field": "label"}},
        })  # fmt: skip
    body = {"width": SQUARE, "height": SQUARE, "data": {"values": _points(panel)}, "layer": layers}
    return Part(body, SQUARE)


def _measure(title: str, log: bool = False) -> Row:
    """A value axis; linear ones show their zero line apart and need not begin there."""
    scale: Row = {"type": "log"} if log else {"zero": False}
    axis = {"domain": False, "ticks": False, "grid": True}
    return {"type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _levels(values: Sequence[float], reference: float | None, axis: str, log: bool) -> list[Row]:
    """The zero line where the values come near it, and the level to compare with."""
    found: list[Row] = []
    if not log and values and min(values) <= 0 <= max(values):
        found.append({"mark": {"type": "rule", "style": "baseline"}, "encoding": {axis: {"datum": 0}}})
    if reference is not None:
        found.append({"mark": {"type": "rule", "style": "reference"}, "encoding": {axis: {"datum": reference}}})
    return found


def _line_rows(panel: Lines, numeric: bool) -> list[Row]:
    rows: list[Row] = []
    for s in panel.series:
        for i, x in enumerate(panel.x):
            row: Row = {"name": s.name, "x": x if numeric else i, "label": shown(str(x)), "v": s.values[i]}
            if s.low and s.high:
                row |= {"low": s.low[i], "high": s.high[i]}
            rows.append(row)
    return rows


def _bar_rows(panel: Bars) -> list[Row]:
    rows: list[Row] = []
    for i, label in enumerate(panel.labels):
        row: Row = {"i": i, "label": shown(label), "v": panel.values[i]}
        if panel.low and panel.high:
            row |= {"low": panel.low[i], "high": panel.high[i]}
        if panel.groups:
            row["g"] = panel.groups[i]
        rows.append(row)
    return rows


def _points(panel: Scatter) -> list[Row]:
    named = _furthest(panel)
    rows: list[Row] = []
    for i, x in enumerate(panel.x):
        row: Row = {"x": x, "y": panel.y[i], "label": shown(panel.labels[i]), "named": i in named}
        rows.append(row | ({"g": panel.groups[i]} if panel.groups else {}))
    return rows


def _furthest(panel: Scatter) -> set[int]:
    """Indices of the points furthest from the middle, in spreads of each axis, whose names do not overlap."""
    n = len(panel.x)
    far, across, up = [0.0] * n, _pixels(panel.x), _pixels(panel.y)
    for side in (panel.x, panel.y):
        mean = sum(side) / max(1, n)
        spread = (sum((v - mean) ** 2 for v in side) / max(1, n)) ** 0.5 or 1.0
        far = [f + ((v - mean) / spread) ** 2 for f, v in zip(far, side, strict=True)]
    named: list[int] = []
    most = n if n <= ALL else NAMED
    for i in sorted(range(n), key=lambda i: -far[i]):
        reach = width([panel.labels[i]]) + 8
        clear = all(abs(across[i] - across[j]) > reach or abs(up[i] - up[j]) > LABEL + 3 for j in named)
        if clear and len(named) < most and (far[i] > OUTLYING or n <= ALL):
            named.append(i)
    return set(named)


def _pixels(side: Sequence[float]) -> list[float]:
    low, high = min(side, default=0.0), max(side, default=0.0)
    return [SQUARE * (v - low) / ((high - low) or 1.0) for v in side]


def _tip(field: str, title: str) -> Row:
    return {"field": field, "title": title, "type": "nominal"}


def _number(field: str, title: str) -> Row:
    return {"field": field, "title": title, "type": "quantitative", "format": ".4~g"}
