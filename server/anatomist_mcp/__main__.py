"""Start the MCP server: over stdio by default, over streamable HTTP with --http."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
from anatomist.errors import AnatomistError

from .app import App, AppOptions

TOKEN_VARIABLE = "ANATOMIST_TOKEN"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="anatomist-mcp", description="Mechanistic interpretability over MCP.")
    made.add_argument("--workspace", type=Path, help="folder of runs and prompts (default: ./.anatomist)")
    made.add_argument("--allow", type=Path, action="append", default=[], help="folder to read from (repeatable)")
    made.add_argument("--tools", help="list more tools: 'all', or names separated by commas")
    made.add_argument("--threads", type=int, help="compute threads (default: measured)")
    made.add_argument("--memory-bytes", type=int, help="most memory the process that holds the models may take")
    made.add_argument("--http", type=int, metavar="PORT", help="serve streamable HTTP at /mcp instead of stdio")
    made.add_argument("--host", default="127.0.0.1", help=f"address for --http; not local: needs {TOKEN_VARIABLE}")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server until its client leaves, or until it is interrupted."""
    options = parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s %(levelname)s: %(message)s")
    if options.threads is not None and options.threads < 1:
        parser().error(f"--threads {options.threads}: give a whole number of at least 1")
    try:
        app = App(
            AppOptions(
                workspace=options.workspace,
                allow=tuple(options.allow),
                threads=options.threads,
                tools=options.tools,
                memory_bytes=options.memory_bytes,
            )
        )
        _ = app.listed_names  # a wrong --tools is told at the start
        anyio.run(_serve_http, app, options.host, options.http) if options.http else anyio.run(_serve_stdio, app)
    except AnatomistError as error:
        parser().error(str(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


async def _serve_stdio(app: App) -> None:
    from mcp.server.stdio import stdio_server

    async with app.running(), stdio_server() as (read, write):
        await app.server.run(read, write, app.server.create_initialization_options())


async def _serve_http(app: App, host: str, port: int) -> None:
    import uvicorn

    from .web import http_app

    serving = uvicorn.Config(
        http_app(app, host, os.environ.get(TOKEN_VARIABLE)), host=host, port=port, log_level="warning", log_config=None
    )
    async with app.running():
        await uvicorn.Server(serving).serve()


if __name__ == "__main__":
    main()
