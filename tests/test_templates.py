"""Every template makes a project whose own test passes, and nothing is ever overwritten."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from anatomist.__main__ import main
from anatomist.errors import BadArguments, OutsideRoots, UnknownName
from anatomist.host import Host
from anatomist.pack import folder
from anatomist.scaffold import scaffold, templates
from copier import run_recopy
from nbclient import NotebookClient

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


def run_notebook(path: Path) -> list[dict[str, str]]:
    """What its cells show."""
    page = nbformat.read(path, as_version=4)
    NotebookClient(page, timeout=1200, resources={"metadata": {"path": str(path.parent)}}).execute()
    return [output.get("data", {}) for cell in page.cells for output in cell.get("outputs", [])]


def settings_of(project: Path) -> dict[str, object]:
    settings = tomllib.loads((project / "config.toml").read_text())
    return {key: value for key, value in settings.items() if key != "tracking"}


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
    config = tomllib.loads(texts["config.toml"])
    assert config["tracking"] == ""
    assert "seed" in config
    assert not [key for key, table in config.items() if isinstance(table, dict) and "tracking" in table]


@pytest.mark.parametrize(
    ("called", "package"),
    [("My study, 2nd", "my-study-2nd"), ('a"b', "a-b"), ("_x_", "x"), ("---", "toy-model"), ("Größe", "gr-e")],
)
def test_a_folder_of_any_name_gives_a_project_that_can_be_installed(called: str, package: str, tmp_path: Path) -> None:
    scaffold("toy-model", tmp_path / called)
    project = tomllib.loads((tmp_path / called / "pyproject.toml").read_text())["project"]
    assert project["name"] == package
    assert (tmp_path / called / "README.md").read_text().startswith(f"# {called}\n")


def test_a_newer_scaffold_comes_into_a_project_without_touching_what_is_its_own(tmp_path: Path) -> None:
    project = tmp_path / "study"
    scaffold(QUICK, project)
    made = {file: (project / file).read_text() for file in WANTED}
    for file in WANTED - {".copier-answers.yml"}:
        (project / file).write_text("changed")
    (project / "AGENTS.md").unlink()
    (project / "results" / "1.json").write_text("{}")
    run_recopy(str(project), overwrite=True, defaults=True, quiet=True)
    renewed = {file for file in WANTED - {".copier-answers.yml"} if (project / file).read_text() == made[file]}
    assert renewed == {"AGENTS.md", "CLAUDE.md", "journal.py", "pyproject.toml", ".gitignore"}
    assert all((project / file).read_text() == "changed" for file in WANTED - renewed - {".copier-answers.yml"})
    assert (project / "results" / "1.json").read_text() == "{}"


def test_files_that_an_installer_compiled_do_not_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(folder() / "templates", pack / "templates")
    for place in ("project/__pycache__", "project/tests/__pycache__"):
        (pack / "templates" / place).mkdir()
        (pack / "templates" / place / "journal.cpython-311.pyc").write_bytes(b"")
    monkeypatch.setattr("anatomist.scaffold.folder", lambda: pack)
    assert {p.as_posix() for p in scaffold(QUICK, tmp_path / "study")} == WANTED


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
    assert json.loads(done.stdout) == result
    assert "r-0001" in written.read_text()
    assert "r-0001" in done.stderr
    assert "stopped" not in result
    pages = run_notebook(project / "notebook.ipynb")
    assert result["config"] == settings_of(project)
    assert sum("image/png" in page for page in pages) >= 1
    assert len(list((project / "results").glob("*.json"))) == 1  # the notebook writes none


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
