"""Installing into clients: their own formats, what is there kept, a backup, and the way back."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from anatomist.__main__ import main
from anatomist.errors import BadArguments, CorruptFile, UnknownName
from anatomist.install.clients import CLIENTS, Scope
from anatomist.install.install import BACKUP, MARK, NAME, install, undo

PLACES = [(name, scope) for name, client in CLIENTS.items() for scope in client.config]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Files with what they hold, and folders that hold nothing."""
    found = [p for p in folder.rglob("*") if p.is_file() or not any(p.iterdir())]
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"empty folder" for p in found}


def servers(path: Path, key: str) -> dict[str, dict[str, object]]:
    text = path.read_text()
    return (tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))[key]


@pytest.mark.positive_control
@pytest.mark.parametrize(("name", "scope"), PLACES)
def test_every_client_gets_the_server_and_gives_it_back(name: str, scope: Scope, tmp_path: Path) -> None:
    client = CLIENTS[name]
    install(name, scope, tmp_path)
    entry = servers(tmp_path / client.config[scope], client.key)[NAME]
    assert entry["args"][:3] == ["-P", "-m", "anatomist_mcp"]  # type: ignore[index]
    if client.skills:
        skill = tmp_path / client.skills[scope] / NAME
        assert (skill / "SKILL.md").is_file()
        assert (skill / "references").is_dir()
    undo(name, scope, tmp_path)
    assert snapshot(tmp_path) == {}


@pytest.mark.hand_worked
def test_what_is_there_is_kept_and_comes_back_byte_for_byte(tmp_path: Path) -> None:
    old = '{"theme":"dark",   "mcpServers": {"other": {"command": "x"}}}'
    (tmp_path / ".mcp.json").write_text(old)
    install("claude-code", "project", tmp_path)
    settings = json.loads((tmp_path / ".mcp.json").read_text())
    assert settings["theme"] == "dark"
    assert set(settings["mcpServers"]) == {"other", NAME}
    assert (tmp_path / f".mcp.json{BACKUP}").read_text() == old
    install("claude-code", "project", tmp_path)  # twice changes nothing, and keeps the first backup
    assert (tmp_path / f".mcp.json{BACKUP}").read_text() == old
    undo("claude-code", "project", tmp_path)
    assert snapshot(tmp_path) == {".mcp.json": old.encode()}


def test_folders_that_are_allowed_are_handed_to_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["install", "claude-code", "--allow", "models", "--workspace", "runs"]) == 0
    arguments = servers(tmp_path / ".mcp.json", "mcpServers")[NAME]["args"]
    assert arguments == ["-P", "-m", "anatomist_mcp", "--workspace", "runs", "--allow", str(tmp_path / "models")]


def test_undo_keeps_what_was_changed_since(tmp_path: Path) -> None:
    path = tmp_path / ".mcp.json"
    path.write_text('{"mcpServers": {}}')
    install("claude-code", "project", tmp_path)
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"added": 1}))
    undo("claude-code", "project", tmp_path)
    assert json.loads(path.read_text()) == {"added": 1}
    assert not (tmp_path / f".mcp.json{BACKUP}").exists()


def test_a_skill_that_two_clients_read_goes_with_the_last_of_them(tmp_path: Path) -> None:
    skill = tmp_path / ".agents" / "skills" / NAME
    for name in ("codex", "cursor", "codex"):
        install(name, "project", tmp_path)
    assert (skill / MARK).read_text() == "codex\ncursor\n"
    assert any(step.what == "leave to cursor:" for step in undo("codex", "project", tmp_path, dry_run=True))
    assert (skill / MARK).read_text() == "codex\ncursor\n"
    undo("codex", "project", tmp_path)
    assert (skill / "SKILL.md").is_file()
    with pytest.raises(BadArguments, match="nothing of anatomist"):
        undo("codex", "project", tmp_path)
    undo("cursor", "project", tmp_path)
    assert snapshot(tmp_path) == {}


def test_toml_keeps_its_comments(tmp_path: Path) -> None:
    path = tmp_path / ".codex" / "config.toml"
    path.parent.mkdir()
    path.write_text('# mine\nmodel = "x"  # chosen\n\n[mcp_servers.other]\ncommand = "y"\n')
    install("codex", "project", tmp_path)
    text = path.read_text()
    assert "# mine" in text
    assert "# chosen" in text
    assert set(tomllib.loads(text)["mcp_servers"]) == {"other", NAME}


@pytest.mark.negative_control
def test_a_dry_run_writes_nothing_and_says_what_it_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["install", "vscode", "--project", "--dry-run"]) == 0
    assert snapshot(tmp_path) == {}
    assert ".vscode/mcp.json" in capsys.readouterr().out.replace("\\", "/")


@pytest.mark.bad_input
def test_bad_settings_and_names_are_refused_with_nothing_written(tmp_path: Path) -> None:
    (tmp_path / ".mcp.json").write_text("{ // comment\n}")
    before = snapshot(tmp_path)
    with pytest.raises(CorruptFile, match="changed by hand"):
        install("claude-code", "project", tmp_path)
    assert snapshot(tmp_path) == before
    (tmp_path / ".mcp.json").write_text('{"mcpServers": [1]}')
    with pytest.raises(CorruptFile, match="no table of servers"):
        install("claude-code", "project", tmp_path)
    with pytest.raises(UnknownName, match="claude-code"):
        install("clod", "project", tmp_path)
    with pytest.raises(BadArguments, match="--user"):
        install("claude-desktop", "project", tmp_path)
    with pytest.raises(BadArguments, match="nothing of anatomist"):
        undo("cursor", "user", tmp_path)


@pytest.mark.bad_input
def test_a_skill_of_the_same_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / ".claude" / "skills" / NAME / "SKILL.md"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(BadArguments, match="was not made by anatomist"):
        install("claude-code", "project", tmp_path)
    assert not (tmp_path / ".mcp.json").exists()
    assert not (theirs.parent / MARK).exists()
