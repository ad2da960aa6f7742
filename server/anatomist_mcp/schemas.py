"""JSON schemas as they are listed: the same constraints, without what costs context and says little.

Input schemas keep descriptions, bounds, choices and defaults; of nested objects only the names of the fields. Output
schemas name the fields. describe_technique gives both whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel

Schema = dict[str, object]


def input_schema(arguments: type[BaseModel], extra: Mapping[str, Schema]) -> Schema:
    """The arguments of a tool, flat, with the server's own arguments after them."""
    whole = arguments.model_json_schema()
    definitions = whole.get("$defs", {})
    properties = {name: _compact(field, definitions) for name, field in whole.get("properties", {}).items()}
    listed: Schema = {"type": "object", "properties": {**properties, **extra}, "additionalProperties": False}
    return {**listed, "required": whole["required"]} if "required" in whole else listed


def output_schema(result: type[BaseModel], extra: Iterable[str]) -> Schema:
    """Names of a result's fields, and of what comes instead of it for a job; the summary is always there."""
    fields: Schema = {name: {} for name in (*result.model_fields, *extra)}
    return {"type": "object", "properties": {**fields, "summary": {"type": "string"}}, "required": ["summary"]}


def _compact(node: Mapping[str, object], definitions: Mapping[str, object], *, inner: bool = False) -> Schema:
    """Without titles and null defaults; `X or null` becomes X; definitions stand where they are used."""
    kept = {k: _value(v, definitions) for k, v in node.items() if not _noise(k, v, inner)}
    if isinstance(reference := node.get("$ref"), str):
        return {**_compact(_target(reference, definitions), definitions, inner=True), **kept}
    if inner and node.get("type") == "object" and isinstance(fields := node.get("properties"), dict):
        return {"type": "object", "properties": {name: {} for name in fields}, "required": node.get("required", [])}
    return _not_null(kept)


def _value(value: object, definitions: Mapping[str, object]) -> object:
    if isinstance(value, dict):
        return _compact(value, definitions, inner=True)
    if isinstance(value, list):
        return [_compact(v, definitions, inner=True) if isinstance(v, dict) else v for v in value]
    return value


def _noise(key: str, value: object, inner: bool) -> bool:
    return key in ("title", "$ref") or (key == "default" and value is None) or (key == "description" and inner)


def _not_null(node: Schema) -> Schema:
    options = node.get("anyOf")
    if not isinstance(options, list) or {"type": "null"} not in options:
        return node
    rest = [o for o in options if o != {"type": "null"}]
    others = {k: v for k, v in node.items() if k != "anyOf"}
    return {**rest[0], **others} if len(rest) == 1 else {**others, "anyOf": rest}


def _target(reference: str, definitions: Mapping[str, object]) -> Mapping[str, object]:
    target = definitions[reference.rpartition("/")[2]]
    assert isinstance(target, Mapping)
    return target
