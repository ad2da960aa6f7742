"""`anatomist view`: the workspace in a browser, on this machine only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ..errors import AnatomistError, BadArguments, UnknownName
from ..investigation.ledger import Ledger
from ..report.investigation import investigation_page
from ..report.page import Page
from ..store import Store
from .pages import overview, run_page

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The charts' library compiles expressions, hence 'unsafe-eval'; nothing is fetched from anywhere else.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def view_app(workspace: Path) -> Starlette:
    """The pages over a workspace. Requests under another host's name are refused (DNS rebinding)."""
    store, ledger = Store(workspace), Ledger(workspace)

    async def index(request: Request) -> Response:
        return await _page(lambda: overview(workspace, store, ledger))

    async def run(request: Request) -> Response:
        return await _page(lambda: run_page(store.get(request.path_params["run"])))

    async def investigation(request: Request) -> Response:
        return await _page(lambda: investigation_page(ledger.get(request.path_params["investigation"]), store))

    async def picture(request: Request) -> Response:
        try:
            path = store.get(request.path_params["run"]).picture
        except UnknownName as error:
            return _refused(error)
        return FileResponse(path, headers=_HEADERS) if path else Response(status_code=404, headers=_HEADERS)

    async def live(request: Request) -> Response:
        found = {"running": [asdict(r) for r in store.running()], "runs": len(store.ids())}
        return JSONResponse(found, headers=_HEADERS)

    routes = [
        Route("/", index), Route("/live", live), Route("/runs/{run}", run), Route("/pictures/{run}", picture),
        Route("/investigations/{investigation}", investigation),
    ]  # fmt: skip
    allowed = [*LOOPBACK[:2], "[::1]"]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed)])


def serve(workspace: Path, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        BadArguments: a host that other machines can reach.
    """
    import uvicorn

    if host not in LOOPBACK:
        raise BadArguments(f"host {host!r} can be reached from other machines; use one of {', '.join(LOOPBACK)}.")
    uvicorn.run(view_app(workspace), host=host, port=port, log_level="warning")


async def _page(make: Callable[[], Page]) -> Response:
    try:
        html = await anyio.to_thread.run_sync(lambda: make().html())
    except AnatomistError as error:
        return _refused(error)
    return HTMLResponse(html, headers=_HEADERS)


def _refused(error: AnatomistError) -> Response:
    """What cannot be shown, and why."""
    status = 404 if isinstance(error, UnknownName) else 500
    page = Page(title="Not to be shown", lede=str(error), kicker="Anatomist")
    page.section("Back").link("All investigations and runs", "/")
    return HTMLResponse(page.html(), status_code=status, headers=_HEADERS)
