"""A result in words: the summary, what to be careful about, the key numbers, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from anatomist.result import About, Cell, Estimate, Frozen, Grid, SelfTest

Detail = Literal["concise", "detailed"]
_ROWS: Mapping[Detail, int] = {"concise": 8, "detailed": 40}
_CELLS: Mapping[Detail, int] = {"concise": 6, "detailed": 25}
_NUMBERS: Mapping[Detail, int] = {"concise": 100, "detailed": 1000}  # of a record that holds numbers
_FEW = 6  # items of a list inside a line
_ABOVE = ("summary", "warnings", "about")  # fields with a line of their own


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
            shown = text if len(text) <= 200 else text[:200] + "..."
            return shown if shown == shown.strip() else repr(shown)  # tokens begin with a space that matters


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
