"""Find techniques and operations by a question in plain words ("which heads move the name?"); lists all without one.

Returns names, titles and what each answers, the best match first. describe_technique gives arguments and limits,
run_technique calls one that is not a tool of its own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..catalog import Entry
from ..desk import Desk
from ..operation import Outcome, Where
from ..ranking import Ranking
from ..result import Frozen
from ..technique import Progress

TITLE = "List techniques"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False
MOST_OPERATIONS = 40  # listed at once: all of them


class Arguments(Frozen):
    question: str | None = Field(default=None, max_length=500, description="What you want to know, in plain words.")
    limit: int = Field(default=10, ge=1, le=100, description="Techniques at most.")
    offset: int = Field(default=0, ge=0, description="Techniques to skip.")


class TechniqueLine(Frozen):
    """One technique or operation."""

    name: str
    title: str
    does: str
    answers: tuple[str, ...] = Field(description="Questions it answers.")


class Techniques(Outcome):
    """Techniques, the best match first."""

    techniques: tuple[TechniqueLine, ...]
    operations: tuple[TechniqueLine, ...] = Field(
        description="Operations beside them (models, prompts, runs, investigations), called in the same way."
    )
    total: int
    next_offset: int | None


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Techniques:
    entries, operations = (_matching(desk, kind, arguments.question) for kind in ("technique", "operation"))
    end = arguments.offset + arguments.limit
    page = entries[arguments.offset : end]
    names = ", ".join(e.name for e in page)
    nothing = f"No technique shares a word with {arguments.question!r}; leave `question` out to list all."
    return Techniques(
        summary=f"{len(entries)} techniques{' match' if arguments.question else ''}: {names}. "
        "Next: describe_technique." if page else nothing,
        techniques=tuple(map(_line, page)),
        operations=tuple(map(_line, operations[:MOST_OPERATIONS])),
        total=len(entries),
        next_offset=end if end < len(entries) else None,
    )


def _matching(desk: Desk, kind: Literal["technique", "operation"], question: str | None) -> list[Entry]:
    entries = list(desk.catalog.entries(kind))
    if not question:
        return entries
    return Ranking({e.name: _words(e) for e in entries}).best(question, entries, lambda e: e.name)


def _line(entry: Entry) -> TechniqueLine:
    return TechniqueLine(name=entry.name, title=entry.title, does=entry.headline, answers=entry.questions)


def _words(entry: Entry) -> tuple[tuple[float, str], ...]:
    """What a technique says of itself, with how much a word there counts."""
    return (
        (3.0, entry.name.replace("_", " ")),
        (2.0, entry.title),
        (1.0, entry.headline),
        (2.0, " ".join(entry.questions)),
    )
