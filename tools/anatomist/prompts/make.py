"""Generated prompt sets: a discovery part, and a held-out part with other words and one template more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from random import Random
from typing import Literal

from ..errors import BadArguments, BadPrompts, UnknownName
from ..model.protocol import Model
from .prompt_set import Prompt, PromptSet
from .tasks import capitals, docstring, gender_bias, greater_than, induction, ioi
from .tasks.task import Draw, Task, Words

TaskName = Literal["ioi", "greater_than", "induction", "gender_bias", "capitals", "docstring"]
TASKS: Mapping[str, Task] = {
    module.TASK.name: module.TASK for module in (ioi, greater_than, induction, gender_bias, capitals, docstring)
}
MOST = 10_000  # prompts in one part
BARREN = 1_000  # repeats in a row after which a template is taken to have no new prompt left


def make_prompts(
    task: str,
    n: int,
    seed: int,
    model: Model,
    *,
    corruption: str | None = None,
    held_out: int | None = None,
) -> tuple[PromptSet, PromptSet]:
    """Make `n` discovery prompts and `held_out` (as many, unless told) held-out prompts of a task for a model.

    Which words belong to which part depends on the tokenizer, not on the seed: no seed's held-out prompts use a word of
    any seed's discovery prompts. The held-out part also has the one template that discovery never uses. Prompts have
    different clean texts, and are spread evenly over templates. The same arguments give the same prompts.

    Raises:
        UnknownName: no such task or corruption.
        BadArguments: n is not between 1 and 10,000, or more than there are; the text says how many there are.
        BadPrompts: this tokenizer cannot express the task.
    """
    if task not in TASKS:
        raise UnknownName.of("task", task, TASKS)
    chosen = TASKS[task]
    how = corruption or next(iter(chosen.corruptions))
    if how not in chosen.corruptions:
        listed = "; ".join(f"{name}: {what}" for name, what in chosen.corruptions.items())
        raise UnknownName.of(f"corruption of {task}", how, chosen.corruptions, f"They mean: {listed}.")
    words = _divided(chosen, model)
    sizes = (n, n if held_out is None else held_out)
    parts = [_part(chosen, part, size, seed, how, words[part], model) for part, size in zip(words, sizes, strict=True)]
    handle = f"{task}-{_fingerprint(parts)}"
    discovery, kept_back = (
        PromptSet(handle=handle, task=task, seed=seed, split=split, prompts=tuple(prompts))
        for split, prompts in zip(words, parts, strict=True)
    )
    return discovery, kept_back


Split = Literal["discovery", "held_out"]


def _divided(task: Task, model: Model) -> dict[Split, Words]:
    """The words of each part: every kind in an order that depends on the words alone, dealt out in turn."""
    try:
        material = task.material(model)
    except BadPrompts as error:
        raise BadPrompts(f"{task.name} cannot be made for this model: {error}{_instead(task)}") from None
    for kind, words in material.items():
        if len(words) < 2 * task.least:
            raise BadPrompts(
                f"{task.name} cannot be made for this model: {len(words)} {kind} are single tokens of its tokenizer, "
                f"and {2 * task.least} are needed for two parts that share none.{_instead(task)}"
            )
    ordered = {kind: sorted(words, key=_scrambled) for kind, words in material.items()}
    return {
        "discovery": {kind: words[0::2] for kind, words in ordered.items()},
        "held_out": {kind: words[1::2] for kind, words in ordered.items()},
    }


def _instead(task: Task) -> str:
    return "" if task.name == "induction" else " The task 'induction' needs no words; or choose another model."


def _scrambled(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


def _part(
    task: Task, split: Split, n: int, seed: int, corruption: str, words: Words, model: Model
) -> list[Prompt]:
    if not 1 <= n <= MOST:
        raise BadArguments(f"{n} prompts were asked for; n is 1 to {MOST} in each part.")
    names = list(task.templates)
    streams = [
        task.draw(Draw(name, task.templates[name], words, corruption, model, Random(f"{seed}/{split}/{name}")))
        for name in (names if split == "held_out" else names[:-1])
    ]
    prompts = _in_turn(streams, n)
    if len(prompts) < n:
        raise BadArguments(
            f"{n} {split.replace('_', '-')} prompts of {task.name} were asked for; this tokenizer's words and the "
            f"templates make at most {len(prompts)} different ones. Ask for n={len(prompts)} or fewer."
        )
    return prompts


def _in_turn(streams: list[Iterator[list[Prompt]]], n: int) -> list[Prompt]:
    """One group from each stream in turn until there are n prompts with different clean texts, or no more."""
    found: dict[object, Prompt] = {}
    alive = list(streams)
    while alive and len(found) < n:
        for stream in list(alive):
            group = _next_new(stream, found)
            if group is None:
                alive.remove(stream)
            found.update({p.clean: p for p in group or ()})
    return list(found.values())[:n]


def _next_new(stream: Iterator[list[Prompt]], found: Mapping[object, Prompt]) -> list[Prompt] | None:
    for _ in range(BARREN):
        group = next(stream, None)
        if group is None:
            return None
        fresh = [p for p in group if p.clean not in found]
        if fresh:
            return fresh
    return None


def _fingerprint(parts: list[list[Prompt]]) -> str:
    text = "\n".join(p.model_dump_json() for part in parts for p in part)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
