"""Schemas as they are listed: shorter than pydantic's, refusing and allowing the same."""

from __future__ import annotations

from typing import Annotated, Literal

import jsonschema
import pytest
from anatomist.result import Frozen
from anatomist_mcp.schemas import input_schema
from pydantic import Field


class Inner(Frozen):
    """Something nested."""

    clean: str
    wrong: str | None = None


class Arguments(Frozen):
    """One of each kind."""

    model: Annotated[str, Field(description="Model.")]
    prompts: Annotated[str | tuple[Inner, ...], Field(description="Handle or list.")]
    layers: Annotated[tuple[int, ...] | None, Field(description="Layers.")] = None
    n: Annotated[int, Field(ge=1, le=9, description="How many.")] = 3
    positions: Annotated[tuple[int | str, ...] | Literal["all"], Field(description="Where.")] = "all"
    title: Annotated[str, Field(description="An argument that is called like a keyword.")] = ""


LISTED = input_schema(Arguments, {"as_job": {"type": "boolean"}})
GOOD = {"model": "m", "prompts": "ioi"}


@pytest.mark.hand_worked
def test_titles_nulls_and_definitions_go_and_constraints_stay() -> None:
    assert LISTED == {
        "type": "object",
        "additionalProperties": False,
        "required": ["model", "prompts"],
        "properties": {
            "model": {"type": "string", "description": "Model."},
            "prompts": {
                "type": ["string", "array"],
                "items": {"type": "object", "required": ["clean"]},
                "description": "Handle or list.",
            },
            "layers": {"type": "array", "items": {"type": "integer"}, "description": "Layers."},
            "n": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3, "description": "How many."},
            "positions": {
                "anyOf": [
                    {"type": "array", "items": {"type": ["integer", "string"]}},
                    {"type": "string", "const": "all"},
                ],
                "default": "all",
                "description": "Where.",
            },
            "title": {"type": "string", "description": "An argument that is called like a keyword."},
            "as_job": {"type": "boolean"},
        },
    }


@pytest.mark.parametrize(
    "arguments",
    [GOOD, {**GOOD, "prompts": [{"clean": "a"}]}, {**GOOD, "positions": [1, "last"]}, {**GOOD, "as_job": True}],
)
def test_good_arguments_fit(arguments: dict[str, object]) -> None:
    jsonschema.validate(arguments, LISTED)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "m"}, {**GOOD, "n": 10}, {**GOOD, "prompts": [{"wrong": "b"}]}, {**GOOD, "positions": "some"},
        {**GOOD, "layer": 1}, {**GOOD, "layers": ["x"]},
    ],
)  # fmt: skip
def test_bad_arguments_do_not(arguments: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(arguments, LISTED)
