"""Running text: rows of tokens, each on a ground whose colour is its value.

Tokens stand in a font whose characters are all equally wide, so that every place is known without measuring: x counts
characters. A token keeps its blanks; line ends and other marks that cannot be seen are spelled out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from ..figures import TextRow, TextRows
from .colours import colour, ends, strong
from .labels import shown, width
from .parts import Part
from .theme import TOKEN

Row = dict[str, object]
CHARACTER = 0.6 * TOKEN  # pixels of one character
HIGH, GAP = 19.0, 0.4  # pixels of a row; characters around a token
MOST = 96.0  # characters of a row
BEFORE = 0.65  # share of the room around the focus that what precedes it may take: a model has read that part only
CUT = "…"


class Piece(NamedTuple):
    """A token as it is drawn."""

    text: str  # without the blanks at its ends
    start: float  # of its ground, in characters
    wide: float
    inner: float  # characters before the text


def text(panel: TextRows) -> Part:
    """Rows from top to bottom under their headings; the focus of a row is framed."""
    scale = ends((v for row in panel.rows for v in row.values), panel.domain, diverging=panel.diverging)
    tokens: list[Row] = []
    words: list[Row] = []
    labels: list[str] = []
    line, group = 0, ""
    for row in panel.rows:
        if row.group and row.group != group:
            words.append({"y": line + (0.15 if line else 0.0), "w": row.group, "kind": "heading"})
            line, group = line + 1, row.group
        labels.append(row.label)
        words.append({"y": line, "w": shown(row.label), "kind": "label"})
        tokens += list(_tokens(row, line, scale, panel.diverging))
        line += 1
    margin = width(labels) + 10 if any(labels) else 0.0
    wide = max([float(t["x2"]) for t in tokens], default=20.0) * CHARACTER  # type: ignore[arg-type]
    for word in words:
        word["x"] = 0.0 if word["kind"] == "heading" else margin - 8
    return Part(_body(panel, scale, tokens, words, margin, margin + wide, max(1, line)), margin + wide)


def _body(
    panel: TextRows, scale: tuple[float, float], tokens: list[Row], words: list[Row], margin: float, wide: float,
    lines: int,
) -> dict[str, object]:  # fmt: skip
    """Everything is placed in pixels: labels and headings left of `margin`, tokens right of it."""
    placed = [
        t | {f: margin + CHARACTER * float(t[f]) for f in ("x", "x2", "tx")} for t in tokens  # type: ignore[arg-type]
    ]
    high = HIGH * lines
    shade = colour(panel.value_title, scale, diverging=panel.diverging, height=high)
    ground = {
        "x": _pixels("x", wide), "x2": {"field": "x2"}, "y": _lines("top", lines), "y2": {"field": "bottom"},
    }  # fmt: skip
    value = {"field": "v", "title": panel.value_title, "type": "quantitative", "format": ".4~g"}
    tooltip = [{"field": "t", "title": "token", "type": "nominal"}, value]
    layers: list[Row] = [
        {"mark": {"type": "rect", "style": "cell-empty", "cornerRadius": 2},
         "transform": [{"filter": "datum.v === null"}], "encoding": ground | {"tooltip": tooltip[:1]}},
        {"mark": {"type": "rect", "cornerRadius": 2}, "transform": [{"filter": "datum.v !== null"}],
         "encoding": ground | {"color": shade, "tooltip": tooltip}},
        {"mark": {"type": "rect", "style": "token-frame", "filled": False}, "transform": [{"filter": "datum.focus"}],
         "encoding": ground},
        *(
            {"mark": {"type": "text", "style": style, "align": "left", "baseline": "middle"},
             "transform": [{"filter": which}],
             "encoding": {"x": _pixels("tx", wide), "y": _lines("y", lines), "text": {"field": "w"}}}
            for style, which in (("token", "!datum.s"), ("token-strong", "datum.s"))
        ),
    ]  # fmt: skip
    beside: list[Row] = [
        {"data": {"values": [w for w in words if w["kind"] == kind]},
         "mark": {"type": "text", "style": f"row-{kind}", "align": align, "baseline": "middle"},
         "encoding": {"x": _pixels("x", wide), "y": _lines("y", lines), "text": {"field": "w"}}}
        for kind, align in (("heading", "left"), ("label", "right"))
    ]  # fmt: skip
    return {"width": wide, "height": high, "data": {"values": placed}, "layer": [*layers, *beside]}


def _tokens(row: TextRow, line: int, scale: tuple[float, float], diverging: bool) -> Iterator[Row]:
    first, last = in_sight(row)
    at = 0.0
    if first > 0:
        yield _mark(CUT, 0.0, line)
        at = 1.5
    for i in range(first, last):
        piece = _piece(row.tokens[i], at)
        at = piece.start + piece.wide
        value = row.values[i]
        yield {
            "x": piece.start + GAP / 4, "x2": at - GAP / 4, "tx": piece.start + piece.inner, "y": line,
            "top": line - 0.43, "bottom": line + 0.43, "t": shown(row.tokens[i]), "w": piece.text, "v": value,
            "s": strong(value, scale, diverging=diverging), "focus": i == row.focus,
        }  # fmt: skip
    if last < len(row.tokens):
        yield _mark(CUT, at + 0.3, line)


def in_sight(row: TextRow) -> tuple[int, int]:
    """The tokens of a row that are drawn, from and to: all, or as many around the focus as have room."""
    sizes = [_piece(token, 0.0).wide for token in row.tokens]
    middle = row.focus or 0
    left = MOST - sum(sizes[middle : middle + 1])
    kept = (1 - BEFORE) * left
    first = last = middle
    while first > 0 and sizes[first - 1] <= left - kept:
        first -= 1
        left -= sizes[first]
    while last + 1 < len(sizes) and sizes[last + 1] <= left:
        last += 1
        left -= sizes[last]
    while first > 0 and sizes[first - 1] <= left:
        first -= 1
        left -= sizes[first]
    return first, min(last + 1, len(sizes))


def _piece(token: str, at: float) -> Piece:
    """A token's text without the blanks at its ends (which drawing engines drop), and the room it takes."""
    plain = "".join(map(_visible, token))
    bare = plain.strip(" ")
    before = len(plain) - len(plain.lstrip(" ")) if bare else 0
    return Piece(bare, at, _columns(plain) + GAP, before + GAP / 2)


def _visible(character: str) -> str:
    if character == "\n":
        return "\\n"
    if character == "\t":
        return "\\t"
    if character.isprintable() or character == " ":
        return character
    return f"\\x{ord(character):02x}"


def _columns(plain: str) -> float:
    """Characters of room: wide ones (Chinese, Japanese, Korean) take two, marks set on others none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in plain
    ) or 1


def _mark(sign: str, at: float, line: int) -> Row:
    """A sign that stands for what was cut: no ground, no value."""
    return {
        "x": at, "x2": at, "tx": at + 0.2, "y": line, "top": line, "bottom": line, "t": "cut here", "w": sign,
        "v": None, "s": False, "focus": False,
    }  # fmt: skip


def _pixels(field: str, wide: float) -> Row:
    scale = {"domain": [0, wide], "nice": False, "zero": False}
    return {"field": field, "type": "quantitative", "axis": None, "scale": scale}


def _lines(field: str, lines: int) -> Row:
    scale = {"domain": [lines - 0.5, -0.5], "nice": False, "zero": False}
    return {"field": field, "type": "quantitative", "axis": None, "scale": scale}
