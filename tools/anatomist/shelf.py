"""Prompt sets of a workspace: `prompts/<handle>.json`, each with its discovery and its held-out part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import Field, ValidationError

from .errors import CorruptFile, UnknownName
from .prompts.prompt_set import PromptSet
from .result import Frozen


class PromptPair(Frozen):
    """The two parts of a generated prompt set, with disjoint names."""

    handle: str
    task: str
    seed: int
    model: str = Field(description="Handle of the model whose tokenizer they were filtered for.")
    discovery: PromptSet
    held_out: PromptSet


class Shelf:
    """The prompt sets of one workspace."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / "prompts"

    def put(self, discovery: PromptSet, held_out: PromptSet, *, task: str, seed: int, model: str) -> PromptPair:
        """Keep both parts under a new handle, like 'ioi-7f3a'; the handle is not guessable, so it must be passed on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            handle = f"{task}-{secrets.token_hex(2)}"
            pair = PromptPair(
                handle=handle, task=task, seed=seed, model=model,
                discovery=discovery.model_copy(update={"handle": handle}),
                held_out=held_out.model_copy(update={"handle": handle}),
            )  # fmt: skip
            if self._written(pair):
                return pair

    def get(self, handle: str) -> PromptPair:
        """The prompt set of a handle.

        Raises:
            UnknownName: there is none; those that exist are listed.
            CorruptFile: its file is damaged.
        """
        path = self.folder / f"{handle}.json"
        if handle not in self.handles():
            raise UnknownName.of("prompt set", handle, self.handles(), "Call make_prompts, or give prompts inline.")
        try:
            return PromptPair.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise CorruptFile(f"{path} is not a prompt set: {error}. Make the prompts again.") from error

    def handles(self) -> tuple[str, ...]:
        return tuple(sorted(p.stem for p in self.folder.glob("*.json"))) if self.folder.is_dir() else ()

    def _written(self, pair: PromptPair) -> bool:
        """Write whole or not at all; False when the handle is taken."""
        scratch = self.folder / f".{pair.handle}.{os.getpid()}.writing"
        scratch.write_text(pair.model_dump_json(), encoding="utf-8")
        try:
            os.link(scratch, self.folder / f"{pair.handle}.json")  # unlike a rename, refuses to replace
        except FileExistsError:
            return False
        finally:
            scratch.unlink()
        return True
