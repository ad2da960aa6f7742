"""List stored runs, newest first, a page at a time.

Returns id, technique, model, number of prompts, time and the first words of what was found. get_run reads one whole.
"""

from __future__ import annotations

from pydantic import Field

from ..desk import Desk
from ..errors import CorruptFile
from ..operation import Outcome, Where
from ..result import Frozen
from ..store import StoredRun
from ..technique import Progress

TITLE = "List runs"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False
WORDS = 160  # characters of a summary that are listed


class Arguments(Frozen):
    technique: str | None = Field(default=None, description="Only runs of this technique.")
    model: str | None = Field(default=None, description="Only runs whose model contains this text.")
    offset: int = Field(default=0, ge=0, description="Runs to skip, counted from the newest.")
    limit: int = Field(default=20, ge=1, le=100, description="Runs on a page.")


class RunLine(Frozen):
    """One stored run."""

    run: str = Field(description="Pass it to get_run.")
    technique: str
    model: str
    n: int | None = Field(description="Number of prompts.")
    seconds: float
    started: str = Field(description="UTC.")
    exploratory: bool
    found: str = Field(description="Beginning of the summary.")


class RunsPage(Outcome):
    """One page of runs."""

    runs: tuple[RunLine, ...]
    total: int = Field(description="Runs that match, on all pages.")
    next_offset: int | None = Field(description="Offset of the next page; null on the last.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> RunsPage:
    lines: list[RunLine] = []
    damaged: list[str] = []
    for stored in desk.store.runs():
        try:
            line = _line(stored)
        except CorruptFile as error:
            damaged.append(str(error))
            continue
        if arguments.technique in (None, line.technique) and (arguments.model or "") in line.model:
            lines.append(line)
    end = arguments.offset + arguments.limit
    page = tuple(lines[arguments.offset : end])
    following = end if end < len(lines) else None
    more = f"; the next page starts at offset={following}" if following else ""
    return RunsPage(
        summary=f"{len(page)} of {len(lines)} runs{more}." + ("" if lines else " Techniques store one each."),
        warnings=tuple(damaged),
        runs=page,
        total=len(lines),
        next_offset=following,
    )


def _line(stored: StoredRun) -> RunLine:
    about, started = stored.about(), stored.json("provenance.json").get("started")
    found = stored.json("result.json").get("summary")
    return RunLine(
        run=stored.id, technique=about.technique, model=about.model, n=about.n, seconds=about.seconds,
        started=str(started), exploratory=about.exploratory, found=str(found)[:WORDS],
    )  # fmt: skip

