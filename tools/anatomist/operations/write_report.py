"""Write an investigation as one self-contained HTML page, and as Markdown.

Comes back: the two files. The page opens without a network; every figure on it is linked to its run. It adds nothing to
the record, and it words each claim as the checks allow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..investigation.markdown import as_markdown
from ..operation import Outcome, Where
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..technique import Progress

TITLE = "Write a report"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    """Which investigation, and where to."""

    investigation: Annotated[str, Field(description="Id from open_investigation.")]
    path: Annotated[
        str | None, Field(description="HTML file in the workspace or an allowed folder; absent: beside the record.")
    ] = None


class Written(Outcome):
    """The files."""

    html: str = Field(description="The page.")
    markdown: str = Field(description="The same record as Markdown.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Written:
    """Write both files, each in one step.

    Raises:
        UnknownName: no such investigation.
        OutsideRoots: a path that may not be written.
    """
    from ..report.investigation import investigation_page

    state = desk.ledger.get(arguments.investigation)
    folder = desk.ledger.folder / state.id
    page = desk.roots.check(arguments.path) if arguments.path else folder / "report.html"
    progress(0, 1, "drawing the report")
    _replace(page, investigation_page(state, desk.store).html())
    markdown = folder / "report.md"
    _replace(markdown, as_markdown(state))
    return Written(summary=f"The report of {state.id} is at {page}.", html=str(page), markdown=str(markdown))


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
