"""One version everywhere, the ranges that work together, and the pack inside the wheel."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import anatomist
import pytest
from anatomist_mcp.core_tools import CORE
from mcp import Client, StdioServerParameters
from skills_ref import validate

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


def test_the_skill_is_valid_in_a_folder_of_its_name(tmp_path: Path) -> None:
    skill = tmp_path / "anatomist"
    skill.mkdir()
    text = (ROOT / "SKILL.md").read_text()
    (skill / "SKILL.md").write_text(text)
    assert validate(skill) == []
    (skill / "SKILL.md").write_text(text.replace("name: anatomist", "name: Anatomist\ntools: all", 1))
    assert len(validate(skill)) == 3  # capital letter, not the folder's name, a field that the format has not
    assert "Unexpected fields" in str(validate(skill))


def command_of_a_registry(package: dict[str, Any]) -> list[str]:
    """What a client runs: the runtime, the package by its own name, its arguments."""
    words = [package["identifier"]]
    for argument in package["packageArguments"]:
        words += [argument["name"]] if argument["type"] == "named" else []
        words.append(argument["value"])
    return words


@pytest.mark.anyio
async def test_what_the_manifests_say_starts_the_server(tmp_path: Path) -> None:
    """The registry's entry and the plugin's through the commands of this environment, the bundle's main by its file."""
    package = json.loads((ROOT / "server.json").read_text())["packages"][0]
    plugin = json.loads((ROOT / ".claude-plugin" / "mcp.json").read_text())["mcpServers"]["anatomist"]
    assert plugin["args"][:2] == ["--from", "anatomist"]  # uvx finds the package, and starts the command after it
    name, *rest = command_of_a_registry(package)
    scripts = Path(sys.executable).parent
    for command, arguments in (
        (scripts / name, rest),
        (scripts / plugin["args"][2], plugin["args"][3:]),
        (sys.executable, [str(ROOT / "bundle" / "main.py"), "--workspace", str(tmp_path)]),
    ):
        started = StdioServerParameters(command=str(command), args=arguments, cwd=tmp_path)
        async with Client(started) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == set(CORE)


def test_the_bundle_is_of_the_kind_that_brings_its_own_python() -> None:
    manifest = json.loads((ROOT / "bundle" / "manifest.json").read_text())
    server = manifest["server"]
    assert (manifest["manifest_version"], server["type"]) == ("0.4", "uv")
    assert (ROOT / "bundle" / server["entry_point"]).is_file()
    named = {part[len("${user_config.") : -1] for part in server["mcp_config"]["args"] if "user_config" in part}
    assert named == set(manifest["user_config"])


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
