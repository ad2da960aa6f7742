"""What can be answered without a model: the stored runs, the prompt sets, the folders that may be read.

A desk needs no torch. It also keeps what the process that holds the models last said of itself (`WorkerState`): a
server has a `Desk` for operations with `where == "server"`, and a worker process with a `Host` for all else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from .catalog import CATALOG, Catalog, Entry, parse_arguments
from .devices import Compute
from .dictionaries.held import LoadedDictionary
from .errors import Unsupported
from .estimate.calibration import Rate
from .investigation.ledger import Ledger
from .model.protocol import Backend, ModelInfo
from .model.trained import TrainedModels
from .result import Frozen
from .roots import Roots
from .shelf import Shelf
from .store import Store
from .technique import Progress

WORKSPACE_VARIABLE = "ANATOMIST_WORKSPACE"
BUDGET_VARIABLE = "ANATOMIST_BUDGET_BYTES"
DEFAULT_BUDGET = 2 * 1024**3  # bytes a technique may plan with, beyond the weights


def quiet(done: float, total: float, what: str) -> None:
    """Progress that nobody looks at."""


class LoadRequest(Frozen):
    """What was asked of load_model; the same request gives the same model again."""

    name: str = Field(description="Offline name, folder or hub id.")
    backend: Backend | None = None
    dtype: str | None = None
    device: str | None = None
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub id.")
    check_parity: bool = True


class LoadedModel(Frozen):
    """One model held by the worker."""

    handle: str = Field(description="Pass it as `model`.")
    request: LoadRequest
    info: ModelInfo
    rate: Rate = Field(description="Arithmetic and memory speed measured with this model's own weights.")


class WorkerState(Frozen):
    """What the process that holds the models says of itself."""

    models: tuple[LoadedModel, ...] = ()
    dictionaries: tuple[LoadedDictionary, ...] = ()
    compute: Compute
    pid: int
    resident_bytes: int = Field(description="Memory the process holds.")


@dataclass(frozen=True)
class Answer:
    """What a call gave."""

    name: str  # of the technique or operation
    result: Frozen  # its own Result or Outcome
    run_id: str | None = None
    png_path: Path | None = None


class Desk:
    """Everything that can be answered without a model."""

    def __init__(
        self,
        workspace: Path | str | None = None,
        *,
        allow: Iterable[str | Path] = (),
        catalog: Catalog = CATALOG,
        budget_bytes: int | None = None,
    ) -> None:
        self.workspace = Path(workspace or os.environ.get(WORKSPACE_VARIABLE) or ".anatomist").expanduser().resolve()
        self.roots = Roots.of(self.workspace, allow)
        self.store = Store(self.workspace)
        self.shelf = Shelf(self.workspace)
        self.ledger = Ledger(self.workspace)
        self.trained = TrainedModels(self.workspace)
        self.catalog = catalog
        self.budget_bytes = budget_bytes or int(os.environ.get(BUDGET_VARIABLE) or DEFAULT_BUDGET)
        self._noted: WorkerState | None = None

    def note(self, state: WorkerState | None) -> None:
        """Keep what the worker last said; None when it has ended."""
        self._noted = state

    def state(self) -> WorkerState | None:
        """What the process that holds the models last said; None when there is none."""
        return self._noted

    def loaded(self) -> tuple[LoadedModel, ...]:
        """Models that are held now."""
        state = self.state()
        return state.models if state else ()

    def call(self, name: str, arguments: Mapping[str, object], progress: Progress = quiet) -> Answer:
        """Answer an operation that needs no model.

        Raises:
            UnknownName, BadArguments: from the catalog.
            Unsupported: it needs a process that holds models.
        """
        entry = self.catalog.find(name)
        if entry.where == "worker":
            raise Unsupported(f"{name!r} needs a model: call it on a Host (the worker), not on a Desk.")
        return self._operate(entry, parse_arguments(entry, arguments), progress)

    def place(self, name: str) -> str:
        """A model's name as it is; where it names a place on disk or a trained model, its real path.

        Raises:
            OutsideRoots: a place that may not be read. UnknownName: a checkpoint that was not kept.
        """
        if (trained := self.trained.place(name)) is not None:
            return str(trained)
        return str(self.roots.check(name)) if is_place(name) else name

    def _operate(self, entry: Entry, arguments: Frozen, progress: Progress) -> Answer:
        outcome = entry.module.run(self, arguments, progress)
        picture = getattr(outcome, "picture", None)
        return Answer(entry.name, outcome, png_path=Path(picture) if picture else None)


def is_place(name: str) -> bool:
    """Whether a model is named by a place on disk; hub ids ('owner/name') are not, unless a folder is called so."""
    return name.startswith(("/", "./", "../", "~")) or Path(name).expanduser().exists()
