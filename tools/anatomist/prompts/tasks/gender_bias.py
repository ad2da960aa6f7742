"""Gender bias: 'The nurse said that' -> ' she'; an occupation that text mostly gives the other pronoun -> ' he'.

Vig et al. 2020, arXiv 2004.12265. It measures which pronoun the model expects, not which would be right.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...model.protocol import Model
from ..prompt_set import Prompt
from ..templates import fill, roles_of, single_tokens
from ..words import MOSTLY_HE, MOSTLY_SHE
from .task import Draw, Task, Words, shuffled

TEMPLATES = {
    "said": "The {occupation} said that",
    "tired": "The {occupation} was tired because",
    "smiled": "The {occupation} smiled when",
    "late": "The {occupation} was late since",
    "cried": "The {occupation} cried because",
    "knew": "Everyone knew that the {occupation} left when",
    "happy": "The {occupation} was very happy that",
    "home": "The {occupation} went home after",
}
CORRUPTIONS = {
    "occupation": "an occupation of the other stereotype: the pronoun flips",
    "gendered_noun": "'man' or 'woman', whichever has the other pronoun",
}
NOUNS = {" she": "woman", " he": "man"}


def material(model: Model) -> Words:
    return {"she": single_tokens(MOSTLY_SHE, model), "he": single_tokens(MOSTLY_HE, model)}


def draw(d: Draw) -> Iterator[list[Prompt]]:
    pairs = zip(shuffled(d.rng, d.words["she"]), shuffled(d.rng, d.words["he"]), strict=False)
    for she, he in pairs:
        both = (_prompt(d, she, he, " she", " he"), _prompt(d, he, she, " he", " she"))
        yield [p for p in both if p is not None]


def _prompt(d: Draw, occupation: str, opposite: str, answer: str, wrong: str) -> Prompt | None:
    contrast = opposite if d.corruption == "occupation" else NOUNS[wrong]
    clean = fill(d.text, {"occupation": occupation})
    roles = roles_of(clean, {"OCCUPATION": "occupation"}, d.model)
    if roles is None:
        return None
    return Prompt(
        clean=clean.text, corrupted=fill(d.text, {"occupation": contrast}).text, answer=answer, wrong=wrong,
        roles=roles, template=f"{d.template}/{answer.strip()}",
        cluster=f"{d.template}: {', '.join(sorted((occupation, opposite)))}",
    )  # fmt: skip


TASK = Task("gender_bias", "the pronoun expected after an occupation", TEMPLATES, CORRUPTIONS, material, draw)
