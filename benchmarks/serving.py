"""The server's own costs: start to tool list, a call over MCP against the same call in process, load times.

`python -m benchmarks.serving` prints one line of JSON. It is measured in a process of its own, into which no other
library has been loaded: nnsight adds an attribute to every object, which the client's libraries do not survive.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

STARTS, CALLS, SMALL_CALLS = 3, 7, 15
MODEL = "smollm2-135m"
PROMPT = "When John and Mary went to the shops, John gave the bag to"
ARGUMENTS: dict[str, object] = {"model": MODEL, "prompts": [{"clean": PROMPT, "answer": " Mary", "wrong": " John"}]}
# Next to nothing to compute, and one small picture: what is left is the call itself.
SMALL: dict[str, object] = {
    "model": "toy-induction", "prompts": [{"clean": "t3 t7 t1 t3", "answer": "t7", "wrong": "t1"}], "site": "head",
    "ablation": "zero",
}  # fmt: skip


def measured() -> list[dict[str, object]]:
    """All of it, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.serving"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


async def _measured(folder: Path) -> list[dict[str, object]]:
    rows = [_row("server start to tool list", [await _start(folder) for _ in range(STARTS)], 1.5)]
    server = _server(folder)
    async with Client(server) as client:
        first = await _call(client, "load_model", {"name": MODEL})
        await _call(client, "unload_model", {"model": MODEL})
        again = await _call(client, "load_model", {"name": MODEL})
        listed = [await _call(client, "list_models", {}) for _ in range(CALLS)]
        lens = [await _call(client, "logit_lens", ARGUMENTS) for _ in range(CALLS + 1)]
        small = [await _call(client, "ablate", SMALL) for _ in range(SMALL_CALLS + 1)][1:]
    direct, pictures, tables = await anyio.to_thread.run_sync(_direct, folder)
    return [
        *rows,
        _row("load_model, new worker (imports included)", [first], None),
        _row("load_model, worker warm", [again], 6.0),
        _row("list_models over MCP", listed, 0.05),
        _row("first logit_lens over MCP, all", lens[:1], None),
        _row("later logit_lens over MCP, all", lens[1:], None),
        _row("ablate on a toy over MCP: computing, storing, drawing", small, None),
        _row("the same in process", direct, None),
        _row("overhead of MCP: the difference", [statistics.median(small) - statistics.median(direct)], 0.05),
        _row("drawing: first PNG of a process (a heat map of 30 x 9)", pictures[:1], 0.5),
        _row("drawing: later PNGs of it", pictures[1:], 0.1),
        _row("drawing: the logit lens, a token in each of 465 cells", tables, None),
    ]


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


async def _call(client: Client, tool: str, arguments: dict[str, object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    answer = await client.call_tool(tool, arguments)
    seconds = time.perf_counter() - started
    assert not answer.is_error, answer.content
    return seconds


def _direct(folder: Path) -> tuple[list[float], list[float], list[float]]:
    """In process, seconds of: the small call by `Host.call`, drawing heat maps, drawing the logit lens."""
    from anatomist.catalog import CATALOG
    from anatomist.drawing.render import png
    from anatomist.host import Host

    host = Host(folder)
    lens = host.call("logit_lens", ARGUMENTS).result
    heads = host.call("ablate", {**ARGUMENTS, "site": "head", "ablation": "zero"}).result
    plot, plot_heads = CATALOG.find("logit_lens").module.plot, CATALOG.find("ablate").module.plot
    pictures = [_timed(lambda: png(plot_heads(heads))) for _ in range(CALLS)]
    tables = [_timed(lambda: png(plot(lens))) for _ in range(CALLS)]
    small = [_timed(lambda: host.call("ablate", SMALL)) for _ in range(SMALL_CALLS + 1)][1:]
    return small, pictures, tables


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workspace:
        print(json.dumps(anyio.run(_measured, Path(workspace))))
