"""One version everywhere, the ranges that work together, and the pack inside the wheel."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import anatomist
import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_there_is_one_version() -> None:
    assert PROJECT["project"]["version"] == anatomist.__version__ == importlib.metadata.version("anatomist")


def test_every_manifest_says_the_same_version() -> None:
    version = PROJECT["project"]["version"]
    server = json.loads((ROOT / "server.json").read_text())
    bundle = tomllib.loads((ROOT / "bundle" / "pyproject.toml").read_text())["project"]
    said = {
        "plugin": json.loads((ROOT / ".claude-plugin" / "plugin.json").read_text())["version"],
        "server": server["version"],
        "package": server["packages"][0]["version"],
        "bundle": json.loads((ROOT / "bundle" / "manifest.json").read_text())["version"],
        "bundle's project": bundle["version"],
    }
    assert set(said.values()) == {version}, said
    assert bundle["dependencies"] == [f"anatomist=={version}"]
    assert f'version: "{version}"' in (ROOT / "SKILL.md").read_text()


def test_the_manifests_keep_to_the_limits_of_those_who_read_them() -> None:
    server = json.loads((ROOT / "server.json").read_text())
    assert len(server["description"]) <= 100
    assert f"mcp-name: {server['name']}" in (ROOT / "README.md").read_text()
    plugin = json.loads((ROOT / ".claude-plugin" / "plugin.json").read_text())
    assert (ROOT / plugin["mcpServers"]).is_file()
    assert "skills" not in plugin
    assert not (ROOT / "skills").exists()


def test_the_pair_that_fails_to_import_cannot_be_picked() -> None:
    assert "nnsight>=0.7,<0.8" in PROJECT["project"]["dependencies"]
    assert "transformer-lens>=3.9,<4" in PROJECT["project"]["dependencies"]


@pytest.mark.parametrize("name", ["torch", "transformers", "transformer-lens", "nnsight", "nnterp", "sae-lens", "mcp"])
def test_constraints_pin_what_the_tests_run_with(name: str) -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    installed = importlib.metadata.version(name).partition("+")[0]
    assert pins[name] == installed


def test_the_wheel_carries_both_packages_and_the_pack(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "anatomist/__init__.py",
        "anatomist_mcp/__init__.py",
        "anatomist/pack/SKILL.md",
        "anatomist/pack/references/techniques/logit_lens.md",
    ):
        assert wanted in names
    tops = {n.split("/")[0] for n in names}
    assert not tops & {"tools", "server", "tests"}
