"""What an attention knockout cuts: windows of layers (or heads) as rows, groups of source positions as columns.

Each of them is a cell of the sweep, with its random counterparts beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from ..errors import BadArguments, BadPosition
from ..model.sites import Shape, Site
from ..model.sweep_plan import Cell
from ..model.tokens import PositionSpec
from ..prompts.encoding import EncodedPrompts
from .attention_edges import Drawn, How, Place, RowEdges, by_query, cut_cell, edges_between, random_edges
from .grids import CellGrid, together
from .units import chosen_layers, chosen_units, unit_name

REST = "rest"
SHARE_OF_LAYERS = 5  # a window holds a fifth of the layers unless told


class Choice(Protocol):
    """The arguments that say what is cut."""

    @property
    def sources(self) -> Sequence[PositionSpec | tuple[PositionSpec, ...]] | None: ...
    @property
    def queries(self) -> tuple[PositionSpec, ...]: ...
    @property
    def by(self) -> Literal["window", "head"]: ...
    @property
    def window(self) -> int | None: ...
    @property
    def stride(self) -> int | None: ...
    @property
    def layers(self) -> Sequence[int] | None: ...
    @property
    def heads(self) -> Sequence[str] | None: ...
    @property
    def controls(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Group(NamedTuple):
    """A column: its name, where it is, and its edges."""

    name: str
    shown: str
    edges: RowEdges
    drawn: Drawn


class Row(NamedTuple):
    """A row: a window of layers or a head."""

    name: str
    places: tuple[Place, ...]


class Plan(NamedTuple):
    """Rows by groups."""

    rows: tuple[Row, ...]
    groups: tuple[Group, ...]

    @property
    def chosen(self) -> list[tuple[Row, Group]]:
        return [(row, group) for row in self.rows for group in self.groups]

    @property
    def names(self) -> list[str]:
        return [f"{row.name} from {group.name}" for row, group in self.chosen]

    @property
    def n_cuts(self) -> int:
        return len(self.rows) * sum(1 + len(group.drawn.sets) for group in self.groups)

    def cuts(self, how: How) -> list[Cell]:
        """What was chosen comes first, then the random sets of each."""
        own = [by_query(group.edges) for group in self.groups]
        drawn = [[by_query(edges) for edges in group.drawn.sets] for group in self.groups]
        return [cut_cell(row.places, edges, how) for row in self.rows for edges in own] + [
            cut_cell(row.places, edges, how) for row in self.rows for sets in drawn for edges in sets
        ]

    @property
    def grid(self) -> CellGrid:
        cells = tuple(Cell((Site("scores", row.places[0][0]),)) for row, _ in self.chosen)
        by = "head" if len(self.rows[0].places) == 1 and self.rows[0].places[0][1] is not None else "layers"
        axes = ((by, tuple(r.name for r in self.rows)), ("source", tuple(g.name for g in self.groups)))
        return CellGrid(axes, cells, tuple(range(len(cells))))


def rows_of(choice: Choice, shape: Shape) -> tuple[Row, ...]:
    """Windows of layers, and all of them together; or single heads.

    Raises:
        BadArguments: an empty or doubled choice, or windows asked for by head.
        BadSite: a layer or head that the model does not have.
    """
    units = None if choice.heads is None else chosen_units("head", choice.heads, choice.layers, shape)
    if choice.by == "head":
        if choice.window is not None or choice.stride is not None:
            raise BadArguments("by='head' cuts one head a row: leave `window` and `stride` out, or take by='window'.")
        units = units or chosen_units("head", None, choice.layers, shape)
        return tuple(Row(unit_name(u), ((u.layer or 0, u.index),)) for u in units)
    layers = chosen_layers(choice.layers, shape)
    if units is not None:
        layers = tuple(layer for layer in layers if any(u.layer == layer for u in units))
    places = {layer: _places(layer, units) for layer in layers}
    rows = [_row(window, places) for window in _windows(layers, choice)]
    whole = Row("all layers" if len(layers) == shape.n_layers else "these layers", sum(places.values(), ()))
    return (*rows, whole) if len(rows) > 1 else tuple(rows)


def _places(layer: int, units: Sequence[Site] | None) -> tuple[Place, ...]:
    return ((layer, None),) if units is None else tuple((layer, u.index) for u in units if u.layer == layer)


def _windows(layers: Sequence[int], choice: Choice) -> list[Sequence[int]]:
    width = choice.window or max(1, len(layers) // SHARE_OF_LAYERS)
    starts = range(0, len(layers), choice.stride or width)
    found = [layers[i : i + width] for i in starts]
    return [w for i, w in enumerate(found) if i == 0 or w[-1] != found[i - 1][-1]]


def _row(window: Sequence[int], places: dict[int, tuple[Place, ...]]) -> Row:
    name = f"L{window[0]}" if len(window) == 1 else f"L{window[0]}-{window[-1]}"
    return Row(name, sum((places[layer] for layer in window), ()))


def groups_of(choice: Choice, prompts: EncodedPrompts) -> tuple[Group, ...]:
    """The source groups with their edges and their random counterparts.

    Raises:
        BadPosition: a position that the prompts do not have, or a group that no query can see.
    """
    queries = together(prompts.columns(choice.queries))
    named = choice.sources is not None
    specs = choice.sources if named else (*_usual(choice, prompts),)
    groups = [(spec if isinstance(spec, tuple) else (spec,)) for spec in specs or ()]
    found: list[tuple[str, str, tuple[tuple[int, ...], ...]]] = []
    for spec in (g for g in groups if g != (REST,)):
        columns = prompts.columns(spec)
        named_by = [s if s in prompts.roles or s == "last" else c.label for s, c in zip(spec, columns, strict=True)]
        shown = " + ".join(c.label for c in columns)
        found.append((" + ".join(map(str, named_by)), shown, together(columns)))
    if (REST,) in groups:
        taken = [{p for *_, places in found for p in places[row]} | set(queries[row]) for row in range(prompts.n)]
        rest = tuple(tuple(p for p in range(max(at)) if p not in t) for at, t in zip(queries, taken, strict=True))
        found.append((REST, "every other position before the last query", rest))
    kept = [_group(name, shown, queries, places, prompts, choice, named) for name, shown, places in found]
    if not (whole := tuple(g for g in kept if g is not None)):
        raise BadPosition("the queries see none of the positions; name `sources` at or before them.")
    if len({g.name for g in whole}) < len(whole):
        raise BadPosition(f"sources {', '.join(g.name for g in whole)}: name each group once.")
    return whole


def _usual(choice: Choice, prompts: EncodedPrompts) -> tuple[PositionSpec, ...]:
    """Roles that are not all queries, and the rest; without roles every position."""
    if not prompts.roles:
        return tuple(range(prompts.clean.width)) if len(set(prompts.clean.lengths)) == 1 else (REST,)
    queries = together(prompts.columns(choice.queries))
    apart = [r for r, at in prompts.roles.items() if any(p not in q for p, q in zip(at, queries, strict=True))]
    return (*apart, REST)


def _group(
    name: str, shown: str, queries: Sequence[Sequence[int]], places: Sequence[Sequence[int]], prompts: EncodedPrompts,
    choice: Choice, named: bool,
) -> Group | None:  # fmt: skip
    edges = edges_between(queries, places)
    unseen = [row for row, one in enumerate(edges) if not one]
    if unseen and named:
        raise BadPosition(
            f"no query of prompt {unseen[0]} can see source {name!r}: attention goes to earlier positions and to the "
            f"query itself. Queries are at {list(queries[unseen[0]])}, the source at {list(places[unseen[0]])}."
        )
    if unseen:
        return None
    lengths = prompts.clean.lengths
    drawn = random_edges(edges, lengths, count=choice.controls, seed=choice.seed, name=name)
    return Group(name, shown, edges, drawn)
