"""Tokens with their strings and positions. Rows are kept unpadded; positions count from 0 in each row.

Backends pad on the right, where a causal model cannot see it; nobody else pads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import BadPosition, BadPrompts

PositionSpec = int | str


@dataclass(frozen=True)
class Tokens:
    """Rows of token ids, each with the string of every token."""

    ids: tuple[tuple[int, ...], ...]
    strings: tuple[tuple[str, ...], ...]
    bos: bool  # whether a beginning-of-sequence token stands at position 0

    def __post_init__(self) -> None:
        if not self.ids:
            raise BadPrompts("there are no prompts; give at least one.")
        for row, (ids, strings) in enumerate(zip(self.ids, self.strings, strict=True)):
            if not ids:
                raise BadPrompts(f"prompt {row} is empty; give at least one token.")
            if len(ids) != len(strings):
                raise BadPrompts(f"prompt {row} has {len(ids)} ids but {len(strings)} token strings.")

    @property
    def n_rows(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(row) for row in self.ids)

    @cached_property
    def width(self) -> int:
        return max(self.lengths)

    @property
    def last(self) -> tuple[int, ...]:
        """The last position of each row."""
        return tuple(n - 1 for n in self.lengths)

    def rows(self, index: Iterable[int]) -> Tokens:
        """Some of the rows."""
        chosen = list(index)
        return Tokens(tuple(self.ids[i] for i in chosen), tuple(self.strings[i] for i in chosen), self.bos)

    def label(self, row: int, position: int) -> str:
        """A position with its token, e.g. '9: John'."""
        return f"{position}:{self.strings[row][position]}"

    def outside(self, row: int, position: int) -> str:
        n = self.lengths[row]
        return (
            f"position {position} is outside prompt {row}'s {n} tokens (0 to {n - 1}, or -{n} to -1 from the end): "
            f"{self.strings[row][-1]!r} is {n - 1}."
        )

    def find(self, row: int, spec: PositionSpec) -> int:
        """One absolute position from an integer (negative from the end), 'last', or a token's exact text.

        Raises:
            BadPosition: outside the row, no such token, or a text that occurs more than once (its places are listed).
        """
        if isinstance(spec, int):
            if not -self.lengths[row] <= spec < self.lengths[row]:
                raise BadPosition(self.outside(row, spec))
            return spec % self.lengths[row]
        if spec == "last":
            return self.lengths[row] - 1
        places = [i for i, s in enumerate(self.strings[row]) if s == spec]
        if not places and not spec.startswith(" "):
            places = [i for i, s in enumerate(self.strings[row]) if s == " " + spec]
        if len(places) == 1:
            return places[0]
        shown = ", ".join(f"{i}:{s!r}" for i, s in enumerate(self.strings[row]))
        if places:
            many = f"token {spec!r} occurs at positions {places} of prompt {row}"
            raise BadPosition(f"{many}; name one by number: {shown}.")
        raise BadPosition(f"prompt {row} has no token {spec!r}; its tokens are {shown}.")


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first position where two rows differ; the length of the shorter if none does before it ends."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
