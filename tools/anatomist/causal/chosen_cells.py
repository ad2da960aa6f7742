"""From the arguments that patching techniques share to a grid of cells, and what each direction shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from ..errors import BadArguments
from ..model.sites import Shape, Site, SiteKind, check_site
from ..model.tokens import PositionSpec
from ..prompts.columns import Column
from ..prompts.encoding import EncodedPrompts
from .grids import CellGrid, by_layer_and_head, by_layer_and_position, by_unit_and_position, together
from .units import LETTERS, chosen_layers, chosen_units

GridName = Literal["layer_position", "layer_head", "head_position"]
SHOWS: Mapping[str, str] = {
    "denoising": "Denoising puts clean activations into the corrupted run: a large effect shows that the cell is "
    "sufficient to bring the behaviour back, not that it is needed.",
    "noising": "Noising puts corrupted activations into the clean run: a large effect shows that the cell is "
    "necessary for the behaviour, not that it is enough.",
}
MOST_CELLS = 20_000


class Choice(Protocol):
    """The arguments that say which cells are meant."""

    @property
    def site(self) -> SiteKind: ...
    @property
    def grid(self) -> GridName | None: ...
    @property
    def layers(self) -> Sequence[int] | None: ...
    @property
    def heads(self) -> Sequence[str] | None: ...
    @property
    def positions(self) -> Sequence[PositionSpec] | Literal["all"] | None: ...


def cells_of(choice: Choice, shape: Shape, prompts: EncodedPrompts) -> CellGrid:
    """The grid that the arguments ask for.

    Raises:
        BadArguments: a grid that the site does not have, or too many cells.
        BadSite, BadPosition: a place the model or the prompts do not have.
    """
    check_site(Site(choice.site, 0), shape)
    if layout_of(choice) == "layer_position":
        if choice.heads is not None:
            raise BadArguments("the grid layer_position patches whole layers: leave `heads` out, or take another grid.")
        layers = chosen_layers(choice.layers, shape)
        grid = by_layer_and_position(choice.site, layers, _columns(choice, prompts))
    else:
        grid = _cells_of_heads(choice, shape, prompts)
    if len(grid.cells) > MOST_CELLS:
        raise BadArguments(f"the grid has {len(grid.cells)} cells, at most {MOST_CELLS}; choose `layers` or `heads`.")
    return grid


def _cells_of_heads(choice: Choice, shape: Shape, prompts: EncodedPrompts) -> CellGrid:
    if choice.site not in LETTERS:
        raise BadArguments(f"{choice.site} has no heads: take the grid layer_position, or site 'head'.")
    units = chosen_units(choice.site, choice.heads, choice.layers, shape)
    if layout_of(choice) == "head_position":
        return by_unit_and_position(units, _columns(choice, prompts))
    everywhere = choice.positions in (None, "all")
    return by_layer_and_head(units, shape, None if everywhere else together(_columns(choice, prompts)))


def _columns(choice: Choice, prompts: EncodedPrompts) -> tuple[Column, ...]:
    """The positions asked for; by default every one, or the roles where positions of prompts do not correspond."""
    if choice.positions is not None:
        return prompts.columns(choice.positions)
    same = len(set(prompts.clean.lengths)) == 1
    return prompts.columns("all" if same or not prompts.roles else tuple(prompts.roles))


def layout_of(choice: Choice) -> GridName:
    """The grid asked for, or the usual one of the site."""
    if choice.grid is not None:
        return choice.grid
    by_head = choice.site in ("head", "q", "k", "v") or choice.heads is not None
    return "layer_head" if by_head else "layer_position"


def positions_in_words(choice: Choice, grid: CellGrid) -> str:
    """Which positions a cell holds."""
    if grid.cells[0].positions is None:
        return "every position"
    if choice.positions in (None, "all"):
        return "one position a cell"
    named = ", ".join(map(str, choice.positions or ()))
    return f"positions {named}, {'patched together' if layout_of(choice) == 'layer_head' else 'one a cell'}"
