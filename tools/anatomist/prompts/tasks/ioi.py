"""Indirect object identification: 'When John and Mary went to the shops, John gave the bag to' -> ' Mary'.

Wang et al. 2023, arXiv 2211.00593. Half of the prompts name the indirect object first (ABBA), half second (BABA), with
the same names. The default counterfactual writes the indirect object where the second subject stood, so that the answer
flips and every token but one stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from ...model.protocol import Model
from ..prompt_set import Prompt
from ..templates import fill, roles_of, single_tokens
from ..words import NAMES, OBJECTS, PLACES
from .task import Draw, Task, Words, shuffled

TEMPLATES = {
    "went": "When {first} and {second} went to the {place}, {subject} gave the {object} to",
    "were": "While {first} and {second} were at the {place}, {subject} gave the {object} to",
    "day": "The day {first} and {second} went to the {place}, {subject} sent the {object} to",
    "been": "After {first} and {second} had been to the {place}, {subject} gave the {object} to",
    "met": "One day {first} and {second} met at the {place}, and {subject} showed the {object} to",
}
CORRUPTIONS = {
    "s2_to_io": "the second subject becomes the indirect object's name: the answer flips",
    "other_names": "both names are replaced by two others, same order: another answer",
    "abc": "the three places hold three other names: no right answer",
}


def material(model: Model) -> Words:
    return {"names": single_tokens(NAMES, model)}


def draw(d: Draw) -> Iterator[list[Prompt]]:
    places, objects = single_tokens(PLACES, d.model), single_tokens(OBJECTS, d.model)
    for io, s in shuffled(d.rng, list(permutations(d.words["names"], 2))):
        fillers = {"place": d.rng.choice(places), "object": d.rng.choice(objects)}
        others = d.rng.sample([n for n in d.words["names"] if n not in (io, s)], 3)
        both = (_prompt(d, io, s, fillers, others, order) for order in ("ABBA", "BABA"))
        yield [p for p in both if p is not None]


def _prompt(d: Draw, io: str, s: str, fillers: dict[str, str], others: list[str], order: str) -> Prompt | None:
    def names(io: str, s: str, subject: str) -> dict[str, str]:
        first, second = (io, s) if order == "ABBA" else (s, io)
        return {"first": first, "second": second, "subject": subject, **fillers}

    corrupted = {
        "s2_to_io": names(io, s, io),
        "other_names": names(others[0], others[1], others[1]),
        "abc": names(*others),
    }[d.corruption]
    slots = {"IO": "first", "S1": "second"} if order == "ABBA" else {"S1": "first", "IO": "second"}
    clean = fill(d.text, names(io, s, s))
    roles = roles_of(clean, {**slots, "S2": "subject"}, d.model)
    if roles is None:
        return None
    return Prompt(
        clean=clean.text, corrupted=fill(d.text, corrupted).text, answer=f" {io}", wrong=f" {s}", roles=roles,
        template=f"{d.template}/{order}", cluster=f"{d.template}: {', '.join(sorted((io, s)))}",
    )  # fmt: skip


TASK = Task(
    "ioi", "which of two names receives the object (names, ABBA and BABA)", TEMPLATES, CORRUPTIONS, material, draw,
    least=5,
)  # fmt: skip
