"""Run any technique or operation of the catalog by name, with the same checks, result and picture as its own tool.

For those that are not listed as tools: list_techniques finds them, describe_technique gives their arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from anatomist.catalog import parse_arguments
from anatomist.errors import UnknownName
from anatomist.operation import Outcome
from anatomist.result import Frozen
from pydantic import Field, JsonValue

from ..content import Shown

if TYPE_CHECKING:
    from ..app import App
    from ..session import Report

TITLE = "Run any technique"
WHERE = "server"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    """Which one, and its own arguments."""

    name: Annotated[str, Field(description="Name from list_techniques.")]
    arguments: Annotated[
        dict[str, JsonValue], Field(description="Its arguments by name, as describe_technique lists them.")
    ]


class TechniqueResult(Outcome):
    """The technique's own result: the fields that every result has, and those that describe_technique lists."""


async def run(app: App, arguments: Arguments, report: Report) -> Shown:
    tool = app.tool(arguments.name)
    if tool.entry.module.__name__.startswith(__name__.rpartition(".")[0]):
        raise UnknownName(f"{arguments.name!r} is a tool of the server: call the tool {arguments.name} itself.")
    return await app.answer(tool, parse_arguments(tool.entry, arguments.arguments), report)
