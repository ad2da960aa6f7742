"""A heat map: a cell per pair of labels, text in the cells where there is some."""

from __future__ import annotations

from ..figures import Heatmap
from .colours import colour, ends, strong
from .labels import CHARACTER, index_axis, shown
from .parts import Part

TEXT_LIMIT = 11  # characters of a text in a cell


def heatmap(panel: Heatmap, largest: float) -> Part:
    """Rows from top to bottom, columns from left to right, in the grid's order; `largest`: pixels of a cell."""
    rows, columns = panel.grid.axes
    wide, high = _cell_size(panel, largest)
    x = {"field": "c", "type": "ordinal", "axis": index_axis(columns.name, columns.labels, wide, flat=True)}
    y = {"field": "r", "type": "ordinal", "axis": index_axis(rows.name, rows.labels, high, flat=False)}
    tooltip = [
        {"field": "row", "title": rows.name, "type": "nominal"},
        {"field": "column", "title": columns.name, "type": "nominal"},
        {"field": "v", "title": panel.grid.unit, "format": ".4~g", "type": "quantitative"},
    ]
    if panel.text is not None:
        tooltip.append({"field": "t", "title": "text", "type": "nominal"})
    cells: dict[str, object] = {
        "mark": {"type": "rect"},
        "transform": [{"filter": "datum.v !== null"}],
        "encoding": {
            "color": colour(panel.grid.unit, domain(panel), diverging=panel.diverging, height=high * len(rows.labels)),
            "tooltip": tooltip,
        },
    }
    empty = {"mark": {"type": "rect", "style": "cell-empty"}, "transform": [{"filter": "datum.v === null"}]}
    layers = [empty, cells] if panel.grid.values is None or None in panel.grid.values else [cells]
    if panel.text is not None:
        layers += [_text("on-pale", "!datum.s"), _text("on-strong", "datum.s")]
    body = {
        "width": wide * len(columns.labels),
        "height": high * len(rows.labels),
        "data": {"values": _cells(panel)},
        "encoding": {"x": x, "y": y},
        "layer": layers,
    }
    return Part(body, wide * len(columns.labels))


def domain(panel: Heatmap) -> tuple[float, float]:
    """The ends of the colour scale: see `colours.ends`."""
    return ends(panel.grid.values or (), panel.domain, diverging=panel.diverging)


def _text(style: str, which: str) -> dict[str, object]:
    return {
        "mark": {"type": "text", "style": style, "clip": True},
        "transform": [{"filter": f"datum.v !== null && ({which})"}],
        "encoding": {"text": {"field": "w", "type": "nominal"}},
    }


def _cells(panel: Heatmap) -> list[dict[str, object]]:
    scale = domain(panel)
    rows, columns = panel.grid.axes
    cells: list[dict[str, object]] = []
    for i, value in enumerate(panel.grid.values or (None,) * panel.grid.size):
        r, c = divmod(i, len(columns.labels))
        cell: dict[str, object] = {
            "r": r, "c": c, "v": value, "row": shown(rows.labels[r]), "column": shown(columns.labels[c]),
        }  # fmt: skip
        if panel.text is not None:
            deep = strong(value, scale, diverging=panel.diverging)
            cell |= {"t": shown(panel.text[i]), "w": _short(panel.text[i]), "s": deep}
        cells.append(cell)
    return cells


def _short(text: str) -> str:
    plain = shown(text)
    return plain if len(plain) <= TEXT_LIMIT else plain[: TEXT_LIMIT - 1] + "…"


def _cell_size(panel: Heatmap, largest: float) -> tuple[int, int]:
    """Whole pixels of a cell (no seams): large where there are few, never so small that a picture has no size."""
    n_rows, n_columns = panel.grid.shape
    if panel.text is not None:
        longest = max((len(_short(t)) for t in panel.text), default=1)
        return int(max(26.0, longest * CHARACTER + 8)), 17
    wide = int(min(largest, max(2.0, 620 / max(1, n_columns))))
    high = int(min(0.8 * largest, max(2.0, 440 / max(1, n_rows))))
    return (wide, wide) if n_rows == n_columns else (wide, min(high, wide))
