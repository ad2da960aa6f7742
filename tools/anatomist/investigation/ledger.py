"""The record on disk: `<workspace>/investigations/<id>/events.jsonl`, and `README.md` for people.

Lines are only ever appended, under a lock, each in one write that reaches the disk before the lock is let go. A process
killed while writing leaves at most one unfinished last line; readers pass over it and the next writer removes it.
The Markdown page is made anew from the events after each line, and replaced in one step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from ..errors import BadArguments, CorruptFile, UnknownName
from .markdown import as_markdown
from .record import EVENT, AnyEvent, Investigation, Opened, add_up

_ID = re.compile(r"i-\d{4,}")


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Ledger:
    """The investigations of one workspace."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / "investigations"

    def ids(self) -> tuple[str, ...]:
        """Ids of all investigations, oldest first."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.folder.iterdir() if _ID.fullmatch(p.name) and _events(p).is_file()))

    def open(self, question: str, model: str, task: str | None) -> Investigation:
        """Begin an investigation."""
        if not question.strip():
            raise BadArguments("the question is empty; say in one sentence what is to be found out.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            taken = [int(p.name[2:]) for p in self.folder.iterdir() if _ID.fullmatch(p.name)]
            investigation_id = f"i-{max(taken, default=0) + 1:04d}"
            (self.folder / investigation_id).mkdir()
        return self.append(investigation_id, lambda _: Opened(at=now(), question=question, model=model, task=task))

    def get(self, investigation_id: str) -> Investigation:
        """One investigation by id.

        Raises:
            UnknownName: there is none; those that exist are listed.
            CorruptFile: a line other than an unfinished last one cannot be read.
        """
        if investigation_id not in self.ids():
            raise UnknownName.of("investigation", investigation_id, self.ids(), "Call open_investigation.")
        return add_up(investigation_id, self._read(investigation_id)[0])

    def append(self, investigation_id: str, make: Callable[[Investigation | None], AnyEvent]) -> Investigation:
        """Write one event, made from the state as it is while the lock is held; the state after it comes back."""
        folder = self.folder / investigation_id
        with FileLock(folder / ".lock"):
            events, end = self._read(investigation_id) if _events(folder).is_file() else ([], 0)
            before = add_up(investigation_id, events) if events else None
            events.append(make(before))
            _append(_events(folder), events[-1].model_dump_json(), end)
            state = add_up(investigation_id, events)
            _replace(folder / "README.md", as_markdown(state))
        return state

    def _read(self, investigation_id: str) -> tuple[list[AnyEvent], int]:
        """The events, and where the last whole line ends."""
        path = _events(self.folder / investigation_id)
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        events = []
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                events.append(EVENT.validate_json(line))
            except ValidationError as error:
                raise CorruptFile(
                    f"{path}, line {number} is no event: {error.errors()[0]['msg']}. The lines are only ever appended; "
                    "restore the file from a copy, or remove that line."
                ) from error
        return events, end


def _events(folder: Path) -> Path:
    return folder / "events.jsonl"


def _append(path: Path, line: str, end: int) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(handle, end)  # an unfinished line of a killed writer
        os.lseek(handle, end, os.SEEK_SET)
        os.write(handle, line.encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
