"""Make a project folder from a template: config, experiment, notebook, test, log, report. Never overwrites a file.

Comes back: the files. The experiment runs on SmolLM2 in minutes and its test in seconds. For a single question without
a project, call the techniques instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..errors import OutsideRoots
from ..operation import Outcome, Where
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..technique import Progress

TITLE = "Scaffold a project"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False
Template = Literal[
    "circuit-study", "head-study", "sae-training", "sae-feature-study", "probing", "toy-model", "bias-study"
]


class Arguments(Frozen):
    """What to make, and where."""

    template: Annotated[Template, Field(description="Kind of study.")]
    folder: Annotated[str, Field(min_length=1, description="New folder, in the workspace or an allowed folder.")]


class Scaffolded(Outcome):
    """The new project."""

    folder: str = Field(description="Where it is.")
    files: tuple[str, ...] = Field(description="Files made, relative to it.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Scaffolded:
    """Make it.

    Raises:
        OutsideRoots: a folder that may not be written.
        BadArguments: a file of the template is already there; nothing is written.
    """
    from ..scaffold import scaffold

    given = Path(arguments.folder).expanduser()
    target = (given if given.is_absolute() else desk.workspace / given).resolve()
    if not desk.roots.holds(target):
        allowed = ", ".join(map(str, desk.roots.folders))
        raise OutsideRoots(f"{str(target)!r} is outside the folders that may be written: {allowed}.")
    progress(0, 1, f"making a {arguments.template}")
    files = scaffold(arguments.template, target)
    return Scaffolded(
        summary=f"{arguments.template} with {len(files)} files is at {target}. Next: read its README.md, set "
        "config.toml, run `python experiment.py`.",
        folder=str(target),
        files=tuple(map(str, files)),
    )
