"""Greater-than: 'The war lasted from the year 1732 to the year 17' -> a later year.

Hanna et al. 2023, arXiv 2305.00586. How it is asked depends on the tokenizer. Where years are two tokens of two
digits, answer is every pair above the start's, wrong every pair up to it, as in the paper. Where each digit is a token,
the next token is the tens digit: answer is every digit above the start's tens digit, wrong every digit below, and that
digit itself, which would need the ones digit too, is in neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal

from ...errors import BadPrompts
from ...model.protocol import Model
from ..prompt_set import Prompt
from ..templates import fill, roles_of, single_tokens
from ..words import EVENTS
from .task import Draw, Task, Words, shuffled

TEMPLATES = {
    "lasted": "The {event} lasted from the year {century}{tens}{ones} to the year {century}",
    "began": "The {event} that began in {century}{tens}{ones} was over in {century}",
    "start": "The {event} started in the year {century}{tens}{ones} and it ended in the year {century}",
    "went on": "The {event} went on from {century}{tens}{ones} until {century}",
    "ran": "The records of the {event} run from {century}{tens}{ones} to {century}",
}
CORRUPTIONS = {
    "year_01": "the start year ends in 01, as in the paper: nearly every year is later",
    "other_year": "another start year of the same century",
}
CENTURIES = tuple(str(c) for c in range(11, 20))
PAIRS = tuple(f"{y:02d}" for y in range(100))
Style = Literal["pairs", "digits"]


def style_of(model: Model) -> Style:
    """How the tokenizer writes years.

    Raises:
        BadPrompts: neither two pairs of digits nor single digits; the tokens of a year are shown.
    """
    ids = model.token_ids
    single = all(len(ids(d)) == 1 for d in "0123456789")
    if single and ids(" 1732") == (*ids(" 17"), *ids("3"), *ids("2")):
        return "digits"
    if all(len(ids(pair)) == 1 for pair in PAIRS) and ids(" 1732") == (*ids(" 17"), *ids("32")):
        return "pairs"
    shown = " ".join(map(repr, model.token_strings(ids(" 1732"))))
    raise BadPrompts(
        f"greater_than cannot be asked with this tokenizer: it writes ' 1732' as {shown}, and the task needs years as "
        "two pairs of digits ('17' '32') or as single digits. Use another task or another model."
    )


def material(model: Model) -> Words:
    style_of(model)
    return {"events": single_tokens(EVENTS, model)}


def draw(d: Draw) -> Iterator[list[Prompt]]:
    style = style_of(d.model)
    starts = range(20, 80) if style == "digits" else range(2, 98)
    years = [(c, y) for c in CENTURIES for y in starts if _splits(d.model, c, f"{y:02d}")]
    for event, (century, year) in shuffled(d.rng, list(product(d.words["events"], years))):
        prompt = _prompt(d, style, event, century, year)
        if prompt is not None:
            yield [prompt]


def _splits(model: Model, century: str, pair: str) -> bool:
    """Whether the year's century stays apart from its last two digits."""
    return model.token_ids(f" {century}{pair}") == (*model.token_ids(f" {century}"), *_last_two(model, pair))


def _last_two(model: Model, pair: str) -> tuple[int, ...]:
    whole = model.token_ids(pair)
    return whole if len(whole) == 1 else tuple(i for digit in pair for i in model.token_ids(digit))


def _prompt(d: Draw, style: Style, event: str, century: str, year: int) -> Prompt | None:
    other = "01" if d.corruption == "year_01" else f"{_another(d, year):02d}"
    if not _splits(d.model, century, other):
        return None
    pair = f"{year:02d}"
    clean = fill(d.text, {"event": event, "century": century, "tens": pair[0], "ones": pair[1]})
    corrupted = fill(d.text, {"event": event, "century": century, "tens": other[0], "ones": other[1]})
    slots = {"EVENT": "event", "ONES": "ones"} | ({"TENS": "tens"} if style == "digits" else {})
    roles = roles_of(clean, slots, d.model)
    if roles is None:
        return None
    answer, wrong = _sets(style, year)
    return Prompt(
        clean=clean.text, corrupted=corrupted.text, answer=answer, wrong=wrong, roles=roles, template=d.template,
        cluster=f"{d.template}: {event}",
    )  # fmt: skip


def _another(d: Draw, year: int) -> int:
    """A start year of another decade, so that a tens digit differs too."""
    return d.rng.choice([y for y in range(20, 80) if y // 10 != year // 10])


def _sets(style: Style, year: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Right and wrong next tokens."""
    if style == "pairs":
        return PAIRS[year + 1 :], PAIRS[: year + 1]
    digits, tens = "0123456789", year // 10
    return tuple(digits[tens + 1 :]), tuple(digits[:tens])


TASK = Task("greater_than", "a later year (sets of number tokens)", TEMPLATES, CORRUPTIONS, material, draw)
