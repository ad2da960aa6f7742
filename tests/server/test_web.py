"""Streamable HTTP: on this machine without a token, for others only with one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from anatomist.errors import BadArguments
from anatomist_mcp.app import App, AppOptions
from anatomist_mcp.web import TokenCheck, http_app
from mcp import Client

pytestmark = pytest.mark.anyio
SECRET = "a-secret-of-some-length"


@pytest.fixture
def idle(tmp_path: Path) -> App:
    return App(AppOptions(workspace=tmp_path, prestart=False))


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """A server of its own process, on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "anatomist_mcp", "--workspace", str(tmp_path), "--http", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "ANATOMIST_TOKEN"}
    process = subprocess.Popen(command, env=environment)
    with anyio.fail_after(30):
        while not await listens(port):
            assert process.poll() is None
    yield f"http://127.0.0.1:{port}/mcp"
    process.terminate()
    process.wait(20)


async def listens(port: int) -> bool:
    try:
        async with await anyio.connect_tcp("127.0.0.1", port):
            return True
    except OSError:
        await anyio.sleep(0.05)  # the process is still starting
        return False


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_both_eras_list_and_call_over_http(address: str, era: str) -> None:
    async with Client(address, mode=era) as client:
        assert len((await client.list_tools()).tools) > 10
        arguments = {"model": "toy-induction", "prompt": "t1 t2 t1", "max_new_tokens": 1}
        answer = await client.call_tool("generate", arguments)
        assert answer.structured_content["text"] == "t2"


@pytest.mark.bad_input
def test_an_address_that_others_can_reach_needs_a_token(idle: App) -> None:
    with pytest.raises(BadArguments, match=r"--host 0\.0\.0\.0 can be reached from other machines.*ANATOMIST_TOKEN"):
        http_app(idle, "0.0.0.0", None)
    assert isinstance(http_app(idle, "0.0.0.0", SECRET), TokenCheck)


@pytest.mark.bad_input
def test_a_token_that_can_be_guessed_is_refused(idle: App) -> None:
    with pytest.raises(BadArguments, match="the token has 4 characters; use at least 16"):
        http_app(idle, "127.0.0.1", "1234")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"authorization", b"Bearer something else")], 401),
        ([(b"authorization", SECRET.encode())], 401),
        ([(b"authorization", f"Bearer {SECRET}".encode())] * 2, 401),
        ([(b"authorization", f"Bearer {SECRET}".encode())], 200),
    ],
)
async def test_only_requests_that_carry_the_token_pass(headers: list[tuple[bytes, bytes]], status: int) -> None:
    sent: list[dict] = []

    async def served(scope: object, receive: object, send) -> None:  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message) -> None:  # type: ignore[no-untyped-def]
        sent.append(message)

    scope = {"type": "http", "headers": headers}
    await TokenCheck(served, SECRET)(scope, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == status
