"""Docstring: after two documented arguments of a Python function, the third argument's name comes next.

Heimersheim & Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer". The default
counterfactual swaps the third and fourth argument in the signature, so that the answer flips and no token is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...model.protocol import Model
from ..prompt_set import Prompt
from ..templates import fill, roles_of, single_tokens
from ..words import ACTIONS, DESCRIPTIONS, PARAMETERS
from .task import Draw, Task, Words

BODY = (
    'def {{action}}(self, {{a_def}}, {{b_def}}, {{c_def}}, {{d_def}}):\n    """{opening}\n\n'
    "    {mark} {{a_doc}}: {{first}}\n    {mark} {{b_doc}}: {{second}}\n    {mark}"
)
TEMPLATES = {
    "param": BODY.format(opening="Do what the name says.", mark=":param"),
    "at": BODY.format(opening="See the manual for more.", mark="@param"),
    "arg": BODY.format(opening="Work on the arguments given.", mark=":arg"),
    "argument": BODY.format(opening="A function with four arguments.", mark=":argument"),
    "backslash": BODY.format(opening="One step of the program.", mark="\\param"),
}
CORRUPTIONS = {
    "swap": "the third and fourth argument change places in the signature: the answer flips",
    "replace": "the third argument of the signature becomes another name: another answer",
}
SLOTS = {"A_DEF": "a_def", "B_DEF": "b_def", "C_DEF": "c_def", "D_DEF": "d_def", "A_DOC": "a_doc", "B_DOC": "b_doc"}


def material(model: Model) -> Words:
    return {"parameters": single_tokens(PARAMETERS, model)}


def draw(d: Draw) -> Iterator[list[Prompt]]:
    actions = single_tokens(ACTIONS, d.model)
    while True:
        names = d.rng.sample(list(d.words["parameters"]), 5)
        fillers = dict(zip(("first", "second"), d.rng.sample(DESCRIPTIONS, 2), strict=True))
        prompt = _prompt(d, names, {"action": d.rng.choice(actions), **fillers})
        if prompt is not None:
            yield [prompt]


def _prompt(d: Draw, names: Sequence[str], fillers: dict[str, str]) -> Prompt | None:
    a, b, c, last, other = names
    clean = fill(d.text, _words(a, b, c, last, fillers))
    roles = roles_of(clean, SLOTS, d.model)
    if roles is None:
        return None
    third, fourth = (last, c) if d.corruption == "swap" else (other, last)
    return Prompt(
        clean=clean.text, corrupted=fill(d.text, _words(a, b, third, fourth, fillers)).text, answer=f" {c}",
        wrong=f" {third}", roles=roles, template=d.template, cluster=f"{d.template}: {' '.join(sorted(names[:4]))}",
    )  # fmt: skip


def _words(a: str, b: str, c: str, last: str, fillers: dict[str, str]) -> dict[str, str]:
    return {"a_def": a, "b_def": b, "c_def": c, "d_def": last, "a_doc": a, "b_doc": b, **fillers}


TASK = Task("docstring", "the next argument of a Python docstring", TEMPLATES, CORRUPTIONS, material, draw, least=5)
