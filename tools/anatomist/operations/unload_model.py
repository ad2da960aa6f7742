"""Free the memory of a loaded model, or of a loaded SAE.

Stored runs and prompt sets stay; loading it again gives the same handle. A model's SAEs go with it.
"""

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
    model: str = Field(description="Handle from list_models, or from list_saes.")


class Unloaded(Outcome):
    """A model that was freed."""

    handle: str
    freed_bytes: int = Field(description="Size of its weights, in bytes.")
    available_bytes: int = Field(description="Memory available now, in bytes.")


def run(host: Host, arguments: Arguments, progress: Progress) -> Unloaded:
    if arguments.model in {d.handle for d in host.state().dictionaries}:
        info = host.unload_dictionary(arguments.model).info
        return _unloaded(info.name, info.weight_bytes)
    gone = host.unload(arguments.model)
    return _unloaded(gone.handle, gone.info.weight_bytes)


def _unloaded(handle: str, size: int) -> Unloaded:
    free = memory_available()
    return Unloaded(
        summary=f"Unloaded {handle} ({in_bytes(size)}); {in_bytes(free)} are available now.",
        handle=handle,
        freed_bytes=size,
        available_bytes=free,
    )
