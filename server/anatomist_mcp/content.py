"""A result as MCP content: a text to act on, the result itself as structured content, its picture, a link to its run.

The size cap counts text and structured content together (about four characters a token). What goes over it is rounded,
and if that is not enough left out from the largest part down; the text says so, and how to read what is missing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from anatomist.result import Frozen
from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent

from .text import Detail, cut, text_of

CHARACTERS_PER_TOKEN = 4
CAP_TOKENS: Mapping[Detail, int] = {"concise": 8_000, "detailed": 20_000}
TEXT_SHARE = 0.5  # of the cap, at most, for the text
DIGITS = 5  # that numbers keep in a result which is over the cap
LONG_STRING = 2_000  # characters from which a string may be shortened
PICTURE_BYTES = 1_000_000  # larger pictures are linked, not sent

Json = dict[str, object]


class Shown(NamedTuple):
    """What is shown of one answer."""

    result: Frozen
    run_id: str | None = None
    png: bytes | None = None
    told: Frozen | None = None  # what the text is made from, where it is not the result itself


def present(shown: Shown, detail: Detail) -> CallToolResult:
    """The whole content of one answer, within the cap."""
    cap = CAP_TOKENS[detail] * CHARACTERS_PER_TOKEN
    text = text_of(shown.told or shown.result, detail, int(cap * TEXT_SHARE))
    if shown.told is not None:
        text = f"{getattr(shown.result, 'summary', '')}\n{text}"
    room = cap - len(text) - 1_000
    structured, left_out = fit(shown.result.model_dump(mode="json"), room)
    if _size(structured) > room:  # nothing of it can be shortened any more
        structured = {"summary": cut(str(structured.get("summary")), room // 2)}
        left_out = ["everything but the summary"]
    if left_out:
        text += f"\nLeft out for size: {', '.join(left_out)}. {_how_to_read(shown.run_id)}"
    blocks: list[ContentBlock] = [TextContent(type="text", text=text)]
    if shown.png is not None and len(shown.png) <= PICTURE_BYTES:
        blocks.append(ImageContent(type="image", data=base64.b64encode(shown.png).decode(), mime_type="image/png"))
    if shown.run_id is not None:
        blocks.append(run_link(shown.run_id))
    return CallToolResult(content=blocks, structured_content=structured)


def failure(text: str) -> CallToolResult:
    """A deliberate failure: the text says the value, what is allowed and the next step."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)


def run_link(run_id: str) -> ResourceLink:
    return ResourceLink(
        type="resource_link",
        uri=f"anatomist://runs/{run_id}",
        name=run_id,
        title=f"Stored run {run_id}",
        mime_type="application/json",
    )


def read_png(path: Path | None) -> bytes | None:
    """The picture's bytes; none when there is none or it is a page."""
    return path.read_bytes() if path is not None and path.suffix == ".png" and path.is_file() else None


def fit(data: Json, most: int) -> tuple[Json, list[str]]:
    """The data with its largest parts left out until it fits, and the names of those parts.

    Numbers are rounded first. Then grids lose their values (null), lists and long strings their tail: the type stays.
    """
    left_out: list[str] = []
    if _size(data) > most:
        data = {key: _rounded(value) for key, value in data.items()}
        left_out.append(f"digits beyond {DIGITS}")
    over = _size(data) - most
    for holder, key, path in sorted(_parts(data, ""), key=lambda p: (not _is_grid(*p[:2]), -_size(p[0][p[1]]))):
        if over <= 0:
            break
        part = holder[key]
        assert isinstance(part, list | str)
        holder[key] = kept = None if _is_grid(holder, key) else _head(part, over)
        over -= _size(part) - _size(kept)
        left_out.append(f"{path} ({len(part) - len(kept or ())} of {len(part)})")
    return data, left_out


def _rounded(data: object) -> object:
    """The same data with numbers of fewer digits, which are most of a large result."""
    match data:
        case float():
            return float(f"{data:.{DIGITS}g}")
        case list():
            return [_rounded(item) for item in data]
        case dict():
            return {key: _rounded(value) for key, value in data.items()}
        case _:
            return data


def _is_grid(holder: Json, key: str) -> bool:
    return key == "values" and "axes" in holder


def _head(items: list[object] | str, over: int) -> list[object] | str:
    """The first items, or the beginning of a string, so that about `over` characters go."""
    if isinstance(items, str):
        return items[: max(0, len(items) - over)]
    keep = max(0, _size(items) - over)
    used = 2
    for i, item in enumerate(items):
        used += _size(item) + 2
        if used > keep:
            return items[:i]
    return items


def _parts(data: object, path: str) -> Iterator[tuple[Json, str, str]]:
    """Every list and long string that may be shortened: its holder, its key, its path."""
    if isinstance(data, list):
        for i, item in enumerate(data):
            yield from _parts(item, f"{path}.{i}")
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        here = f"{path}.{key}" if path else key
        long = isinstance(value, list) or (isinstance(value, str) and len(value) > LONG_STRING)
        if long and key not in ("warnings", "labels", "axes"):
            yield data, key, path if _is_grid(data, key) else here
        if key not in ("labels", "axes") and not _is_grid(data, key):
            yield from _parts(value, here)


def _size(data: object) -> int:
    return len(json.dumps(data))


def _how_to_read(run_id: str | None) -> str:
    if run_id is None:
        return "Ask for a smaller page, or response_format='detailed'."
    return f"Read it with get_run(run={run_id!r}, array=<its name>, slice=<part>)."
