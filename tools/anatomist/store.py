"""Runs on disk: each a folder that is there whole or not at all.

`<workspace>/runs/r-0001/` holds

| file | content |
|---|---|
| arguments.json | what was asked |
| result.json | the technique's result |
| provenance.json | what the numbers depend on: model and its hash, versions, seed, seconds, git commit |
| arrays.json, array-*.safetensors | arrays and what their axes are, where there are any |
| figure.json, picture.png | the picture as data, to be redrawn, and drawn |

A run is written in `runs/.r-0001.writing` and renamed when it is complete. Making that folder also claims the id: two
processes that share a workspace never get the same one. A killed process leaves such a folder behind; nobody reads it,
and the next writer removes it once its owner is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock
from pydantic import ValidationError

from .arrays import ArrayWriter, StoredArray, describe, read, stored
from .errors import CorruptFile, UnknownName
from .result import About

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

ABANDONED_SECONDS = 7 * 24 * 3600.0  # age at which a writing folder is removed though its owner cannot be asked
_OWNER = "owner.json"
_PROGRESS = "progress.json"
_SUFFIX = ".writing"


@dataclass
class RunWriter:
    """A run being written. `arguments`, `result` and `provenance` must be set before it ends."""

    id: str
    folder: Path
    arrays: list[StoredArray] = field(default_factory=list)
    _open: list[ArrayWriter] = field(default_factory=list)

    def text(self, file: str, content: str) -> None:
        (self.folder / file).write_text(content, encoding="utf-8")

    def progress(self, technique: str, done: float, total: float, what: str) -> None:
        """How far it is, for whoever watches the workspace; gone when the run is complete."""
        scratch = self.folder / f".{_PROGRESS}"
        scratch.write_text(json.dumps({"technique": technique, "done": done, "total": total, "what": what}))
        scratch.replace(self.folder / _PROGRESS)

    def data(self, file: str, content: bytes) -> None:
        (self.folder / file).write_bytes(content)

    def array(self, name: str, tensor: Tensor, *, axes: Sequence[str], unit: str) -> None:
        """Store a tensor that is in memory."""
        described = describe(name, tensor if tensor.ndim else tensor[None], axes if tensor.ndim else ("value",), unit)
        writer = ArrayWriter(self.folder, described)
        writer.append(tensor if tensor.ndim else tensor[None])
        writer.close()
        self.arrays.append(described)

    def stream(self, name: str, *, shape: Sequence[int], dtype: str, axes: Sequence[str], unit: str) -> ArrayWriter:
        """A writer for an array that comes in pieces along its first axis, and is never whole in memory."""
        writer = ArrayWriter(self.folder, stored(name, shape, dtype, axes, unit))
        self._open.append(writer)
        self.arrays.append(writer.array)
        return writer

    def finish_arrays(self) -> None:
        for writer in self._open:
            writer.close()
        self.text("arrays.json", json.dumps([a.model_dump() for a in self.arrays]))

    def abandon(self) -> None:
        for writer in self._open:
            writer.abandon()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class StoredRun:
    """A whole run on disk."""

    id: str
    folder: Path

    def json(self, file: str) -> dict[str, object]:
        """A JSON file of the run.

        Raises:
            CorruptFile: it is missing or does not hold JSON; the file is named.
        """
        path = self.folder / file
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptFile(
                f"{path} cannot be read: {error}. Other runs are not touched; run the technique again with the "
                "arguments in arguments.json."
            ) from error
        if not isinstance(content, dict):
            raise CorruptFile(f"{path} holds {type(content).__name__}, not an object; run the technique again.")
        return content

    def about(self) -> About:
        """What the run's numbers depend on.

        Raises:
            CorruptFile: provenance.json is damaged.
        """
        try:
            return About.model_validate(self.json("provenance.json").get("about"))
        except ValidationError as error:
            raise CorruptFile(f"{self.folder / 'provenance.json'} has no valid 'about': {error}") from error

    @property
    def picture(self) -> Path | None:
        path = self.folder / "picture.png"
        return path if path.is_file() else None

    def arrays(self) -> dict[str, StoredArray]:
        """The run's arrays by name."""
        path = self.folder / "arrays.json"
        if not path.is_file():
            return {}
        try:
            found = [StoredArray.model_validate(a) for a in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError) as error:
            raise CorruptFile(f"{path} cannot be read: {error}. Run the technique again.") from error
        return {a.name: a for a in found}

    def array(self, name: str) -> tuple[StoredArray, numpy.ndarray]:
        """An array by name, memory-mapped.

        Raises:
            UnknownName: the run has no array of that name.
            CorruptFile: its file is damaged.
        """
        arrays = self.arrays()
        if name not in arrays:
            raise UnknownName.of(f"array of run {self.id}", name, arrays)
        return arrays[name], read(self.folder, arrays[name])


