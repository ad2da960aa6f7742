"""The clients: where each keeps its servers and its skills, and under which key."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import BadArguments, UnknownName

Scope = Literal["project", "user"]
Format = Literal["json", "toml"]


@dataclass(frozen=True)
class Client:
    """Paths are relative to the project, or to the home folder."""

    title: str
    config: Mapping[Scope, str]
    skills: Mapping[Scope, str]  # folder of skills; empty where the client has none
    key: str = "mcpServers"
    format: Format = "json"
    typed: bool = False  # each server says that it is reached over stdio


def _application_data(name: str) -> str:
    """Where desktop programs keep their settings on this system, below the home folder."""
    if sys.platform == "darwin":
        return f"Library/Application Support/{name}"
    return f"AppData/Roaming/{name}" if sys.platform == "win32" else f".config/{name}"


_AGENTS: Mapping[Scope, str] = {"project": ".agents/skills", "user": ".agents/skills"}
CLIENTS: Mapping[str, Client] = {
    "claude-code": Client(
        "Claude Code", {"project": ".mcp.json", "user": ".claude.json"},
        {"project": ".claude/skills", "user": ".claude/skills"}, typed=True,
    ),
    "claude-desktop": Client(
        "Claude Desktop", {"user": f"{_application_data('Claude')}/claude_desktop_config.json"}, {}
    ),
    "cursor": Client("Cursor", {"project": ".cursor/mcp.json", "user": ".cursor/mcp.json"}, _AGENTS),
    "vscode": Client(
        "VS Code", {"project": ".vscode/mcp.json", "user": f"{_application_data('Code')}/User/mcp.json"}, _AGENTS,
        key="servers", typed=True,
    ),
    "codex": Client(
        "Codex", {"project": ".codex/config.toml", "user": ".codex/config.toml"}, _AGENTS, key="mcp_servers",
        format="toml",
    ),
    "gemini": Client("Gemini CLI", {"project": ".gemini/settings.json", "user": ".gemini/settings.json"}, _AGENTS),
}  # fmt: skip


def find(name: str) -> Client:
    """A client by name.

    Raises:
        UnknownName: no such client; those there are, are listed.
    """
    if name not in CLIENTS:
        raise UnknownName.of("client", name, CLIENTS, "By hand: see README.md.")
    return CLIENTS[name]


def config_of(client: Client, scope: Scope, base: Path) -> Path:
    """The file of the client's servers.

    Raises:
        BadArguments: the client has none for this scope.
    """
    if scope not in client.config:
        raise BadArguments(f"{client.title} has no settings for a {scope}; use --{next(iter(client.config))}.")
    return base / client.config[scope]
