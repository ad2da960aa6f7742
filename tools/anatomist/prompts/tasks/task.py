"""What a task is: words that the two parts must not share, templates, and a way to draw prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from ...model.protocol import Model
from ..prompt_set import Prompt

Words = Mapping[str, Sequence[str]]  # kind of word -> the words of one part


@dataclass(frozen=True)
class Draw:
    """What prompts of one template are drawn with."""

    template: str  # its name
    text: str  # the template itself
    words: Words
    corruption: str
    model: Model
    rng: Random


@dataclass(frozen=True)
class Task:
    """A generated task.

    `material` gives the words the tokenizer can express; each kind is divided between discovery and held-out. `draw`
    yields groups of prompts with different clean texts in random order, one cluster a group, and ends when there are no
    more. The last template is kept back for the held-out part.
    """

    name: str
    about: str
    templates: Mapping[str, str]
    corruptions: Mapping[str, str]  # name -> what is replaced; the first is the default
    material: Callable[[Model], Words]
    draw: Callable[[Draw], Iterator[list[Prompt]]]
    least: int = 4  # words of each kind that a part needs


def shuffled(rng: Random, items: Sequence) -> list:
    """The items in random order."""
    return rng.sample(list(items), len(items))
