"""The server's own costs: start to tool list, a call over MCP against the same call in process, load times."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

STARTS, CALLS = 3, 7
MODEL = "smollm2-135m"
PROMPT = "When John and Mary went to the shops, John gave the bag to"


def measured(say: Callable[[str], None]) -> list[dict[str, object]]:
    """All of it, each the median of several; in a workspace that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(_measured, Path(folder), say)


async def _measured(folder: Path, say: Callable[[str], None]) -> list[dict[str, object]]:
    say("server: start to tool list")
    rows = [_row("server start to tool list", [await _start(folder) for _ in range(STARTS)], 1.5)]
    server = _server(folder)
    async with Client(server) as client:
        say("server: load, calls")
        first = await _seconds(client, "load_model", {"name": MODEL})
        await _seconds(client, "unload_model", {"model": MODEL})
        again = await _seconds(client, "load_model", {"name": MODEL})
        rows += [_row("load_model, new worker", [first], 6.0), _row("load_model, worker warm", [again], 6.0)]
        rows += [_row("list_models over MCP", await _calls(client, "list_models", {}), 0.05)]
        arguments = {"model": MODEL, "prompts": [{"clean": PROMPT, "answer": " Mary", "wrong": " John"}]}
        drawn = await _calls(client, "logit_lens", arguments)
    say("server: the same call in process")
    direct, picture = await anyio.to_thread.run_sync(_direct, folder, arguments)
    rows += [
        _row("logit_lens over MCP, with its picture", drawn[1:], None),
        _row("logit_lens in process, with its picture", direct[1:], None),
        _row("first logit_lens over MCP (first picture)", drawn[:1], None),
        _row("overhead of the call over MCP", [statistics.median(drawn[1:]) - statistics.median(direct[1:])], 0.05),
        _row("drawing: first PNG of a process", picture[:1], 0.5),
        _row("drawing: later PNGs", picture[1:], 0.1),
    ]
    return rows


def _row(what: str, seconds: list[float], aim: float | None) -> dict[str, object]:
    return {"what": what, "seconds": statistics.median(seconds), "most": max(seconds), "n": len(seconds), "aim": aim}


def _server(folder: Path) -> StdioServerParameters:
    arguments = ["-m", "anatomist_mcp", "--workspace", str(folder)]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))


async def _start(folder: Path) -> float:
    started = time.perf_counter()
    async with Client(_server(folder)) as client:
        await client.list_tools()
        return time.perf_counter() - started


async def _seconds(client: Client, tool: str, arguments: dict[str, object]) -> float:
    started = time.perf_counter()
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return time.perf_counter() - started


async def _calls(client: Client, tool: str, arguments: dict[str, object]) -> list[float]:
    return [await _seconds(client, tool, arguments) for _ in range(CALLS)]


def _direct(folder: Path, arguments: dict[str, object]) -> tuple[list[float], list[float]]:
    """Seconds of the same technique by `Host.call`, and of drawing its result."""
    from anatomist.catalog import CATALOG
    from anatomist.drawing.render import png
    from anatomist.host import Host

    host = Host(folder)
    calls: list[float] = []
    for _ in range(CALLS):
        started = time.perf_counter()
        answer = host.call("logit_lens", arguments, lambda done, total, what: None)
        calls.append(time.perf_counter() - started)
    plot = CATALOG.find("logit_lens").module.plot
    pictures: list[float] = []
    for _ in range(CALLS):
        started = time.perf_counter()
        png(plot(answer.result))
        pictures.append(time.perf_counter() - started)
    return calls, pictures
