"""Generation, the same for every backend: greedy or sampled, rows of equal length together, edits at every step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadArguments, BadPrompts
from ..edits import Edit
from ..tokens import Tokens
from .interventions import finite_or_raise, restrict

if TYPE_CHECKING:
    from ..protocol import Model

Advance = Callable[[Tokens], Tensor]  # the newly added tokens of every row (all of them at first) -> logits [b, V]
Begin = Callable[[Tokens, Sequence[Edit]], Advance]


def generate(
    begin: Begin,
    tokens: Tokens,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    edits: Sequence[Edit],
    n_ctx: int,
    stop: Collection[int],
) -> tuple[tuple[int, ...], ...]:
    """New ids of every row, up to and without a stop token.

    `begin` starts a pass over rows of equal length. Sampling draws each row from its own seed, so that a row's text
    does not depend on the rows beside it.

    Raises:
        BadArguments: no token is asked for, or the temperature is negative.
        BadPrompts: a prompt and its continuation would not fit in the context.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise BadArguments(
            f"max_new_tokens={max_new_tokens} and temperature={temperature} were given; ask for at least 1 token "
            f"at a temperature of 0 (greedy) or more."
        )
    if tokens.width + max_new_tokens > n_ctx:
        raise BadPrompts(
            f"{tokens.width} prompt tokens and {max_new_tokens} new ones do not fit in the context of {n_ctx}; "
            f"ask for at most {max(n_ctx - tokens.width, 0)} new tokens or shorten the prompt."
        )
    found: dict[int, tuple[int, ...]] = {}
    by_length = sorted(range(tokens.n_rows), key=tokens.lengths.__getitem__)
    for _, group in groupby(by_length, key=tokens.lengths.__getitem__):
        rows = list(group)
        chosen = [kept for edit in edits if (kept := restrict(edit, rows)) is not None]
        pick = _picker(temperature, [seed + row for row in rows])
        advance = begin(tokens.rows(rows), chosen)
        found.update(zip(rows, _continue(advance, tokens.rows(rows), pick, max_new_tokens, stop), strict=True))
    return tuple(found[row] for row in range(tokens.n_rows))


def _continue(
    advance: Advance, tokens: Tokens, pick: Callable[[Tensor], list[int]], limit: int, stop: Collection[int]
) -> list[tuple[int, ...]]:
    """Continue rows of equal length until each has stopped."""
    new: list[list[int]] = [[] for _ in range(tokens.n_rows)]
    open_rows = set(range(tokens.n_rows))
    for _ in range(limit):
        logits = advance(tokens)
        finite_or_raise("the logits of the next token", logits)
        ids = pick(logits)
        open_rows -= {row for row in open_rows if ids[row] in stop}
        for row in open_rows:
            new[row].append(ids[row])
        if not open_rows:
            break
        tokens = Tokens(tuple((i,) for i in ids), tuple(("",) for _ in ids), False)
    return [tuple(row) for row in new]


def _picker(temperature: float, seeds: Sequence[int]) -> Callable[[Float[Tensor, "b V"]], list[int]]:
    """How the next id of each row is chosen from its logits."""
    if temperature == 0:
        return lambda logits: logits.argmax(-1).tolist()
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]

    def sample(logits: Float[Tensor, "b V"]) -> list[int]:
        probabilities = (logits.double() / temperature).softmax(-1).cpu()
        return [int(p.multinomial(1, generator=g)) for p, g in zip(probabilities, sources, strict=True)]

    return sample


def uncached(model: Model) -> Begin:
    """Passes that recompute the whole prompt at every step."""

    def begin(tokens: Tokens, edits: Sequence[Edit]) -> Advance:
        rows: list[tuple[int, ...]] = [()] * tokens.n_rows

        def advance(added: Tokens) -> Tensor:
            rows[:] = [old + new for old, new in zip(rows, added.ids, strict=True)]
            longer = replace(tokens, ids=tuple(rows), strings=tuple(("",) * len(row) for row in rows))
            logits = model.run(longer, edits=edits, logits_at=longer.last).logits
            assert logits is not None, "logits were asked for"
            return logits

        return advance

    return begin
