"""Colours, fonts and strokes, as Vega configurations for light and dark paper.

Diverging: red below zero, blue above, the paper's own tone at zero. Sequential: from the paper's tone into one hue.
Both and the categories keep their order for readers with a colour-vision deficiency (categories after Okabe and Ito,
"Color Universal Design", https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Theme = Literal["light", "dark"]
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
MONO = "Liberation Mono, DejaVu Sans Mono, Menlo, Consolas, monospace"
LABEL = 10  # font size of axis labels, in pixels
TOKEN = 11  # font size of running text


class Palette(NamedTuple):
    """The colours of one theme."""

    paper: str
    ink: str
    soft: str
    line: str
    empty: str  # cells without a value
    on_strong: str  # text on the ends of a colour scale
    diverging: tuple[str, ...]
    sequential: tuple[str, ...]
    category: tuple[str, ...]


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        paper="#ffffff", ink="#1d2129", soft="#5c6470", line="#e4e2dd", empty="#efeeeb", on_strong="#ffffff",
        diverging=(
            "#7f0d1f", "#b2182b", "#d6604d", "#f4a582", "#fbdccb", "#fbfbfa", "#d3e5f0", "#92c5de", "#4393c3",
            "#2166ac", "#0c3d73",
        ),
        sequential=("#fbfbfa", "#dbe9f4", "#b5d4e9", "#7fb7da", "#4a93c7", "#2370b0", "#0f4f8f", "#0a3161"),
        category=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b7280"),
    ),
    "dark": Palette(
        paper="#1b2027", ink="#e6e4df", soft="#a3acb8", line="#333a45", empty="#262c35", on_strong="#14171c",
        diverging=(
            "#ffb3a3", "#f58a77", "#d9604f", "#a4413a", "#5c2f2f", "#242a33", "#26435c", "#2f6a99", "#4a98cf",
            "#82c1ec", "#bfe2fb",
        ),
        sequential=("#242a33", "#25405a", "#275a83", "#2f77ae", "#4a98cf", "#77b9e6", "#a8d6f5", "#d8eefc"),
        category=("#56b4e9", "#f0883e", "#2bc59c", "#e79cc7", "#f0c94d", "#9db4ff", "#c39bd3", "#9aa3af"),
    ),
}  # fmt: skip


def config(theme: Theme, *, transparent: bool = False) -> dict[str, object]:
    """The Vega configuration of a theme; `transparent` lets the page's own background show."""
    p = PALETTES[theme]
    return {
        "font": FONT,
        "background": "transparent" if transparent else p.paper,
        "padding": 14,
        "range": {
            "diverging": list(p.diverging),
            "heatmap": list(p.sequential),
            "ramp": list(p.sequential),
            "category": list(p.category),
        },
        "view": {"stroke": None},
        "concat": {"spacing": 26},
        "title": {
            "anchor": "start", "color": p.ink, "fontSize": 12, "fontWeight": 600, "offset": 8,
            "subtitleColor": p.soft, "subtitleFontSize": 11, "subtitlePadding": 5, "subtitleLineHeight": 15,
        },
        "axis": {
            "labelColor": p.soft, "labelFontSize": LABEL, "titleColor": p.ink, "titleFontSize": 11,
            "titleFontWeight": "normal", "titlePadding": 7, "domainColor": p.line, "tickColor": p.line,
            "gridColor": p.line, "gridOpacity": 0.8, "tickSize": 4, "labelPadding": 3,
        },
        "legend": {
            "labelColor": p.soft, "labelFontSize": LABEL, "titleColor": p.ink, "titleFontSize": 11,
            "titleFontWeight": "normal", "titleLimit": 220, "titlePadding": 6, "gradientThickness": 11,
            "labelLimit": 240, "rowPadding": 3,
        },
        "bar": {"color": p.category[0]},
        "line": {"strokeWidth": 2},
        "style": {
            "cell-empty": {"color": p.empty},
            "on-pale": {"color": p.ink, "fontSize": LABEL},
            "on-strong": {"color": p.on_strong, "fontSize": LABEL},
            "whisker": {"color": p.ink, "strokeWidth": 1.2, "opacity": 0.75},
            "baseline": {"color": p.soft, "strokeWidth": 1, "opacity": 0.6},
            "reference": {"color": p.soft, "strokeWidth": 1.2, "strokeDash": [5, 4]},
            "point-label": {"color": p.ink, "fontSize": LABEL},
            "token": {"color": p.ink, "font": MONO, "fontSize": TOKEN},
            "token-strong": {"color": p.on_strong, "font": MONO, "fontSize": TOKEN},
            "token-frame": {"color": p.ink, "strokeWidth": 1.3, "cornerRadius": 2},
            "row-heading": {"color": p.ink, "fontSize": 11, "fontWeight": 600},
            "row-label": {"color": p.soft, "fontSize": LABEL},
        },
    }  # fmt: skip
