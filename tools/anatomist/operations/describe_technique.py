"""Describe one technique or tool: what it does and does not show, its arguments and result as JSON schema, its page.

list_techniques finds names.
"""

from __future__ import annotations

from pydantic import Field, JsonValue

from .. import pack
from ..desk import Desk
from ..errors import UnknownName
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Progress

TITLE = "Describe a technique"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    name: str = Field(description="Technique or tool, e.g. patch_activations.")
    page: bool = Field(default=True, description="Include the reference page.")


class Description(Outcome):
    """A technique or tool."""

    name: str
    title: str
    docstring: str
    questions: tuple[str, ...] = Field(description="Questions it answers.")
    arguments: dict[str, JsonValue] = Field(description="JSON schema of the arguments.")
    result: dict[str, JsonValue] = Field(description="JSON schema of the result.")
    page: str | None = Field(description="Its reference page, where it has one.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Description:
    entry = desk.catalog.find(arguments.name)
    schema = entry.input_schema()
    required = schema.get("required", [])
    needs = ", ".join(map(str, required)) if isinstance(required, list) and required else "nothing"
    return Description(
        summary=f"{entry.name}: {entry.headline} Needs: {needs}.",
        name=entry.name,
        title=entry.title,
        docstring=entry.docstring,
        questions=entry.questions,
        arguments=schema,  # type: ignore[arg-type]  # a JSON schema is JSON
        result=entry.output_schema(),  # type: ignore[arg-type]
        page=_page(entry.name) if arguments.page else None,
    )


def _page(name: str) -> str | None:
    try:
        return pack.reference(f"techniques/{name}")[1]
    except UnknownName:
        return None
