"""JSON schemas as they are listed: the same constraints, without what costs context and says little.

Input schemas keep descriptions, bounds, choices and defaults; of nested objects only the fields they must have. Output
schemas say that there is a summary. describe_technique gives both whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

Schema = dict[str, object]


def input_schema(arguments: type[BaseModel], extra: Mapping[str, Schema]) -> Schema:
    """The arguments of a tool, flat, with the server's own arguments after them."""
    whole = arguments.model_json_schema()
    definitions = whole.get("$defs", {})
    properties = {name: _compact(field, definitions) for name, field in whole.get("properties", {}).items()}
    listed: Schema = {"type": "object", "properties": {**properties, **extra}, "additionalProperties": False}
    return {**listed, "required": whole["required"]} if "required" in whole else listed


# Of every result, and of a started job. Whole schemas of all results would be larger than all else that is listed.
OUTPUT_SCHEMA: Schema = {"type": "object", "required": ["summary"]}


def _compact(node: Mapping[str, object], definitions: Mapping[str, object], *, inner: bool = False) -> Schema:
    """Without titles and null defaults; `X or null` becomes X; definitions stand where they are used."""
    kept = {k: _value(v, definitions) for k, v in node.items() if not _noise(k, v, inner)}
    if isinstance(reference := node.get("$ref"), str):
        return {**_compact(_target(reference, definitions), definitions, inner=True), **kept}
    if inner and node.get("type") == "object" and "properties" in node:
        return {"type": "object", "required": node.get("required", [])}
    return _one_type_list(_not_null(kept))


def _value(value: object, definitions: Mapping[str, object]) -> object:
    if isinstance(value, dict):
        return _compact(value, definitions, inner=True)
    if isinstance(value, list):
        return [_compact(v, definitions, inner=True) if isinstance(v, dict) else v for v in value]
    return value


def _noise(key: str, value: object, inner: bool) -> bool:
    empty = key == "default" and (value is False or value in (None, [], ""))
    return key in ("title", "$ref") or empty or (key == "description" and inner)


def _not_null(node: Schema) -> Schema:
    options = node.get("anyOf")
    if not isinstance(options, list) or {"type": "null"} not in options:
        return node
    rest = [o for o in options if o != {"type": "null"}]
    others = {k: v for k, v in node.items() if k != "anyOf"}
    return {**rest[0], **others} if len(rest) == 1 else {**others, "anyOf": rest}


def _one_type_list(node: Schema) -> Schema:
    """`{"anyOf": [string, array of ...]}` as `{"type": [string, array], "items": ...}`: the same, shorter."""
    options = node.get("anyOf")
    if not isinstance(options, list) or any(set(o) - {"type", "items"} for o in options):
        return node
    types, items = [o.get("type") for o in options], [o["items"] for o in options if "items" in o]
    if len(set(map(str, types))) < len(types) or None in types or any(isinstance(t, list) for t in types):
        return node
    merged: Schema = {"type": types, **({"items": items[0]} if items else {})}
    return {**merged, **{k: v for k, v in node.items() if k != "anyOf"}}


def _target(reference: str, definitions: Mapping[str, object]) -> Mapping[str, object]:
    target = definitions[reference.rpartition("/")[2]]
    assert isinstance(target, Mapping)
    return target
