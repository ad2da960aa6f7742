"""`python -m anatomist_mcp.demo`: start the server, investigate through a real MCP client, write the report."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import anyio
from anatomist.errors import AnatomistError
from mcp import Client, StdioServerParameters

from .console import Caller
from .steps import investigate


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(prog="anatomist-demo", description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("report.html"), help="where the page is written")
    parser.add_argument("--workspace", type=Path, default=Path(".anatomist"), help="where the runs are kept")
    parser.add_argument("--prompts", type=int, default=32, help="prompts in each part")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        anyio.run(_demo, given.report.resolve(), given.workspace.resolve(), given.prompts, given.seed)
    except* AnatomistError as errors:
        for error in errors.exceptions:
            print(f"The demonstration stopped: {error}", file=sys.stderr)
        sys.exit(1)


async def _demo(report: Path, workspace: Path, prompts: int, seed: int) -> None:
    started = time.monotonic()
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "anatomist_mcp", "--workspace", str(workspace), "--allow", str(report.parent)],
        env=dict(os.environ),
    )
    async with Client(server) as client:
        caller = Caller(client)
        caller.console.print("[bold]Anatomist[/bold]: asking the server over stdio\n")
        report.touch()  # the server writes only to files in folders that it was allowed
        demo = await investigate(caller, n=prompts, seed=seed, report=report)
        computed = sum(caller.seconds.values())
        caller.console.print(
            f"\n[bold]{demo.verdict.verdict}[/bold]: {demo.verdict.wording}\n"
            f"[bold]{report}[/bold]: open it in a browser. {computed:.0f} s of calls, "
            f"{time.monotonic() - started:.0f} s in all; the runs are in {workspace}."
        )


if __name__ == "__main__":
    main()
