"""Handles of models that were loaded from a folder, kept in the workspace, so that they outlive the process.

A name that `load_model` knows by itself always means that; a handle stands for a folder only where nothing else has it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from .desk import LoadRequest, is_place
from .errors import CorruptFile


class Handles:
    """handles/<handle>.json, each a LoadRequest."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / "handles"

    def remember(self, handle: str, request: LoadRequest) -> None:
        """Keep what a handle stands for, if it is a folder."""
        if not is_place(request.name):
            return
        whole = request.model_copy(update={"name": str(Path(request.name).expanduser().resolve())})
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".{handle}.writing"
        scratch.write_text(whole.model_dump_json(), encoding="utf-8")
        scratch.replace(self.folder / f"{handle}.json")

    def request(self, name: str) -> LoadRequest:
        """What was asked for when a model was given this handle; else the name itself.

        Raises:
            CorruptFile: the file of the handle cannot be read.
        """
        from .model.loading import known_names

        path = self.folder / f"{name}.json"
        if Path(name).name != name or is_place(name) or name in known_names() or not path.is_file():
            return LoadRequest(name=name)
        try:
            return LoadRequest.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise CorruptFile(f"{path} does not say what {name!r} is: {error}. Call load_model again.") from error