@dataclass(frozen=True)
class Running:
    """A run that some process is making now."""

    id: str
    technique: str
    done: float
    total: float
    what: str
    seconds: float  # since it began


class Store:
    """The runs of one workspace."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / "runs"

    @contextmanager
    def writing(self) -> Iterator[RunWriter]:
        """A run that appears when the block ends, and never if it raises."""
        run_id, folder = self._claim()
        writer = RunWriter(run_id, folder)
        try:
            yield writer
            writer.finish_arrays()
            (folder / _PROGRESS).unlink(missing_ok=True)
            folder.rename(self.folder / run_id)
            (self.folder / run_id / _OWNER).unlink()  # a kill before this leaves a whole run with one file more
        except BaseException:
            writer.abandon()
            raise

    def ids(self) -> tuple[str, ...]:
        """Ids of all whole runs, oldest first."""
        if not self.folder.is_dir():
            return ()
        names = (e.name for e in os.scandir(self.folder) if e.is_dir() and _number(e.name) is not None)
        return tuple(sorted(names, key=lambda name: _number(name) or 0))

    def get(self, run_id: str) -> StoredRun:
        """A run by id.

        Raises:
            UnknownName: no such run; the newest are listed.
        """
        if _number(run_id) is None or not (self.folder / run_id).is_dir():
            raise UnknownName.of("run", run_id, self.ids()[::-1], "Call list_runs.")
        return StoredRun(run_id, self.folder / run_id)

    def runs(self) -> Iterator[StoredRun]:
        """All whole runs, newest first."""
        for run_id in reversed(self.ids()):
            yield StoredRun(run_id, self.folder / run_id)

    def running(self) -> tuple[Running, ...]:
        """Runs being made now by living processes, oldest first."""
        if not self.folder.is_dir():
            return ()
        folders = sorted(Path(e.path) for e in os.scandir(self.folder) if e.name.endswith(_SUFFIX))
        return tuple(found for folder in folders if (found := _running(folder)) and not _is_abandoned(folder))

    def _claim(self) -> tuple[str, Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):  # a killed holder's lock is released by the system
            self._sweep()
            return self._next()

    def _next(self) -> tuple[str, Path]:
        names = (e.name.strip(".").removesuffix(_SUFFIX) for e in os.scandir(self.folder))
        number = 1 + max((_number(name) or 0 for name in names), default=0)
        while True:
            run_id = f"r-{number:04d}"
            folder = self.folder / f".{run_id}{_SUFFIX}"
            if _made(folder):
                # whoever finished this id did so before the folder was ours: only its owner can rename to the id
                if not (self.folder / run_id).exists():
                    (folder / _OWNER).write_text(json.dumps(_owner()))
                    return run_id, folder
                folder.rmdir()
            number += 1

    def _sweep(self) -> None:
        """Remove what killed writers left; the lock is held."""
        for entry in os.scandir(self.folder):
            if entry.name.endswith(_SUFFIX) and _is_abandoned(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)


def _running(folder: Path) -> Running | None:
    try:
        noted = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        began = (folder / _OWNER).stat().st_mtime
        return Running(folder.name.strip(".").removesuffix(_SUFFIX), **noted, seconds=max(0.0, time.time() - began))
    except (OSError, ValueError, TypeError):
        return None  # it has said nothing yet, or has just ended


def _number(name: str) -> int | None:
    digits = name.removeprefix("r-")
    return int(digits) if name.startswith("r-") and digits.isdigit() else None


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _owner() -> Mapping[str, object]:
    return {"pid": os.getpid(), "started": psutil.Process().create_time(), "machine": socket.gethostname()}


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that wrote it has ended; by age where it ran on another machine."""
    try:
        owner = json.loads((folder / _OWNER).read_text())
        if owner["machine"] != socket.gethostname():
            return _age(folder) > ABANDONED_SECONDS
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) > 1.0  # the number was given again
    except psutil.NoSuchProcess:
        return True
    except OSError:
        # Signed under the lock that is ours now: without a signature its owner was killed, or it was just renamed.
        return folder.exists()
    except (ValueError, KeyError):
        return True


def _age(folder: Path) -> float:
    """Seconds since a folder was last written to; 0 when it is gone."""
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0
