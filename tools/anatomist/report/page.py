"""Builds a report page: sections of text, tiles of numbers, tables and figures, every number linked to its run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Literal

from ..drawing import bundle, embed_snippet
from ..figures import Figure

Tone = Literal["", "weak", "against"]


def run_link(run: str) -> str:
    """A link to a run's entry in the provenance table."""
    return f'<a class="run" href="#{escape(run)}">{escape(run)}</a>'


@dataclass
class Section:
    """One section of the page, filled from top to bottom."""

    title: str
    kicker: str = ""
    parts: list[str] = field(default_factory=list)
    figures: int = 0

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower()).strip("-")

    def text(self, *paragraphs: str) -> Section:
        """Plain paragraphs."""
        self.parts += [f"<p>{escape(p)}</p>" for p in paragraphs]
        return self

    def heading(self, text: str) -> Section:
        self.parts.append(f"<h3>{escape(text)}</h3>")
        return self

    def note(self, text: str) -> Section:
        """What a careful reader must know."""
        self.parts.append(f'<p class="note">{escape(text)}</p>')
        return self

    def verdict(self, text: str, tone: Tone = "") -> Section:
        self.parts.append(f'<p class="verdict {tone}">{escape(text)}</p>')
        return self

    def tiles(self, tiles: Iterable[tuple[str, str, str | None]]) -> Section:
        """Big numbers: (number, what it is, run id)."""
        cells = "".join(
            f'<div class="tile"><b>{escape(number)}</b><span>{escape(what)}</span>{run_link(run) if run else ""}</div>'
            for number, what, run in tiles
        )
        self.parts.append(f'<div class="tiles">{cells}</div>')
        return self

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, run: str | None = None) -> Section:
        """A table of texts; cells that begin with 'r-' and name a run are linked."""
        top = "".join(f"<th>{escape(h)}</th>" for h in head)
        body = "".join("<tr>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>" for row in rows)
        link = f"<p>{run_link(run)}</p>" if run else ""
        self.parts.append(f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>{link}')
        return self

    def figure(self, figure: Figure, *, run: str) -> Section:
        """An interactive picture with its caption and run."""
        self.figures += 1
        chart = embed_snippet(figure, f"{self.anchor}-{self.figures}")
        self.parts.append(
            f'<figure><h3>{escape(figure.title)}</h3><div class="chart">{chart}</div>'
            f"<figcaption>{escape(figure.caption)} {run_link(run)}</figcaption></figure>"
        )
        return self

    def code(self, text: str, summary: str | None = None) -> Section:
        block = f"<pre>{escape(text)}</pre>"
        self.parts.append(f"<details><summary>{escape(summary)}</summary>{block}</details>" if summary else block)
        return self

    def anchor_table(self, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> Section:
        """A table whose rows can be linked to: (anchor, cells)."""
        top = "".join(f"<th>{escape(h)}</th>" for h in head)
        body = "".join(
            f'<tr id="{escape(anchor)}">' + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"
            for anchor, cells in rows
        )
        self.parts.append(f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>')
        return self

    def link(self, text: str, target: str) -> Section:
        self.parts.append(f'<p><a href="{escape(target)}">{escape(text)}</a></p>')
        return self

    def link_table(self, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> Section:
        """A table whose first cells lead elsewhere: (target, cells)."""
        top = "".join(f"<th>{escape(h)}</th>" for h in head)
        body = "".join(
            f'<tr><td><a href="{escape(target)}">{escape(cells[0])}</a></td>'
            + "".join(f"<td>{escape(c)}</td>" for c in cells[1:]) + "</tr>"
            for target, cells in rows
        )  # fmt: skip
        self.parts.append(f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>')
        return self

    def cards(self, cards: Iterable[tuple[str, str | None, str, str]]) -> Section:
        """Cards that lead elsewhere: (target, picture's address or None, title, words)."""
        made = "".join(
            f'<a class="card" href="{escape(target)}">'
            + (f'<img loading="lazy" alt="" src="{escape(picture)}">' if picture else "")
            + f"<b>{escape(title)}</b><span>{escape(words)}</span></a>"
            for target, picture, title, words in cards
        )
        self.parts.append(f'<div class="cards">{made}</div>')
        return self

    def live(self, words: str, script: str) -> Section:
        """A place that a script of ours keeps up to date; `words` until it has run."""
        self.parts.append(f'<div id="live" aria-live="polite"><p>{escape(words)}</p></div><script>{script}</script>')
        return self

    def html(self) -> str:
        kicker = f'<div class="kicker">{escape(self.kicker)}</div>' if self.kicker else ""
        return f'<section id="{self.anchor}">{kicker}<h2>{escape(self.title)}</h2>{"".join(self.parts)}</section>'


@dataclass
class Page:
    """A whole report."""

    title: str
    lede: str
    kicker: str = "Anatomist"
    sections: list[Section] = field(default_factory=list)
    foot: str = ""

    def section(self, title: str, kicker: str = "") -> Section:
        """Begin a new section at the end of the page."""
        self.sections.append(Section(title, kicker))
        return self.sections[-1]

    def html(self) -> str:
        """The page as one file that opens without a network."""
        style = files("anatomist.report").joinpath("page.css").read_text()
        links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in self.sections)
        script = bundle() if any(s.figures for s in self.sections) else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{style}</style><script>{script}</script></head><body>"
            f'<header><div class="kicker">{escape(self.kicker)}</div><h1>{escape(self.title)}</h1>'
            f'<p class="lede">{escape(self.lede)}</p></header><nav><ol>{links}</ol></nav>'
            f"<main>{''.join(s.html() for s in self.sections)}</main><footer>{escape(self.foot)}</footer></body></html>"
        )


def _cell(text: str) -> str:
    if text.startswith("r-") and text[2:].isalnum():
        return run_link(text)
    if text in ("pass", "fail"):
        return f'<span class="{text}">{text}</span>'
    return escape(text)
