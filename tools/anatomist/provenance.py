"""What a run's numbers depend on, beside its arguments: versions, machine, and the state of the code around it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from .devices import operating_system

COMPUTES = ("anatomist", "torch", "transformers", "transformer-lens", "nnsight", "nnterp", "sae-lens", "numpy")


def versions(packages: Sequence[str] = COMPUTES) -> dict[str, str]:
    """Versions of the packages that are installed, without importing them."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> Mapping[str, str]:
    return {"python": platform.python_version(), "system": operating_system(), "machine": platform.node()}


def git_state(folder: Path) -> Mapping[str, object] | None:
    """Commit of the repository that a folder is in, and whether files differ from it; None where there is no git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed_files": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
