"""Writes the server's entry into a client's own settings, and the skill beside it; takes both out again.

What is there is kept: other servers, other keys, and in TOML the comments. The file is copied to
`<name>.before-anatomist` first, and replaced in one step. `undo` takes out only what was put in; where nothing else
has changed since, the file is the old one again, byte for byte. Several clients read one skills folder: the skill goes
with the last of them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadArguments, CorruptFile
from ..pack import folder
from .clients import Client, Scope, config_of, find

NAME = "anatomist"
BACKUP = ".before-anatomist"
MARK = ".installed-by-anatomist"  # in a skill's folder that we made: the clients that it is for, one a line
PACKED = ("SKILL.md", "references", "templates")


@dataclass(frozen=True)
class Step:
    """One thing that was, or would be, done."""

    what: str
    path: Path

    def __str__(self) -> str:
        return f"{self.what} {self.path}"


def install(
    client_name: str, scope: Scope, base: Path, *, workspace: Path | None = None, allow: Sequence[Path] = (),
    dry_run: bool = False,
) -> list[Step]:  # fmt: skip
    """Put the server into the client's settings and the skill into its skills folder.

    base: the project's folder, or the home folder. workspace: where runs are kept; absent: `.anatomist` in the folder
    the client starts the server in (user scope: in the home folder). allow: other folders that the server may read.

    Raises:
        UnknownName, BadArguments: no such client, or not for this scope.
        CorruptFile: the settings are not readable; nothing is written.
    """
    client = find(client_name)
    path = config_of(client, scope, base)
    settings = _read(path, client)
    where = workspace or (base / ".anatomist" if scope == "user" else Path(".anatomist"))
    servers = _servers(settings, client, path)
    # a second time the file holds our entry, and is not what undo is to bring back
    first = path.is_file() and NAME not in servers and not _backup(path).exists()
    servers[NAME] = _entry(client, where, allow)
    steps = [Step("back up to", _backup(path))] if first else []
    steps.append(Step("write the server into", path))
    skill = _skill(client, scope, base)
    if skill is not None:
        if skill.exists() and not (skill / MARK).exists():
            raise BadArguments(f"{skill} exists and was not made by anatomist; move it away, then install again.")
        steps.append(Step("copy the skill to", skill))
    if not dry_run:
        if first:
            shutil.copy2(path, _backup(path))
        _write(path, settings, client)
        if skill is not None:
            _copy_skill(skill, {*_users(skill), client_name})
    return steps


def undo(client_name: str, scope: Scope, base: Path, *, dry_run: bool = False) -> list[Step]:
    """Take the server and the skill out again.

    Raises:
        UnknownName, BadArguments, CorruptFile: as `install`; also when nothing of ours is there.
    """
    client = find(client_name)
    path = config_of(client, scope, base)
    skill = _skill(client, scope, base)
    settings = _read(path, client)
    servers = settings.get(client.key, {})
    users = _users(skill) if skill is not None else set()
    if NAME not in servers and client_name not in users:
        raise BadArguments(f"nothing of anatomist is in {path}; install first, or name the scope it was installed for.")
    steps: list[Step] = []
    if NAME in servers:
        del servers[NAME]
        steps.append(_restore(path, settings, client, dry_run=dry_run))
    if skill is not None and client_name in users:
        steps.append(_leave_skill(skill, users - {client_name}, dry_run=dry_run))
    if not dry_run:
        for place in filter(None, (path, skill)):
            _tidy(place, base)
    return steps


def _entry(client: Client, workspace: Path, allow: Sequence[Path]) -> dict[str, Any]:
    """How the client starts the server: this Python, so that no PATH has to be right.

    -P: the folder it is started in is not searched for modules, or a `mcp.py` there would be taken for the library.
    """
    folders = [part for folder in allow for part in ("--allow", str(folder.expanduser().resolve()))]
    entry: dict[str, Any] = {
        "command": sys.executable, "args": ["-P", "-m", "anatomist_mcp", "--workspace", str(workspace), *folders],
    }  # fmt: skip
    return {"type": "stdio", **entry} if client.typed else entry


def _read(path: Path, client: Client) -> MutableMapping[str, Any]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        if client.format == "toml":
            import tomlkit

            return tomlkit.parse(text)
        settings = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise CorruptFile(
            f"{path} cannot be read as {client.format.upper()} ({error}); nothing was written. Settings with comments "
            "must be changed by hand: README.md shows the lines."
        ) from error
    if not isinstance(settings, dict):
        raise CorruptFile(f"{path} holds {type(settings).__name__}, not an object; nothing was written.")
    return settings


def _servers(settings: MutableMapping[str, Any], client: Client, path: Path) -> MutableMapping[str, Any]:
    if client.format == "toml" and client.key not in settings:
        import tomlkit

        settings[client.key] = tomlkit.table(is_super_table=True)
    servers = settings.setdefault(client.key, {})
    if not isinstance(servers, MutableMapping):
        raise CorruptFile(f"{client.key!r} in {path} is no table of servers; nothing was written.")
    return servers


def _dump(settings: MutableMapping[str, Any], client: Client) -> str:
    if client.format == "toml":
        import tomlkit

        return tomlkit.dumps(settings)
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, settings: MutableMapping[str, Any], client: Client) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(_dump(settings, client), encoding="utf-8")
    if path.exists():
        shutil.copymode(path, scratch)
    os.replace(scratch, path)


def _restore(path: Path, settings: MutableMapping[str, Any], client: Client, *, dry_run: bool) -> Step:
    """The old file where nothing else has changed; else the present one without our entry."""
    backup = _backup(path)
    if not settings.get(client.key):
        settings.pop(client.key, None)
    old = _read(backup, client) if backup.exists() else {}
    if not old.get(client.key):
        old.pop(client.key, None)
    same = json.dumps(old, default=str, sort_keys=True) == json.dumps(settings, default=str, sort_keys=True)
    if not backup.exists() and same:
        if not dry_run:
            path.unlink()
        return Step("remove", path)
    if not dry_run:
        if same:
            os.replace(backup, path)
        else:
            _write(path, settings, client)
            backup.unlink(missing_ok=True)
    return Step("restore" if same else "take the server out of", path)


def _backup(path: Path) -> Path:
    return path.with_name(path.name + BACKUP)


def _skill(client: Client, scope: Scope, base: Path) -> Path | None:
    place = client.skills.get(scope)
    return base / place / NAME if place else None


def _tidy(gone: Path, base: Path) -> None:
    """Folders below the base that nothing is left in."""
    for above in gone.parents:
        if above == base or not above.is_dir() or any(above.iterdir()):
            break
        above.rmdir()


def _users(skill: Path) -> set[str]:
    """The clients that a skill's folder was made for; none where it is not ours."""
    mark = skill / MARK
    return set(mark.read_text(encoding="utf-8").split()) if mark.is_file() else set()


def _leave_skill(skill: Path, left: set[str], *, dry_run: bool) -> Step:
    if left:
        if not dry_run:
            _mark(skill, left)
        return Step(f"leave to {', '.join(sorted(left))}:", skill)
    if not dry_run:
        shutil.rmtree(skill)
    return Step("remove", skill)


def _mark(skill: Path, users: set[str]) -> None:
    (skill / MARK).write_text("".join(f"{name}\n" for name in sorted(users)), encoding="utf-8")


def _copy_skill(target: Path, users: set[str]) -> None:
    """The whole skill into a folder of its name, in one step."""
    scratch = target.with_name(f".{NAME}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name in PACKED:
        source = folder() / name
        if source.is_dir():
            shutil.copytree(source, scratch / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy2(source, scratch / name)
    _mark(scratch, users)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
