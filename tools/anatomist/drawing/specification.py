"""A figure as one Vega-Lite specification: panels in columns, with or without the title and caption."""

from __future__ import annotations

from textwrap import wrap

from ..figures import Bars, Figure, Graph, Heatmap, Lines, Scatter, TextRows
from .charts import bars, lines, scatter
from .graph import graph
from .heatmap import heatmap
from .parts import Part
from .text import text

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
Panel = Heatmap | Lines | Bars | Scatter | Graph | TextRows
SIDE = 90.0  # pixels that axes and a legend take beside a panel
FEW, MANY = 30.0, 18.0  # pixels of a heat map cell, among few and many panels
LETTER = 5.6  # pixels of a caption's character


def spec(figure: Figure, *, words: bool = True) -> dict[str, object]:
    """The Vega-Lite specification; `words=False` leaves title and caption to the page it stands in."""
    shared = _one_scale(figure)
    largest = FEW if len(figure.panels) <= 2 else MANY
    parts = [_part(panel, largest) for panel in figure.panels]
    views = [_titled(part, panel) for part, panel in zip(parts, figure.panels, strict=True)]
    out: dict[str, object] = {"$schema": SCHEMA}
    if words:
        title = wrap(figure.title, _characters(figure, parts, LETTER * 1.45))
        caption = wrap(figure.caption, _characters(figure, parts, LETTER))
        out["title"] = {"text": title, "fontSize": 15, "offset": 16} | ({"subtitle": caption} if caption else {})
    if len(views) == 1 and not words:
        return out | views[0]
    columns = max(1, figure.columns)
    return out | {"concat": views, "columns": columns, "align": "none" if columns == 1 else "each"} | _resolve(shared)


def _part(panel: Panel, largest: float) -> Part:
    match panel:
        case Heatmap():
            return heatmap(panel, largest)
        case Lines():
            return lines(panel)
        case Bars():
            return bars(panel)
        case Scatter():
            return scatter(panel)
        case Graph():
            return graph(panel)
        case TextRows():
            return text(panel)


def _titled(part: Part, panel: Panel) -> dict[str, object]:
    return {"title": panel.title} | part.body if panel.title else part.body


def _one_scale(figure: Figure) -> bool:
    """Whether all panels are cells or tokens on one given colour scale, whose legend is then drawn once."""
    scales = {_scale(panel) for panel in figure.panels}
    return len(figure.panels) > 1 and len(scales) == 1 and all(s is not None and s[0] is not None for s in scales)


def _scale(panel: Panel) -> tuple[tuple[float, float] | None, bool, str] | None:
    match panel:
        case Heatmap():
            return panel.domain, panel.diverging, panel.grid.unit
        case TextRows():
            return panel.domain, panel.diverging, panel.value_title
    return None


def _resolve(shared: bool) -> dict[str, object]:
    return {"resolve": {"scale": {"color": "shared" if shared else "independent"}}}


def _characters(figure: Figure, parts: list[Part], letter: float) -> int:
    """How many characters fit over the whole figure."""
    columns = max(1, figure.columns)
    rows = [parts[i : i + columns] for i in range(0, len(parts), columns)]
    wide = max((sum(part.width + SIDE for part in row) for row in rows), default=400.0)
    return int(max(380.0, wide) / letter)
