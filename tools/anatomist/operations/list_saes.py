"""List sparse autoencoders and transcoders: loaded, shipped, and released for a model, with hook, width and L0.

Reads SAELens's own directory, offline; nothing is fetched or loaded. Pass a `name` to load_sae. Long lists come in
pages.
"""

from __future__ import annotations

from pydantic import Field

from ..desk import Desk
from ..dictionaries.releases import Released, models, plain_name, releases_for
from ..dictionaries.sources import shipped
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Progress

TITLE = "List SAEs and transcoders"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    model: str | None = Field(default=None, description="Model, by any usual name: gpt2, google/gemma-2-2b, a handle.")
    release: str | None = Field(default=None, description="One release alone.")
    layer: int | None = Field(default=None, ge=0, description="One layer alone.")
    offset: int = Field(default=0, ge=0, description="First of the page.")
    limit: int = Field(default=20, ge=1, le=200, description="Most on the page.")


class HeldSae(Frozen):
    """A dictionary that is loaded."""

    handle: str = Field(description="Pass it as `sae`.")
    source: str = Field(description="Shipped name, folder, or release and id it came from.")
    model: str = Field(description="Handle of the model it was measured on.")
    site: str = Field(description="Site it reads.")
    architecture: str
    d_dict: int = Field(description="Number of features.")


class ReleaseRow(Frozen):
    """One release of the model."""

    release: str = Field(description="Pass it as `release` to see its dictionaries.")
    count: int = Field(description="Dictionaries in it.")
    layers: int = Field(description="Layers they are of, as far as their ids tell.")
    weights: str = Field(description="Format; pickles are refused.")


class Saes(Outcome):
    """What is loaded, and what exists."""

    loaded: tuple[HeldSae, ...]
    shipped: tuple[str, ...] = Field(description="Names that need no network.")
    releases: tuple[ReleaseRow, ...] = Field(description="Releases of the model; empty where none was named.")
    saes: tuple[Released, ...] = Field(description="This page of their dictionaries.")
    total: int = Field(description="Dictionaries in all.")
    next_offset: int | None = Field(description="Offset of the next page; absent on the last.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Saes:
    held = _held(desk)
    model = _source(desk, arguments.model)
    named = model is not None or arguments.release is not None
    found = releases_for(model, arguments.release) if named else ()
    if arguments.layer is not None:
        found = tuple(row for row in found if row.layer == arguments.layer)
    page = found[arguments.offset : arguments.offset + arguments.limit]
    end = arguments.offset + len(page)
    return Saes(
        summary=_summary(arguments, held, found, page, named),
        loaded=held,
        shipped=shipped(),
        releases=_releases(found),
        saes=page,
        total=len(found),
        next_offset=end if end < len(found) else None,
    )


def _held(desk: Desk) -> tuple[HeldSae, ...]:
    state = desk.state()
    return tuple(
        HeldSae(
            handle=one.handle, source=one.info.source, model=one.model, site=one.info.site,
            architecture=one.info.architecture, d_dict=one.info.d_dict,
        )
        for one in (state.dictionaries if state else ())
    )  # fmt: skip


def _source(desk: Desk, model: str | None) -> str | None:
    """A handle's own source; any other name as it is."""
    return next((m.info.source for m in desk.loaded() if m.handle == model), model)


def _releases(found: tuple[Released, ...]) -> tuple[ReleaseRow, ...]:
    rows = []
    for release in dict.fromkeys(row.release for row in found):
        of_it = [row for row in found if row.release == release]
        layers = {row.layer for row in of_it if row.layer is not None}
        rows.append(ReleaseRow(release=release, count=len(of_it), layers=len(layers), weights=of_it[0].weights))
    return tuple(rows)


def _summary(
    arguments: Arguments, held: tuple[HeldSae, ...], found: tuple[Released, ...], page: tuple[Released, ...],
    named: bool,
) -> str:  # fmt: skip
    loaded = ", ".join(f"{one.handle} at {one.site}" for one in held) or "none"
    begin = f"Loaded: {loaded}. Shipped: {', '.join(shipped())}."
    if not named:
        return f"{begin} Name a model to see its releases; there are some for {', '.join(_distinct())}."
    if not found:
        return (
            f"{begin} SAELens's directory has none for {arguments.model or arguments.release!r}"
            f"{'' if arguments.layer is None else f' at layer {arguments.layer}'}. It has some for "
            f"{', '.join(_distinct())}. For another model train one, or give a folder to load_sae."
        )
    shown = "; ".join(_shown(row) for row in page[:5])
    more = f" and {len(page) - 5} more here" if len(page) > 5 else ""
    return (
        f"{begin} {len(found)} released in {len({row.release for row in found})} releases, "
        f"{arguments.offset + 1} to {arguments.offset + len(page)} listed: {shown}{more}. Next: load_sae(sae=name)."
    )


def _shown(row: Released) -> str:
    where = row.hook or (f"layer {row.layer}" if row.layer is not None else "")
    parts = [where, f"width {row.width}" if row.width else ""]
    l0 = f"L0 {row.l0:g}" if row.l0 else "L0 not stated"
    refused = "pickled: refused" if row.weights == "pickle" else ""
    return f"{row.name} ({', '.join(p for p in (*parts, l0, refused) if p)})"


def _distinct() -> list[str]:
    """One name a model."""
    return list({plain_name(name): name for name in models()}.values())
