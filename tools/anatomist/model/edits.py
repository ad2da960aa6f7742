"""An edit is data: where, which rows and positions, what rule, which value. It can be checked, logged and replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import BadArguments, BadPosition
from .sites import Shape, Site, check_site
from .tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["set", "add", "scale", "multiply", "interpolate", "zero", "mean", "resample", "project_out", "erase"]
NEEDS_VALUE: frozenset[Rule] = frozenset(
    {"set", "add", "multiply", "interpolate", "mean", "resample", "project_out", "erase"}
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """One change to a forward pass.

    With x the activation selected by `site`, `rows` and `positions` (shape [rows, positions, *feature]):

    | rule | x becomes |
    |---|---|
    | set, mean, resample | value (`mean` and `resample` say where the value came from) |
    | add | x + factor * value |
    | scale | factor * x |
    | multiply | value * x (a mask of zeros and ones cuts single entries of a pattern) |
    | interpolate | (1 - factor) * x + factor * value |
    | zero | 0 |
    | project_out | x - (x . u) u with u = value / |value|, value of shape [*feature] |
    | erase | x - sum over i of ((x - c) . r_i) w_i; value of shape [1 + 2 k, *feature]: c, then k of r, then k of w |

    `value` broadcasts against [rows, positions, *feature], where *feature is the site's shape without rows and
    positions and without the head or neuron axis when `site.index` is given. For `scores` and `pattern` the positions
    are query positions and *feature ends in the key positions.
    """

    site: Site
    rule: Rule
    rows: tuple[int, ...] | None = None  # None: every row
    positions: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None  # one list for all rows, or one per row
    value: Tensor | None = None
    factor: float = 1.0

    def __str__(self) -> str:
        where = "all positions" if self.positions is None else f"positions {self.positions}"
        return f"{self.rule} {self.site} at {where}"


def check_edit(edit: Edit, shape: Shape, tokens: Tokens) -> Edit:
    """Return the edit if it can be made on these tokens.

    Raises:
        BadSite: the place does not exist.
        BadPosition: a row or position lies outside the tokens.
        BadArguments: the rule needs a value that is missing, or its selection is empty.
    """
    check_site(edit.site, shape)
    if edit.rule in NEEDS_VALUE and edit.value is None:
        raise BadArguments(f"the edit '{edit}' needs a value; {edit.rule!r} cannot be made without one.")
    rows = range(tokens.n_rows) if edit.rows is None else edit.rows
    if not rows or edit.positions == ():
        raise BadArguments(f"the edit '{edit}' selects nothing; name at least one row and one position.")
    for row in rows:
        if not 0 <= row < tokens.n_rows:
            n = tokens.n_rows
            raise BadPosition(f"row {row} does not exist: there are {n} prompts (0 to {n - 1}).")
    for row, position in selected(edit, tokens):
        if not 0 <= position < tokens.lengths[row]:
            raise BadPosition(tokens.outside(row, position))
    return edit


def selected(edit: Edit, tokens: Tokens) -> list[tuple[int, int]]:
    """Every (row, position) the edit writes, in order."""
    rows = range(tokens.n_rows) if edit.rows is None else edit.rows
    pairs: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        if edit.positions is None:
            pairs += [(row, p) for p in range(tokens.lengths[row])]
        else:
            per_row = edit.positions[i] if isinstance(edit.positions[0], tuple) else edit.positions
            pairs += [(row, p) for p in per_row]  # type: ignore[misc, union-attr]
    return pairs
