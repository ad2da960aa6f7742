"""What can be read without calling a tool: stored runs with their pictures and arrays, the references, SKILL.md."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

import anyio.to_thread
import mcp_types as types
from anatomist import pack
from anatomist.desk import Desk
from anatomist.errors import AnatomistError, Unavailable, UnknownName, WouldNotFit
from anatomist.model.offline import OFFLINE
from anatomist.store import StoredRun
from mcp import MCPError

SCHEME = "anatomist://"
PAGE = 100  # resources a page
ARRAY_BYTES = 16 * 1024**2  # larger arrays are read in slices with get_run
COMPLETIONS = 100  # the protocol's limit
log = logging.getLogger(__name__)

Contents = types.TextResourceContents | types.BlobResourceContents
_TEMPLATES = (
    ("runs/{run}", "run", "A stored run", "Arguments, result, provenance and the list of arrays.", "application/json"),
    ("runs/{run}/picture", "picture", "A run's picture", "Drawn from the run's result.", "image/png"),
    ("runs/{run}/arrays/{array}", "array", "A run's array", "One array as safetensors.", "application/octet-stream"),
    ("references/{+name}", "reference", "A reference", "How to read a technique's result, pitfalls.", "text/markdown"),
)


async def on_list(desk: Desk, ctx: object, params: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
    """One page: SKILL.md and the references, then the runs, newest first."""
    start = _offset(params.cursor if params else None)
    found = await anyio.to_thread.run_sync(lambda: [*_texts(), *_runs(desk)])
    end = start + PAGE
    return types.ListResourcesResult(resources=found[start:end], next_cursor=str(end) if end < len(found) else None)


async def on_templates(ctx: object, params: object) -> types.ListResourceTemplatesResult:
    """How the addresses of runs and references are made."""
    return types.ListResourceTemplatesResult(
        resource_templates=[
            types.ResourceTemplate(
                uri_template=f"{SCHEME}{path}", name=name, title=title, description=told, mime_type=kind
            )
            for path, name, title, told, kind in _TEMPLATES
        ]
    )


async def on_read(desk: Desk, ctx: object, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    """The content behind an address.

    Raises:
        MCPError: nothing is there; the text says what is.
    """
    uri = str(params.uri)
    try:
        return types.ReadResourceResult(contents=[await anyio.to_thread.run_sync(_read, desk, uri)])
    except AnatomistError as error:
        raise MCPError(types.INVALID_PARAMS, str(error), {"uri": uri}) from None
    except Exception:
        log.exception("reading %s failed", uri)
        raise MCPError(types.INTERNAL_ERROR, "it could not be read; see the server's log", {"uri": uri}) from None


async def on_complete(desk: Desk, ctx: object, params: types.CompleteRequestParams) -> types.CompleteResult:
    """Values that exist for an argument of a prompt or of an address."""
    argument = params.argument
    before = params.context.arguments if params.context and params.context.arguments else {}
    source = _SOURCES.get(argument.name)
    known = [] if source is None else await anyio.to_thread.run_sync(lambda: list(source(desk, before)))
    fitting = [value for value in known if value.startswith(argument.value)]
    return types.CompleteResult(
        completion=types.Completion(
            values=fitting[:COMPLETIONS], total=len(fitting), has_more=len(fitting) > COMPLETIONS
        )
    )


def _arrays_of(desk: Desk, before: Mapping[str, str]) -> Iterable[str]:
    try:
        return list(desk.store.get(before.get("run", "")).arrays())
    except AnatomistError:
        return []


def _models(desk: Desk, before: Mapping[str, str]) -> Iterable[str]:
    return dict.fromkeys([*(m.handle for m in desk.loaded()), *OFFLINE])


_SOURCES: Mapping[str, Callable[[Desk, Mapping[str, str]], Iterable[str]]] = {
    "run": lambda desk, before: reversed(desk.store.ids()),
    "runs": lambda desk, before: reversed(desk.store.ids()),
    "array": _arrays_of,
    "name": lambda desk, before: pack.references(),
    "prompts": lambda desk, before: desk.shelf.handles(),
    "model": _models,
}


def _texts() -> Iterable[types.Resource]:
    for name, path in pack.references().items():
        told = pack.headline(path.read_text(encoding="utf-8"))
        uri = f"{SCHEME}skill" if name == "SKILL" else f"{SCHEME}references/{name}"
        yield types.Resource(uri=uri, name=name, description=told, mime_type="text/markdown")


def _runs(desk: Desk) -> Iterable[types.Resource]:
    for run_id in reversed(desk.store.ids()):
        yield types.Resource(uri=f"{SCHEME}runs/{run_id}", name=run_id, mime_type="application/json")


def _read(desk: Desk, uri: str) -> Contents:
    match [unquote(part) for part in uri.removeprefix(SCHEME).split("/")]:
        case ["skill"]:
            return _text(uri, pack.reference("SKILL")[1])
        case ["references", *name] if name:
            return _text(uri, pack.reference("/".join(name))[1])
        case ["runs", run]:
            return _run(uri, desk.store.get(run))
        case ["runs", run, "picture"]:
            return _picture(uri, desk.store.get(run))
        case ["runs", run, "arrays", array]:
            return _array(uri, desk.store.get(run), array)
    raise UnknownName.of("resource", uri, [f"{SCHEME}skill", *(f"{SCHEME}{path}" for path, *_ in _TEMPLATES)])


def _text(uri: str, text: str) -> Contents:
    return types.TextResourceContents(uri=uri, mime_type="text/markdown", text=text)


def _run(uri: str, run: StoredRun) -> Contents:
    whole = {part: run.json(f"{part}.json") for part in ("arguments", "result", "provenance")}
    arrays = [a.model_dump(exclude={"file"}) for a in run.arrays().values()]
    text = json.dumps({"run": run.id, **whole, "arrays": arrays})
    return types.TextResourceContents(uri=uri, mime_type="application/json", text=text)


def _picture(uri: str, run: StoredRun) -> Contents:
    if run.picture is None:
        raise Unavailable(f"run {run.id} has no picture; get_run shows its numbers.")
    return _blob(uri, "image/png", run.picture.read_bytes())


def _array(uri: str, run: StoredRun, name: str) -> Contents:
    arrays = run.arrays()
    if name not in arrays:
        raise UnknownName.of(f"array of run {run.id}", name, arrays)
    if arrays[name].bytes > ARRAY_BYTES:
        raise WouldNotFit(
            f"array {name!r} of run {run.id} has {arrays[name].bytes / 1e6:.0f} MB; at most {ARRAY_BYTES / 1e6:.0f} MB "
            "are sent whole. Read slices of it with get_run."
        )
    return _blob(uri, "application/octet-stream", (run.folder / arrays[name].file).read_bytes())


def _blob(uri: str, kind: str, content: bytes) -> Contents:
    return types.BlobResourceContents(uri=uri, mime_type=kind, blob=base64.b64encode(content).decode())


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isdigit():
        raise MCPError(types.INVALID_PARAMS, f"cursor {cursor!r} is not one of ours; leave it out to begin.")
    return int(cursor)
