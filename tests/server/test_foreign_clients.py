"""Clients that others wrote: the probe calls every tool, the Inspector lists and calls."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SERVER = [sys.executable, "-m", "anatomist_mcp"]
INSPECTOR = ["npx", "--yes", "@modelcontextprotocol/inspector", "--cli"]


def test_the_probe_finds_no_fault(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amagi_mcp_probe", "--strict", "--timeout", "120"]
    arguments = ["--args", str(HERE / "probe_args.json")]
    done = subprocess.run(
        [*command, *arguments, "--", *SERVER, "--workspace", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("npx") is None, reason="the Inspector needs Node")
def test_the_inspector_lists_and_calls(tmp_path: Path) -> None:
    server = [*INSPECTOR, *SERVER, "--workspace", str(tmp_path)]
    listed = inspect(server, "--method", "tools/list")
    assert len(listed["tools"]) > 10
    called = inspect(server, "--method", "tools/call", "--tool-name", "list_models")
    assert "toy-induction" in called["content"][0]["text"]


def inspect(server: list[str], *options: str) -> dict:
    done = subprocess.run([*server, *options], capture_output=True, text=True, timeout=180)
    if "ENOTFOUND" in done.stderr or "EAI_AGAIN" in done.stderr:
        pytest.skip("the Inspector is not installed and there is no network")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
