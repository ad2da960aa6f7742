"""The demonstration, whole: a real model, a real client, a verdict, its report, and its notebook run again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from anatomist.host import Host

REQUIRED = ("baseline", "causal", "specific", "held_out", "effect_size")


@pytest.mark.slow
def test_the_demonstration_validates_the_heads_and_every_figure_names_its_run(tmp_path: Path) -> None:
    report, workspace = tmp_path / "report.html", tmp_path / "workspace"
    command = [sys.executable, "-m", "anatomist_mcp.demo", "--report", str(report), "--workspace", str(workspace)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    host = Host(workspace)
    state = host.ledger.get("i-0001")
    verdict = state.last_verdict("f1")
    assert verdict is not None
    outcomes = {check.name: check.outcome for check in verdict.checks}
    assert {name: outcomes[name] for name in REQUIRED} == dict.fromkeys(REQUIRED, "pass")
    assert verdict.verdict == "validated", verdict.reasons
    page = report.read_text(encoding="utf-8")
    linked = set(re.findall(r'href="#(r-\d+)"', page))
    assert linked
    assert linked <= set(re.findall(r'id="(r-\d+)"', page)) == {run.run for run in state.runs}
    made = host.call("export_notebook", {"investigation": "i-0001"}).result.model_dump()
    again = subprocess.run([sys.executable, made["script"]], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"all {len(state.runs)} runs gave the stored numbers" in again.stdout
