"""Read a stored run: its result, what it depends on, slices of its arrays, and its picture redrawn.

Returns the run's summary, arguments and provenance; with detail='detailed' its whole result; with `array` and `slice`
numbers of a stored array (a grid of the result counts as one). list_runs gives the ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, JsonValue, ValidationError

from ..arrays import StoredArray, as_floats
from ..desk import Desk
from ..errors import BadArguments, CorruptFile, NotFinite, UnknownName
from ..figures import Figure
from ..operation import Outcome, Where
from ..result import About, Frozen, Grid
from ..slices import parse_slice, sliced_shape
from ..store import StoredRun
from ..technique import Progress

if TYPE_CHECKING:
    import numpy

TITLE = "Read a run"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False
MOST_NUMBERS = 4000


class Arguments(Frozen):
    run: str = Field(description="Id from list_runs, e.g. r-0012.")
    detail: Literal["concise", "detailed"] = Field(default="concise", description="detailed: the whole result.")
    array: str | None = Field(default=None, description="Array of the run, or grid of its result, to read from.")
    slice: str = Field(
        default="", description="Part of the array, as in numpy: '0, 3:8, :, -1'; at most 4000 numbers at a time."
    )
    picture: Literal["none", "png", "html"] = Field(default="none", description="Redraw the picture.")


class ArrayLine(Frozen):
    """An array that can be read."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...] = Field(description="What runs along each axis.")
    unit: str


class Numbers(Frozen):
    """Part of an array, row-major."""

    name: str
    slice: str
    shape: tuple[int, ...]
    unit: str
    values: tuple[float | None, ...] = Field(description="Row-major; null where it is not finite (masked).")


class RunRead(Outcome):
    """A stored run."""

    run: str
    about: About = Field(description="What its numbers depend on.")
    arguments: dict[str, JsonValue] = Field(description="What was asked; the same again gives the same numbers.")
    provenance: dict[str, JsonValue] = Field(description="Model and hash, prompts, machine, git commit.")
    result: dict[str, JsonValue] | None = Field(description="The technique's whole result, when detailed.")
    arrays: tuple[ArrayLine, ...] = Field(description="Arrays and grids that `array` can name.")
    numbers: Numbers | None = Field(description="The part that was asked for.")
    picture: str | None = Field(description="File of the picture, redrawn.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> RunRead:
    stored = desk.store.get(arguments.run)
    result, about = _plain(stored, "result.json"), stored.about()
    readable = {**_grids(result), **stored.arrays()}
    warnings = result.get("warnings")
    return RunRead(
        summary=_summary(about, result, readable),
        warnings=tuple(map(str, warnings)) if isinstance(warnings, list) else (),
        run=stored.id,
        about=about,
        arguments=_plain(stored, "arguments.json"),
        provenance={k: v for k, v in _plain(stored, "provenance.json").items() if k != "about"},
        result=result if arguments.detail == "detailed" else None,
        arrays=tuple(_line(name, array) for name, array in readable.items()),
        numbers=_numbers(stored, readable, arguments) if arguments.array else None,
        picture=_picture(desk, stored, arguments.picture),
    )


def _plain(stored: StoredRun, file: str) -> dict[str, JsonValue]:
    return stored.json(file)  # type: ignore[return-value]  # what JSON holds is a JsonValue


def _summary(about: About, result: Mapping[str, JsonValue], readable: Mapping[str, object]) -> str:
    names = ", ".join(readable)
    return (
        f"{about.run}, {about.technique} on {about.model}: {result.get('summary')}"
        f" Arrays to read with `array`: {names or 'none'}."
    )


def _grids(result: Mapping[str, JsonValue]) -> dict[str, Grid]:
    """The result's grids by their path in it."""
    found: dict[str, Grid] = {}

    def look(value: JsonValue, path: str) -> None:
        if isinstance(value, dict) and {"axes", "values", "unit"} <= value.keys():
            found[path] = Grid.model_validate_json(json.dumps(value))
        elif isinstance(value, dict):
            for key, inner in value.items():
                look(inner, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for i, inner in enumerate(value):
                look(inner, f"{path}.{i}")

    look(dict(result), "")
    return found


def _line(name: str, array: StoredArray | Grid) -> ArrayLine:
    if isinstance(array, Grid):
        return ArrayLine(name=name, shape=array.shape, axes=tuple(a.name for a in array.axes), unit=array.unit)
    return ArrayLine(name=name, shape=array.shape, axes=array.axes, unit=array.unit)


def _numbers(stored: StoredRun, readable: Mapping[str, StoredArray | Grid], arguments: Arguments) -> Numbers:
    name = arguments.array or ""
    if name not in readable:
        raise UnknownName.of(f"array of {stored.id}", name, readable, "Leave `array` out to list them.")
    array = readable[name]
    index = parse_slice(arguments.slice, array.shape)
    shape = sliced_shape(index, array.shape)
    if math.prod(shape) > MOST_NUMBERS:
        raise BadArguments(
            f"slice {arguments.slice or ':'!r} of {name!r} {array.shape} holds {math.prod(shape):,} numbers, at most "
            f"{MOST_NUMBERS} are read at a time; take a smaller part, e.g. '{_smaller(array.shape)}'."
        )
    part = _read(stored, name, array)[index]
    values = tuple(None if v is None or not math.isfinite(v) else float(v) for v in _flat(array, part))
    return Numbers(name=name, slice=arguments.slice or ":", shape=shape, unit=array.unit, values=values)


def _read(stored: StoredRun, name: str, array: StoredArray | Grid) -> numpy.ndarray:
    import numpy

    if isinstance(array, StoredArray):
        return stored.array(name)[1]
    if array.values is None:
        raise NotFinite(f"grid {name!r} of {stored.id} was stored without its values; run the technique again.")
    return numpy.array([math.nan if v is None else v for v in array.values]).reshape(array.shape)


def _flat(array: StoredArray | Grid, part: numpy.ndarray) -> list[float]:
    import numpy

    numbers = as_floats(array, part) if isinstance(array, StoredArray) else part
    return numpy.asarray(numbers, dtype=float).ravel().tolist()


def _smaller(shape: tuple[int, ...]) -> str:
    """A slice of the array that may be read at once."""
    keep, inner = [], 1
    for n in reversed(shape):
        keep.insert(0, ":" if inner * n <= MOST_NUMBERS else "0")
        inner *= n if keep[0] == ":" else 1
    return ", ".join(keep)


def _picture(desk: Desk, stored: StoredRun, how: Literal["none", "png", "html"]) -> str | None:
    """Redraw from figure.json, beside the runs: a stored run is never written to again."""
    if how == "none":
        return None
    from ..drawing import html, png

    try:
        figure = Figure.model_validate(stored.json("figure.json"))
    except ValidationError as error:
        raise CorruptFile(f"{stored.folder / 'figure.json'} is no figure: {error}. Run the technique again.") from error
    folder = desk.workspace / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stored.id}.{how}"
    path.write_bytes(png(figure) if how == "png" else html(figure).encode())
    return str(path)
