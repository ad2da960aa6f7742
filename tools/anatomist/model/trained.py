"""Models trained in a workspace: `models/<name>/`, each with its weights, its checkpoints and how it was trained.

| file | content |
|---|---|
| training.json | what was asked; it is written first, and never changes |
| state.safetensors | weights, optimizer and curves as training last left them: from there it goes on |
| checkpoints/step-000500/ | the model as it was after 500 steps |
| toy.safetensors | the finished model, where it is a transformer |
| outcome.json, figure.json, picture.png | what was measured on it, and its picture |
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import BadArguments, UnknownName

TOY_FILE = "toy.safetensors"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_AT = "@"


class TrainedModels:
    """The trained models of one workspace."""

    def __init__(self, workspace: Path) -> None:
        self.home = workspace / "models"

    def folder(self, name: str) -> Path:
        """Where a model of that name is, or would be.

        Raises:
            BadArguments: not such a name.
        """
        if not NAME.fullmatch(name):
            raise BadArguments(
                f"{name!r} cannot name a trained model; use up to 64 small letters, digits, '-' and '_', the "
                "first a letter or digit."
            )
        return self.home / name

    def names(self) -> tuple[str, ...]:
        """Models that can be loaded."""
        return tuple(sorted(file.parent.name for file in self.home.glob(f"*/{TOY_FILE}")))

    def place(self, handle: str) -> Path | None:
        """The folder of a trained model or, for 'name@500', of its checkpoint; None where it is no trained model.

        Raises:
            UnknownName: the model has no checkpoint of that step.
        """
        name, at, step = handle.partition(_AT)
        if not NAME.fullmatch(name) or not (self.home / name).is_dir():
            return None
        if not at:
            return self.home / name if (self.home / name / TOY_FILE).is_file() else None
        kept = {str(step): folder for step, folder in checkpoints(self.home / name).items()}
        if step not in kept:
            raise UnknownName.of(f"checkpoint of {name}", step, kept, f"Write {name}{_AT} and one of these steps.")
        return kept[step]


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint kept of a model, in order."""
    found = {int(f.name.removeprefix("step-")): f for f in (folder / "checkpoints").glob("step-*") if f.is_dir()}
    return dict(sorted(found.items()))


def checkpoint_handle(name: str, step: int) -> str:
    return f"{name}{_AT}{step}"
