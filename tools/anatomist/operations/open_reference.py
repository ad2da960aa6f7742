"""Read the skill's own texts: SKILL.md, the references, the page of a technique; lists them when no name is given.

Long texts come in parts with the offset of the next.
"""

from __future__ import annotations

from pydantic import Field

from .. import pack
from ..desk import Desk
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Progress

TITLE = "Open a reference"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    name: str | None = Field(default=None, description="SKILL, pitfalls, techniques/logit_lens, ...; absent lists all.")
    offset: int = Field(default=0, ge=0, description="Character to start at.")
    limit: int = Field(default=12000, ge=100, le=60000, description="Characters at most.")


class ReferenceLine(Frozen):
    """A text that can be opened."""

    name: str
    title: str


class Reference(Outcome):
    """A text, or the list of them."""

    name: str | None
    text: str | None
    total: int | None = Field(description="Characters of the whole text.")
    next_offset: int | None = Field(description="Where the rest starts; null at the end.")
    known: tuple[ReferenceLine, ...] = Field(default=(), description="All texts, when no name was given.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Reference:
    if arguments.name is None:
        known = tuple(
            ReferenceLine(name=name, title=pack.headline(path.read_text(encoding="utf-8")))
            for name, path in pack.references().items()
        )
        return Reference(
            summary=f"{len(known)} references: {', '.join(k.name for k in known)}.",
            name=None, text=None, total=None, next_offset=None, known=known,
        )  # fmt: skip
    name, text = pack.reference(arguments.name)
    end = arguments.offset + arguments.limit
    following = end if end < len(text) else None
    rest = f"; the rest starts at offset={following}" if following else ""
    return Reference(
        summary=f"{name}: {pack.headline(text)} ({len(text)} characters{rest}).",
        name=name,
        text=text[arguments.offset : end],
        total=len(text),
        next_offset=following,
    )
