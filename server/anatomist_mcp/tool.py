"""One listed tool: a catalog entry, or one of the server's own, with the arguments that the server adds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast, get_args

from anatomist.catalog import Entry, parse_arguments
from anatomist.errors import BadArguments
from anatomist.result import Frozen
from mcp_types import Tool, ToolAnnotations

from .schemas import OUTPUT_SCHEMA, Schema, input_schema
from .text import Detail

ServerArgument = Literal["response_format", "as_job"]
DESCRIPTION_LIMIT = 320  # characters of a docstring that are listed, whole sentences
_SCHEMAS: Mapping[ServerArgument, Schema] = {
    "response_format": {"type": "string", "enum": ["concise", "detailed"], "description": "Length; concise if absent."},
    "as_job": {"type": "boolean", "description": "Give a job handle at once; then get_job."},
}
_LONG = ("load_model", "generate", "validate_finding", "reproduce_run")  # operations that may take over a minute
_LARGE = ("list_runs", "open_reference", "describe_technique", "get_job")


@dataclass(frozen=True)
class Call:
    """A checked call: the tool's arguments as plain data, and how to answer."""

    arguments: Frozen
    detail: Detail
    as_job: bool

    @property
    def data(self) -> dict[str, object]:
        return self.arguments.model_dump(mode="json")


@dataclass(frozen=True)
class ListedTool:
    """A catalog entry as a tool."""

    entry: Entry
    takes: tuple[ServerArgument, ...]

    @classmethod
    def of(cls, entry: Entry) -> ListedTool:
        technique = entry.kind == "technique" or entry.name == "run_technique"
        own = entry.arguments.model_fields
        takes: dict[ServerArgument, bool] = {
            "response_format": technique or entry.name in _LARGE,
            "as_job": technique or entry.name in _LONG,
        }
        return cls(entry, tuple(name for name, wanted in takes.items() if wanted and name not in own))

    @cached_property
    def listed(self) -> Tool:
        """The tool as `tools/list` shows it."""
        return Tool(
            name=self.entry.name,
            title=self.entry.title,
            description=description(self.entry),
            input_schema=input_schema(self.entry.arguments, {name: _SCHEMAS[name] for name in self.takes}),
            output_schema=OUTPUT_SCHEMA,
            annotations=ToolAnnotations(
                read_only_hint=self.entry.read_only, destructive_hint=self.entry.destructive
            ),
        )

    def parse(self, given: Mapping[str, object]) -> Call:
        """Check a call's arguments.

        Raises:
            BadArguments: unknown names, missing ones, values that do not fit.
        """
        own = {name: self._own(name, value) for name, value in given.items() if name not in self.takes}
        source = "response_format" if "response_format" in self.takes else "detail"
        detail = given.get(source) or "concise"
        as_job = given.get("as_job", False) if "as_job" in self.takes else False
        if detail not in get_args(Detail):
            raise BadArguments(f"response_format is {detail!r}; write 'concise' or 'detailed'.")
        if not isinstance(as_job, bool):
            raise BadArguments(f"as_job is {as_job!r}; write true or false.")
        return Call(parse_arguments(self.entry, own), cast(Detail, detail), as_job)

    def _own(self, name: str, value: object) -> object:
        """The value, read from JSON text where a client sent a list or an object as a string."""
        properties = cast(Mapping[str, object], self.listed.input_schema["properties"])
        plain_text = not isinstance(value, str) or name not in properties or properties[name] == {"type": "string"}
        if plain_text or not isinstance(value, str) or not value.startswith(("[{", "{", "[")):
            return value
        if value.startswith("[") and not value.startswith("[{") and '"string"' in json.dumps(properties[name]):
            return value
        try:
            return json.loads(value)
        except ValueError:
            return value


def description(entry: Entry) -> str:
    """What the tool does, from the docstring's first paragraph; a technique adds a question it answers."""
    paragraphs = entry.docstring.split("\n\n")
    told = paragraphs[0] if entry.questions else " ".join(paragraphs)
    words = " ".join(told.split())
    if entry.questions:
        words = f"{words} Answers: {entry.questions[0]}"
    if len(words) <= DESCRIPTION_LIMIT:
        return words
    return words[: words.rfind(". ", 0, DESCRIPTION_LIMIT) + 1] or words[:DESCRIPTION_LIMIT]
