"""Every template runs as it is copied: its own test passes in an empty folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parent.parent / "templates"
NAMES = sorted(p.name for p in TEMPLATES.iterdir() if p.is_dir())


def test_there_is_a_template() -> None:
    assert "circuit-study" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_copied_template_passes_its_own_test(name: str, tmp_path: Path) -> None:
    project = tmp_path / name
    shutil.copytree(TEMPLATES / name, project)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_template_has_what_a_project_needs(name: str) -> None:
    wanted = {"README.md", "AGENTS.md", "CLAUDE.md", "pyproject.toml", ".gitignore", "config.toml", "experiment.py"}
    assert wanted <= {p.name for p in (TEMPLATES / name).iterdir()}
