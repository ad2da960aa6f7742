"""Capitals: 'The capital of France is' -> ' Paris'. Recall of a fact (Meng et al. 2022, arXiv 2202.05262, use such).

The counterfactual names another country of as many tokens, whose capital is the wrong answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...model.protocol import Model
from ..prompt_set import Prompt
from ..templates import fill, roles_of, same_length
from ..words import CAPITALS
from .task import Draw, Task, Words, shuffled

TEMPLATES = {
    "plain": "The capital of {country} is",
    "city": "The capital city of {country} is called",
    "question": "Question: What is the capital of {country}? Answer:",
    "visit": "When you visit the capital of {country}, you are in",
    "government": "The government of {country} meets in the city of",
    "map": "On a map of {country}, a star marks the capital city,",
}
CORRUPTIONS = {"other_country": "another country: another answer"}


def material(model: Model) -> Words:
    known = [country for country, capital in CAPITALS.items() if len(model.token_ids(f" {capital}")) == 1]
    return {"countries": known}


def draw(d: Draw) -> Iterator[list[Prompt]]:
    for country in shuffled(d.rng, d.words["countries"]):
        others = [c for c in d.words["countries"] if c != country and same_length(f" {c}", f" {country}", d.model)]
        prompt = _prompt(d, country, d.rng.choice(others)) if others else None
        if prompt is not None:
            yield [prompt]


def _prompt(d: Draw, country: str, other: str) -> Prompt | None:
    clean = fill(d.text, {"country": country})
    roles = roles_of(clean, {"COUNTRY": "country"}, d.model)
    if roles is None:
        return None
    return Prompt(
        clean=clean.text, corrupted=fill(d.text, {"country": other}).text, answer=f" {CAPITALS[country]}",
        wrong=f" {CAPITALS[other]}", roles=roles, template=d.template, cluster=f"{d.template}: {country}",
    )  # fmt: skip


TASK = Task("capitals", "the capital of a country", TEMPLATES, CORRUPTIONS, material, draw)
