"""A template is text with {slots}; filling it also says where the slots are, in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import NamedTuple

from ..model.protocol import Model

END = "END"  # the role of the last token, where the model answers


class Filled(NamedTuple):
    """A filled template and where each slot's last character stands."""

    text: str
    ends: Mapping[str, int]  # slot -> number of characters up to its end; of a repeated slot the last one


def fill(template: str, words: Mapping[str, str]) -> Filled:
    """Put words into the slots."""
    text, ends = "", {}
    for literal, slot, _, _ in Formatter().parse(template):
        text += literal
        if slot is not None:
            text += words[slot]
            ends[slot] = len(text)
    return Filled(text, ends)


def roles_of(filled: Filled, slots: Mapping[str, str], model: Model) -> dict[str, int] | None:
    """The last token of each slot by role, and END; `slots` maps role to slot. No BOS is counted.

    None where a slot does not end at the end of a token: the tokenizer merges it with what follows.
    """
    whole = model.token_ids(filled.text)
    roles: dict[str, int] = {}
    for role, slot in slots.items():
        start = model.token_ids(filled.text[: filled.ends[slot]])
        if whole[: len(start)] != start:
            return None
        roles[role] = len(start) - 1
    return {**roles, END: len(whole) - 1}


def single_tokens(words: Sequence[str], model: Model, *, before: str = " ") -> list[str]:
    """The words that are one token after a space, in their order and without repeats."""
    return [word for word in dict.fromkeys(words) if len(model.token_ids(before + word)) == 1]


def same_length(a: str, b: str, model: Model) -> bool:
    """Whether two texts have as many tokens."""
    return len(model.token_ids(a)) == len(model.token_ids(b))
