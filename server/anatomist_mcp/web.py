"""Streamable HTTP: for this machine only, unless a token is set, which every request must then carry."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from anatomist.errors import BadArguments

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .app import App

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
LEAST_TOKEN = 16  # characters


def http_app(app: App, host: str, token: str | None) -> ASGIApp:
    """The ASGI application at /mcp.

    Raises:
        BadArguments: another machine could reach it and there is no token, or a token that can be guessed.
    """
    if token is not None and len(token) < LEAST_TOKEN:
        raise BadArguments(f"the token has {len(token)} characters; use at least {LEAST_TOKEN}, made at random.")
    if token is None and host not in LOCAL_HOSTS:
        raise BadArguments(
            f"--host {host} can be reached from other machines, which then may run models and read the workspace. Set "
            f"the variable ANATOMIST_TOKEN to a secret, or use one of {', '.join(LOCAL_HOSTS)}."
        )
    served = app.server.streamable_http_app(host=host)
    return served if token is None else TokenCheck(served, token)


class TokenCheck:
    """Refuses requests without `Authorization: Bearer <token>`."""

    def __init__(self, served: ASGIApp, token: str) -> None:
        self._served = served
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            await _refuse(send)
        else:
            await self._served(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b"This server needs its token: Authorization: Bearer <token>."})
