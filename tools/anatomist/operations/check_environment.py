"""Check versions (with pairs known not to work together), Python, memory, processors, disk, cache and workspace.

Returns figures and every fault with its remedy. Devices are those seen by the process that holds models, once it runs.
"""

from __future__ import annotations

import platform
import shutil

from pydantic import Field

from ..desk import Desk
from ..devices import Compute, existing, memory_available, memory_total, operating_system, processors
from ..environment import faults, installed
from ..estimate.cost import in_bytes
from ..model.offline import home
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Progress

TITLE = "Check the environment"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    pass


class Cached(Frozen):
    """A model in the cache."""

    name: str
    bytes: int


class Environment(Outcome):
    """What there is to compute with."""

    versions: dict[str, str] = Field(description="Installed packages that matter.")
    faults: tuple[str, ...] = Field(description="What is known not to work, each with its remedy.")
    python: str
    system: str
    processors: int = Field(description="Processors this process may use.")
    memory_bytes: int = Field(description="Memory in bytes, within the container's limit.")
    available_bytes: int = Field(description="Memory available now.")
    disk_free_bytes: int = Field(description="Free where the workspace is.")
    workspace: str
    runs: int = Field(description="Stored runs.")
    allowed: tuple[str, ...] = Field(description="Folders that may be read.")
    cache: str = Field(description="Folder of converted offline models (ANATOMIST_HOME).")
    cached: tuple[Cached, ...]
    compute: Compute | None = Field(description="What the process that holds models sees; null until it runs.")
    loaded: tuple[str, ...] = Field(description="Handles of loaded models.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Environment:
    found = installed()
    wrong, state = tuple(faults(found)), desk.state()
    free, total = memory_available(), memory_total()
    devices = ", ".join(d.name for d in state.compute.devices) if state else "known once a model is loaded"
    verdict = "No known fault" if not wrong else f"{len(wrong)} fault(s): {' '.join(wrong)}"
    return Environment(
        summary=(
            f"{verdict}. torch {found.get('torch', 'is missing')}, {processors()} processors, {in_bytes(free)} of "
            f"{in_bytes(total)} memory available, devices: {devices}."
        ),
        warnings=state.compute.warnings if state else (),
        versions=found,
        faults=wrong,
        python=platform.python_version(),
        system=operating_system(),
        processors=processors(),
        memory_bytes=total,
        available_bytes=free,
        disk_free_bytes=shutil.disk_usage(existing(desk.workspace)).free,
        workspace=str(desk.workspace),
        runs=len(desk.store.ids()),
        allowed=tuple(map(str, desk.roots.folders)),
        cache=str(home()),
        cached=_cached(),
        compute=state.compute if state else None,
        loaded=tuple(m.handle for m in desk.loaded()),
    )


def _cached() -> tuple[Cached, ...]:
    folders = sorted(p for p in (home() / "models").glob("*/") if not p.name.startswith("."))
    return tuple(
        Cached(name=f.name, bytes=sum(x.stat().st_size for x in f.rglob("*") if x.is_file())) for f in folders
    )
