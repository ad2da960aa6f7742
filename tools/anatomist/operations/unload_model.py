"""Free a loaded model's memory. Stored runs and prompt sets stay; loading it again gives the same handle."""

from __future__ import annotations

from pydantic import Field

from ..devices import memory_available
from ..estimate.cost import in_bytes
from ..host import Host
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Progress

TITLE = "Unload a model"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    model: str = Field(description="Handle from list_models.")


class Unloaded(Outcome):
    """A model that was freed."""

    handle: str
    freed_bytes: int = Field(description="Size of its weights, in bytes.")
    available_bytes: int = Field(description="Memory available now, in bytes.")


def run(host: Host, arguments: Arguments, progress: Progress) -> Unloaded:
    gone = host.unload(arguments.model)
    free = memory_available()
    return Unloaded(
        summary=f"Unloaded {gone.handle} ({in_bytes(gone.info.weight_bytes)}); {in_bytes(free)} are available now.",
        handle=gone.handle,
        freed_bytes=gone.info.weight_bytes,
        available_bytes=free,
    )
