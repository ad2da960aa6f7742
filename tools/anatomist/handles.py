"""Handles: names that are free, and in the workspace what a handle was asked for, so that it outlives the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from .errors import CorruptFile
from .result import Frozen

Request = TypeVar("Request", bound=Frozen)


def free_name(name: str, taken: Callable[[str], bool]) -> str:
    """The name, or where it is taken 'name-2' and so on."""
    return next(n for n in (name if i == 1 else f"{name}-{i}" for i in count(1)) if not taken(n))


class Handles(Generic[Request]):
    """<folder>/<handle>.json, each the request that `tool` was given for something in a folder of the user's."""

    def __init__(self, folder: Path, kind: type[Request], tool: str) -> None:
        self.folder, self._kind, self._tool = folder, kind, tool

    def names(self) -> tuple[str, ...]:
        return tuple(path.stem for path in self.folder.glob("*.json"))

    def remember(self, handle: str, request: Request, *, place: str) -> None:
        """Keep what a handle stands for; `place` is the request's field that names the folder."""
        whole = request.model_copy(update={place: str(Path(getattr(request, place)).expanduser().resolve())})
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".{handle}.{os.getpid()}.writing"
        scratch.write_text(whole.model_dump_json(), encoding="utf-8")
        scratch.replace(self.folder / f"{handle}.json")

    def recall(self, name: str) -> Request | None:
        """What was asked for under this handle; None where there is none.

        Raises:
            CorruptFile: the file of the handle cannot be read.
        """
        path = self.folder / f"{name}.json"
        if Path(name).name != name or not path.is_file():
            return None
        try:
            return self._kind.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise CorruptFile(f"{path} does not say what {name!r} is: {error}. Call {self._tool} again.") from error
