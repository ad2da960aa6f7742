"""Induction: a run of random tokens, and then its beginning again; the next token is the one that followed before.

Olsson et al. 2022, arXiv 2209.11895. Prompts are token ids, so this task works on models without a tokenizer. No token
occurs twice in the first copy. The default counterfactual is a repeated run of other tokens, with another answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import BadPrompts
from ...model.protocol import Model
from ..prompt_set import Prompt
from ..templates import END
from .task import Draw, Task, Words

# Name -> share of the second copy that is given; as text because templates are.
TEMPLATES = {"half": "0.5", "three quarters": "0.75", "all but one": "1.0", "a quarter": "0.25"}
CORRUPTIONS = {
    "resample": "a repeated run of other tokens: another answer",
    "break_match": "the first occurrence of the last token becomes another: nothing to match, no right answer",
    "other_last": "the last token becomes another of the run: another answer follows",
}
LONGEST = 20  # tokens in the first copy
SHORTEST = 4
SPECIAL = re.compile(r"<.*>|\[.*\]|.*[\ufffd\n\r].*|\s*", re.DOTALL)  # markers, broken characters, line ends, blanks


def material(model: Model) -> Words:
    return {"ids": [str(i) for i, s in enumerate(model.token_strings(range(model.info.d_vocab))) if _ordinary(s, i)]}


def _ordinary(string: str, i: int) -> bool:
    """No marker of the tokenizer's own; models without strings ('<7>') may use all their ids."""
    return string == f"<{i}>" or SPECIAL.fullmatch(string) is None


def draw(d: Draw) -> Iterator[list[Prompt]]:
    pool = [int(i) for i in d.words["ids"]]
    length = min(LONGEST, len(pool) // 2, d.model.info.n_ctx // 2)
    if length < SHORTEST:
        raise BadPrompts(
            f"induction needs at least {2 * SHORTEST} tokens in each part and a context of {2 * SHORTEST}; this model "
            f"offers {len(pool)} and {d.model.info.n_ctx}. Use a model with a larger vocabulary or context."
        )
    while True:
        drawn = d.rng.sample(pool, 2 * length)
        yield [_prompt(d, drawn[:length], drawn[length:])]


def _prompt(d: Draw, run: list[int], others: list[int]) -> Prompt:
    again = min(len(run) - 1, max(1, int(len(run) * float(d.text))))  # tokens of the second copy; run[again] is next
    corrupted, wrong = _contrast(d, run, others, again)
    return Prompt(
        clean=(*run, *run[:again]), corrupted=tuple(corrupted), answer=run[again], wrong=wrong,
        roles={"A1": again - 1, "B1": again, END: len(run) + again - 1}, template=d.template,
        cluster=f"{d.template}: {' '.join(map(str, run))}",
    )  # fmt: skip


def _contrast(d: Draw, run: list[int], others: list[int], again: int) -> tuple[list[int], int]:
    """The counterfactual's ids, and the wrong answer."""
    if d.corruption == "resample":
        return [*others, *others[:again]], others[again]
    if d.corruption == "break_match":
        return [*run[: again - 1], others[0], *run[again:], *run[:again]], others[again]
    last = d.rng.choice([i for i in range(len(run) - 1) if i != again - 1])
    return [*run, *run[: again - 1], run[last]], run[last + 1]


TASK = Task(
    "induction", "the token that followed before (repeated random tokens, as ids)", TEMPLATES, CORRUPTIONS, material,
    draw, least=2 * SHORTEST,
)  # fmt: skip
