"""Positions as columns: one label, and one absolute position per row. What the columns of a grid are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import BadPosition
from ..model.tokens import PositionSpec, Tokens

SHOWN_TOKENS = 3  # distinct tokens spelled out in a label


class Column(NamedTuple):
    """One column: '9: John', or 'S2 (8-11: John/ Mary/…)' where rows differ."""

    label: str
    positions: tuple[int, ...]  # one absolute position per row, BOS counted


def resolve(
    tokens: Tokens, roles: Mapping[str, tuple[int, ...]], positions: Sequence[PositionSpec] | PositionSpec
) -> tuple[Column, ...]:
    """Columns for integers, 'last', roles, token texts, or 'all'.

    Raises:
        BadPosition: empty, named twice, outside a prompt, ambiguous or unknown, or integers over unequal lengths.
    """
    specs = _specs(tokens, roles, positions)
    if not specs:
        raise BadPosition(f"no positions were given; name some, or 'all'. {_choices(roles)}")
    if twice := sorted({str(s) for s in specs if specs.count(s) > 1}):
        raise BadPosition(f"positions named twice: {', '.join(twice)}; name each once.")
    return tuple(_column(tokens, roles, spec) for spec in specs)


def _specs(
    tokens: Tokens, roles: Mapping[str, tuple[int, ...]], positions: Sequence[PositionSpec] | PositionSpec
) -> list[PositionSpec]:
    if positions != "all":
        return [positions] if isinstance(positions, int | str) else list(positions)
    _check_one_length(tokens, roles, "'all' positions")
    return list(range(tokens.width))


def _column(tokens: Tokens, roles: Mapping[str, tuple[int, ...]], spec: PositionSpec) -> Column:
    if isinstance(spec, int):
        if spec != -1:
            _check_one_length(tokens, roles, f"position {spec}")
        places = tuple(tokens.find(row, spec) for row in range(tokens.n_rows))
        return Column(_places(tokens, places), places)
    places = roles.get(spec) or _found(tokens, roles, spec)
    named = spec in roles or spec == "last"
    shown = _places(tokens, places)
    return Column(f"{spec} ({shown})" if named else shown, places)


def _found(tokens: Tokens, roles: Mapping[str, tuple[int, ...]], spec: str) -> tuple[int, ...]:
    try:
        return tuple(tokens.find(row, spec) for row in range(tokens.n_rows))
    except BadPosition as error:
        raise BadPosition(f"{error} {_choices(roles)}") from None


def _choices(roles: Mapping[str, tuple[int, ...]]) -> str:
    return f"Roles of these prompts: {', '.join(roles) or 'none'}; 'last' is the last token of each."


def _check_one_length(tokens: Tokens, roles: Mapping[str, tuple[int, ...]], what: str) -> None:
    lengths = sorted(set(tokens.lengths))
    if len(lengths) > 1:
        raise BadPosition(
            f"{what} would mean different words in prompts of different lengths ({lengths[0]} to {lengths[-1]} "
            f"tokens). Use a role or 'last', or prompts of one template. {_choices(roles)}"
        )


def one_line(string: str) -> str:
    """A token's string with its line ends spelled out, for labels."""
    return string.replace("\n", "\\n").replace("\r", "\\r")


def _places(tokens: Tokens, places: Sequence[int]) -> str:
    """'9: John'; over rows that differ '8-11: John/ Mary/…'."""
    first, last = min(places), max(places)
    strings = list(dict.fromkeys(one_line(tokens.strings[row][place]) for row, place in enumerate(places)))
    shown = "/".join(strings[:SHOWN_TOKENS]) + ("/…" if len(strings) > SHOWN_TOKENS else "")
    return f"{first if first == last else f'{first}-{last}'}:{shown}"
