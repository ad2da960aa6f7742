"""A figure is data: panels described by what they show. Drawing it (PNG, HTML) is one place's work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from .result import Frozen, Grid


class Heatmap(Frozen):
    """A two-axis grid as coloured cells; zero is the middle of the scale when `diverging`."""

    kind: Literal["heatmap"] = "heatmap"
    title: str
    grid: Grid = Field(description="Two axes: rows first, columns second.")
    diverging: bool = True
    text: tuple[str, ...] | None = Field(default=None, description="Row-major text written in the cells.")
    domain: tuple[float, float] | None = Field(
        default=None,
        description="Ends of the colour scale; the grid's own when absent. Panels with the same one share a legend.",
    )

    @model_validator(mode="after")
    def _shape_agrees(self) -> Heatmap:
        if len(self.grid.axes) != 2:
            raise ValueError(f"the heat map {self.title!r} needs a grid of 2 axes; it has {len(self.grid.axes)}")
        if self.text is not None and len(self.text) != self.grid.size:
            raise ValueError(f"the heat map {self.title!r} has {len(self.text)} texts for {self.grid.size} cells")
        return self


class Series(Frozen):
    """One line: values over the x axis, with an interval where there is one."""

    name: str
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None


class Lines(Frozen):
    """Lines over a shared x axis."""

    kind: Literal["lines"] = "lines"
    title: str
    x_title: str
    x: tuple[str | float, ...]
    y_title: str
    series: tuple[Series, ...]
    log_y: bool = False
    reference: float | None = Field(default=None, description="A level to compare with, drawn as a dashed line.")


class Bars(Frozen):
    """Labelled bars with intervals; `groups` colours them."""

    kind: Literal["bars"] = "bars"
    title: str
    value_title: str
    labels: tuple[str, ...]
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    groups: tuple[str, ...] | None = None
    reference: float | None = Field(default=None, description="A level to compare with, drawn as a dashed line.")
    domain: tuple[float, float] | None = Field(
        default=None, description="Ends of the value axis; the values' own when absent. Shares: 0 and 1."
    )


class Scatter(Frozen):
    """Points in the plane, labelled on hover."""

    kind: Literal["scatter"] = "scatter"
    title: str
    x_title: str
    y_title: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    diagonal: bool = Field(default=False, description="Draw the line y = x: both axes measure the same thing.")


class Graph(Frozen):
    """Nodes on levels, the first level at the bottom, joined by edges whose width is their size."""

    kind: Literal["graph"] = "graph"
    title: str
    value_title: str
    nodes: tuple[str, ...] = Field(description="A name per node.")
    levels: tuple[int, ...] = Field(description="Per node its level: what writes earlier stands lower.")
    edges: tuple[tuple[int, int], ...] = Field(description="From and to, as indices into the nodes.")
    values: tuple[float, ...] = Field(description="One per edge; the sign is its colour.")
    labels: tuple[str, ...] = Field(description="One per edge, shown on hover.")
    marks: tuple[str, ...] | None = Field(default=None, description="One per edge, written on it: 'q', 'k', 'v'.")

    @model_validator(mode="after")
    def _lengths_agree(self) -> Graph:
        if len(self.nodes) != len(self.levels) or not len(self.edges) == len(self.values) == len(self.labels):
            raise ValueError(f"the graph {self.title!r} needs a level per node, a value and a label per edge")
        if self.marks is not None and len(self.marks) != len(self.edges):
            raise ValueError(f"the graph {self.title!r} has {len(self.marks)} marks for {len(self.edges)} edges")
        if any(not 0 <= end < len(self.nodes) for edge in self.edges for end in edge):
            raise ValueError(f"the graph {self.title!r} has an edge to a node that it does not have")
        return self


class TextRow(Frozen):
    """One stretch of text, a value per token."""

    tokens: tuple[str, ...]
    values: tuple[float | None, ...] = Field(description="One per token; null where there is none.")
    label: str = Field(default="", description="Written before the row: a rank, a value.")
    group: str = Field(default="", description="Heading of the rows that follow one another under it.")
    focus: int | None = Field(default=None, description="Index of the token that is framed and always in sight.")

    @model_validator(mode="after")
    def _lengths_agree(self) -> TextRow:
        if len(self.tokens) != len(self.values):
            raise ValueError(f"the text row {self.label!r} has {len(self.values)} values for {len(self.tokens)} tokens")
        if self.focus is not None and not 0 <= self.focus < len(self.tokens):
            raise ValueError(f"the text row {self.label!r} has no token {self.focus}; it has {len(self.tokens)}")
        return self


class TextRows(Frozen):
    """Rows of text whose tokens are coloured by their value; a row too long to be drawn is cut around its focus."""

    kind: Literal["text"] = "text"
    title: str
    value_title: str
    rows: tuple[TextRow, ...]
    diverging: bool = False
    domain: tuple[float, float] | None = Field(
        default=None,
        description="Ends of the colour scale; the values' own when absent. Panels with the same one share a legend.",
    )


class Figure(Frozen):
    """One picture: panels laid out in columns, with a caption that says what the numbers are."""

    title: str
    caption: str = Field(description="Metric, direction, ablation, n, model: what a reader must know.")
    panels: tuple[Heatmap | Lines | Bars | Scatter | Graph | TextRows, ...]
    columns: int = 1
    links: Mapping[str, str] = Field(default_factory=dict)
