"""Prompts and sets of prompts, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ..errors import BadPrompts
from ..result import Frozen

Text = str | tuple[int, ...]  # text, or token ids for models without a tokenizer
Answers = str | int | tuple[str | int, ...]  # one exact token (leading space included) or a set of them


class Prompt(Frozen):
    """One prompt, its contrast, and what the right and the wrong continuation are."""

    clean: Text = Field(description="Prompt text, or token ids.")
    corrupted: Text | None = Field(default=None, description="Counterfactual of equal token length.")
    answer: Answers | None = Field(default=None, description="Right next token, exact with leading space, or a set.")
    wrong: Answers | None = Field(default=None, description="Contrast token or set.")
    roles: Mapping[str, int] = Field(default_factory=dict, description="Role to token position, BOS not counted.")
    template: str = Field(default="inline", description="Template it came from.")
    cluster: str = Field(default="", description="What its names share; empty = itself.")


class PromptSet(Frozen):
    """Prompts made together, in one split."""

    handle: str
    task: str
    seed: int | None = None
    split: Literal["discovery", "held_out", "inline"]
    prompts: tuple[Prompt, ...]


def kept_back(discovery: PromptSet, held_out: PromptSet) -> PromptSet:
    """The held-out prompts of templates that discovery never used.

    Raises:
        BadPrompts: there are none.
    """
    used = {p.template for p in discovery.prompts}
    prompts = tuple(p for p in held_out.prompts if p.template not in used)
    if not prompts:
        raise BadPrompts(f"{held_out.handle!r} keeps no template back: all of {', '.join(sorted(used))} were used.")
    return held_out.model_copy(update={"prompts": prompts})
