"""Every template makes a project whose own test passes, and nothing is ever overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from anatomist.__main__ import main
from anatomist.errors import BadArguments, OutsideRoots, UnknownName
from anatomist.host import Host
from anatomist.scaffold import scaffold, templates

NAMES = (
    "bias-study", "circuit-study", "head-study", "probing", "sae-feature-study", "sae-training", "toy-model",
)  # fmt: skip
QUICK = "circuit-study"
WANTED = {
    "README.md", "AGENTS.md", "CLAUDE.md", "pyproject.toml", ".gitignore", "config.toml", "experiment.py",
    "journal.py", "notebook.ipynb", "report.md", ".copier-answers.yml", "notes/log.md", "tests/test_experiment.py",
    "results/.gitkeep",
}  # fmt: skip


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=project, capture_output=True, text=True, check=False)


def test_the_templates_are_those_that_are_named() -> None:
    assert tuple(templates()) == NAMES
    assert all(question.startswith("Question: ") for question in templates().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_project_has_what_it_needs_and_no_mark_of_the_template(name: str, tmp_path: Path) -> None:
    project = tmp_path / "my-study"
    files = {p.as_posix() for p in scaffold(name, project)}
    assert files == WANTED
    texts = {f: (project / f).read_text() for f in WANTED}
    assert not [f for f, text in texts.items() if "{{" in text or "{%" in text]
    assert 'name = "my-study"' in texts["pyproject.toml"]
    assert json.loads(texts["notebook.ipynb"])["nbformat"] == 4
    compile(texts["experiment.py"], "experiment.py", "exec")


def test_a_new_projects_test_passes(tmp_path: Path) -> None:
    scaffold(QUICK, tmp_path / QUICK)
    done = python(tmp_path / QUICK, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_projects_test_and_experiment_run(name: str, tmp_path: Path) -> None:
    project = tmp_path / name
    assert main(["new", name, str(project)]) == 0
    done = python(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout + done.stderr
    done = python(project, "experiment.py")
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = (project / "results").glob("*.json")
    result = json.loads(written.read_text())
    assert "r-0001" in written.read_text()
    assert "stopped" not in result


@pytest.mark.bad_input
def test_no_file_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("mine")
    with pytest.raises(BadArguments, match=r"already holds config\.toml"):
        scaffold(QUICK, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("kept")
    scaffold(QUICK, tmp_path / "other")
    assert (tmp_path / "other" / "mine.txt").read_text() == "kept"
    with pytest.raises(BadArguments, match="is a file"):
        scaffold(QUICK, tmp_path / "config.toml")
    with pytest.raises(UnknownName, match="circuit-study"):
        scaffold("circuit", tmp_path / "x")


@pytest.mark.bad_input
def test_a_project_is_made_only_where_writing_is_allowed(tmp_path: Path) -> None:
    host = Host(tmp_path / "workspace")
    outside = {"template": QUICK, "folder": str(tmp_path / "elsewhere")}
    with pytest.raises(OutsideRoots):
        host.call("scaffold_project", outside)
    made = host.call("scaffold_project", {"template": QUICK, "folder": "study"}).result.model_dump()
    assert (tmp_path / "workspace" / "study" / "experiment.py").is_file()
    assert set(made["files"]) == WANTED
