"""A new project from a template, through copier; a file that is there is never overwritten."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from .errors import BadArguments, Unavailable, UnknownName
from .pack import folder

_CONFIGURATION = "copier.yml"


def templates() -> dict[str, str]:
    """Name and first line (the question) of every template."""
    base = folder() / "templates"
    found = sorted(p.parent for p in base.glob("*/experiment.py"))
    return {p.name: (p / "README.md").read_text(encoding="utf-8").splitlines()[0] for p in found}


def scaffold(template: str, target: Path, *, name: str | None = None) -> tuple[Path, ...]:
    """Make the project; the files made come back, relative to `target`. All of them are written, or none.

    Raises:
        UnknownName: no such template.
        BadArguments: `target` is a file, or holds a file that the template would write.
        Unavailable: the templates are not installed.
    """
    known = templates()
    if template not in known:
        raise UnknownName.of("template", template, known)
    if target.exists() and not target.is_dir():
        raise BadArguments(f"{target} is a file; name a folder for the project.")
    with tempfile.TemporaryDirectory() as scratch:
        made = _rendered(template, name or target.resolve().name, Path(scratch) / "project")
        files = tuple(sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file()))
        there = [str(f) for f in files if (target / f).exists()]
        if there:
            raise BadArguments(
                f"{target} already holds {', '.join(there[:5])}{' and more' if len(there) > 5 else ''}: nothing was "
                "written, since files are never overwritten. Name an empty folder."
            )
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / file, target / file)
    return files


def _rendered(template: str, name: str, target: Path) -> Path:
    from copier import run_copy

    source = folder() / "templates"
    if not (source / _CONFIGURATION).is_file():
        raise Unavailable(f"{source / _CONFIGURATION} is missing; install anatomist again.")
    data = {"template": template, "name": name}
    run_copy(str(source), target, data=data, defaults=True, quiet=True)
    return target
