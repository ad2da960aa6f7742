"""A result as MCP content: a text to act on, the result itself as structured content, its picture, a link to its run.

The size cap counts text and structured content together (about four characters a token). What goes over it is rounded,
and if that is not enough left out from the largest part down; the text says so, and how to read what is missing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from anatomist.result import About, Cell, Estimate, Frozen, Grid, SelfTest
from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent

Detail = Literal["concise", "detailed"]
CHARACTERS_PER_TOKEN = 4
CAP_TOKENS: Mapping[Detail, int] = {"concise": 8_000, "detailed": 20_000}
TEXT_SHARE = 0.5  # of the cap, at most, for the text
DIGITS = 5  # that numbers keep in a result which is over the cap
LONG_STRING = 2_000  # characters from which a string may be shortened
PICTURE_BYTES = 1_000_000  # larger pictures are linked, not sent
_ROWS: Mapping[Detail, int] = {"concise": 8, "detailed": 40}
_CELLS: Mapping[Detail, int] = {"concise": 6, "detailed": 25}
_NUMBERS: Mapping[Detail, int] = {"concise": 100, "detailed": 1000}  # of a record that holds numbers
_FEW = 6  # items of a list inside a line
_ABOVE = ("summary", "warnings", "about")  # fields with a line of their own

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


def text_of(result: Frozen, detail: Detail, most: int) -> str:
    """The summary, the warnings, the key numbers and what it cost; the numbers are cut when it is too long."""
    about = getattr(result, "about", None)
    cost = _cost(about) if isinstance(about, About) else ""
    head = [str(getattr(result, "summary", "")), *(f"Warning: {w}" for w in getattr(result, "warnings", ()))]
    top = cut("\n".join(head), most // 2)
    names = [n for n in type(result).model_fields if n not in _ABOVE]
    numbers = "\n".join(line for n in names for line in _lines(n, getattr(result, n), detail))
    return "\n".join(filter(None, [top, cut(numbers, most - len(top) - len(cost)), cost]))


def cut(text: str, most: int) -> str:
    """The text, ended at a line when it is too long, and saying so."""
    if len(text) <= most:
        return text
    kept = text[:most]
    return (kept.rpartition("\n")[0] or kept) + "\n... (the text was cut here; the structured content goes on)"


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


def _lines(name: str, value: object, detail: Detail) -> list[str]:
    label = name.replace("_", " ")
    match value:
        case None | () | {} | "":
            return []
        case Grid():
            return [_grid(value, detail)]
        case Estimate():
            return [f"{label}: {value}"]
        case (SelfTest(), *_):
            return _self_tests(value, detail)
        case (Grid(), *_):
            return [_grid(g, detail) for g in value]
        case Frozen():
            return [f"{label}: {_row(value, _NUMBERS[detail])}"]
        case Mapping():
            shown = [f"{k}: {_short(v)}" for k, v in list(value.items())[: _ROWS[detail]]]
            return [f"{label}: {'; '.join(shown)}{_more(len(value), detail)}"]
        case (Frozen(), *_):
            rows = [line for v in value[: _ROWS[detail]] for line in _record(v, detail)]
            return [f"{label}:", *rows, *_more_line(len(value), detail)]
        case str():
            return [f"{label}: {value}"]
        case Sequence():
            shown = ", ".join(_short(v) for v in value[: _ROWS[detail]])
            return [f"{label}: {shown}{_more(len(value), detail)}"]
        case _:
            return [f"{label}: {_short(value)}"]


def _record(record: Frozen, detail: Detail) -> list[str]:
    """One record of a list: a line, and the cells of its first grid (the others describe the same cells)."""
    grids = [v for n in type(record).model_fields if isinstance(v := getattr(record, n), Grid)]
    return [f"- {_row(record)}", *(f"  {_grid(g, detail)}" for g in grids[:1])]


def _grid(grid: Grid, detail: Detail) -> str:
    size = " x ".join(f"{len(a.labels)} {a.name}" for a in grid.axes)
    head = f"{grid.name} ({grid.unit}; {size})"
    if grid.values is None:
        return f"{head}: values left out for size"
    cells = "; ".join(_cell(c) for c in grid.top(_CELLS[detail]))
    return f"{head}, largest: {cells}" if cells else f"{head}: no cell has a value"


def _cell(cell: Cell) -> str:
    return f"{' / '.join(cell.labels)} = {_short(cell.value)}"


def _self_tests(tests: Sequence[object], detail: Detail) -> list[str]:
    told = [t for t in tests if isinstance(t, SelfTest)]
    passed = sum(t.passed for t in told)
    shown = [t for t in told if detail == "detailed" or not t.passed]
    lines = [
        f"- {'passed' if t.passed else 'FAILED'}: {t.name}: found {_short(t.found)}, expected {_short(t.expected)} "
        f"within {_short(t.tolerance)}"
        for t in shown
    ]
    return [f"self-tests: {passed} of {len(told)} passed", *lines]


def _row(record: Frozen, most: int = _FEW) -> str:
    """One record on one line, with at most so many items of each list."""
    if isinstance(record, Cell):
        return _cell(record)
    shown = {n: getattr(record, n) for n in type(record).model_fields}
    return ", ".join(f"{n} {_short(v, most)}" for n, v in shown.items() if not _left_out(v))


def _left_out(value: object) -> bool:
    return value in (None, (), {}, "") or isinstance(value, Grid)


def _short(value: object, most: int = _FEW) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case Estimate():
            return str(value)
        case Cell():
            return _cell(value)
        case Frozen():
            return f"({_row(value)})"
        case list() | tuple():
            return f"[{', '.join(_short(v) for v in value[:most])}{', ...' if len(value) > most else ''}]"
        case _:
            text = str(value)
            return text if len(text) <= 200 else text[:200] + "..."


def _more(n: int, detail: Detail) -> str:
    return f" (and {n - _ROWS[detail]} more)" if n > _ROWS[detail] else ""


def _more_line(n: int, detail: Detail) -> list[str]:
    return [f"-{_more(n, detail)}"] if n > _ROWS[detail] else []


def _cost(about: About) -> str:
    estimate = "" if about.estimated_seconds is None else f" (estimated {about.estimated_seconds:.2g} s)"
    n = "" if about.n is None else f", n={about.n}"
    standing = ", exploratory" if about.exploratory else ""
    return (
        f"Run {about.run}: {about.model} ({about.dtype}, {about.backend}, {about.device}), seed {about.seed}{n}"
        f"{standing}; {about.seconds:.2g} s{estimate}."
    )
