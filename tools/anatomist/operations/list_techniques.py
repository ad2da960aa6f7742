"""Find techniques and operations by a question in plain words ("which heads move the name?"); lists all without one.

Returns names, titles and what each answers, the best match first. describe_technique gives arguments and limits,
run_technique calls one that is not a tool of its own.
"""

from __future__ import annotations

from pydantic import Field

from ..catalog import Entry
from ..host import Desk
from ..operation import Outcome, Where
from ..ranking import Ranking
from ..result import Frozen
from ..technique import Progress

TITLE = "List techniques"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    question: str | None = Field(default=None, max_length=500, description="What you want to know, in plain words.")
    limit: int = Field(default=10, ge=1, le=100, description="Techniques at most.")
    offset: int = Field(default=0, ge=0, description="Techniques to skip.")


class TechniqueLine(Frozen):
    """One technique, or an operation beside them (models, prompts, runs, investigations)."""

    name: str
    title: str
    does: str
    answers: tuple[str, ...] = Field(description="Questions it answers.")


class Techniques(Outcome):
    """Techniques, the best match first."""

    techniques: tuple[TechniqueLine, ...]
    total: int
    next_offset: int | None


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Techniques:
    entries = [*desk.catalog.entries("technique"), *desk.catalog.entries("operation")]
    if arguments.question:
        entries = Ranking({e.name: _words(e) for e in entries}).best(arguments.question, entries, lambda e: e.name)
    end = arguments.offset + arguments.limit
    page = entries[arguments.offset : end]
    names = ", ".join(e.name for e in page)
    nothing = f"No technique shares a word with {arguments.question!r}; leave `question` out to list all."
    return Techniques(
        summary=f"{len(entries)} techniques{' match' if arguments.question else ''}: {names}. "
        "Next: describe_technique." if page else nothing,
        techniques=tuple(
            TechniqueLine(name=e.name, title=e.title, does=e.headline, answers=e.questions) for e in page
        ),
        total=len(entries),
        next_offset=end if end < len(entries) else None,
    )


def _words(entry: Entry) -> tuple[tuple[float, str], ...]:
    """What a technique says of itself, with how much a word there counts."""
    return (
        (3.0, entry.name.replace("_", " ")),
        (2.0, entry.title),
        (1.0, entry.headline),
        (2.0, " ".join(entry.questions)),
    )
