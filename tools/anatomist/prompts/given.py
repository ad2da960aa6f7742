"""Prompt sets that a user gives: inline, or as a JSONL file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from ..errors import BadPrompts, CorruptFile
from .prompt_set import Prompt, PromptSet


class Folders(Protocol):
    """The folders that may be read: gives back the real path, or raises."""

    def check(self, path: str | Path) -> Path: ...


def inline_set(prompts: Sequence[Prompt | Mapping[str, object]], *, handle: str | None = None) -> PromptSet:
    """A set of prompts as they are given.

    Raises:
        BadPrompts: none, or one that is no prompt; its number and what is wrong are in the text.
    """
    if not prompts:
        raise BadPrompts("there are no prompts; give at least one, like {'clean': 'The capital of France is'}.")
    read = tuple(p if isinstance(p, Prompt) else _read(p, f"prompt {i}") for i, p in enumerate(prompts))
    text = "\n".join(p.model_dump_json() for p in read)
    name = handle or f"inline-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return PromptSet(handle=name, task="inline", split="inline", prompts=read)


def load_jsonl(path: str | Path, roots: Folders) -> PromptSet:
    """A set of prompts from a file with one JSON object a line; blank lines are skipped.

    Raises:
        OutsideRoots, Unavailable: from the folders that may be read.
        CorruptFile: not UTF-8 text.
        BadPrompts: no prompts, or a line that is no prompt; its number and what is wrong are in the text.
    """
    real = roots.check(path)
    try:
        lines = real.read_text(encoding="utf-8").split("\n")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise CorruptFile(f"{str(path)!r} is not a UTF-8 text file ({error}); give one JSON object a line.") from error
    prompts = [_read_line(line, f"line {i} of {str(path)!r}") for i, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise BadPrompts(f"{str(path)!r} holds no prompts; write one JSON object a line, like {EXAMPLE}.")
    return inline_set(prompts, handle=str(path))


EXAMPLE = '{"clean": "The capital of France is", "answer": " Paris"}'


def _read_line(line: str, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadPrompts(
            f"{where} is not JSON ({error.msg} at column {error.colno}); write it like {EXAMPLE}."
        ) from error
    return _read(value, where)


def _read(value: object, where: str) -> Prompt:
    try:
        return Prompt.model_validate(value)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors()[:4])
        allowed = ", ".join(Prompt.model_fields)
        raise BadPrompts(f"{where} is no prompt: {wrong}. Fields: {allowed}; write it like {EXAMPLE}.") from error
