"""Random rows of a text with some positions of each: tokens to train on, or to test on."""

from __future__ import annotations

import random
from typing import NamedTuple

from ..model.protocol import Model
from ..model.tokens import Tokens
from ..prompts.corpus import Corpus, rows

MORE = 8  # times as many rows are looked through as are used, so that they come from many documents


class Sample(NamedTuple):
    """Rows of text and the positions of each that count; n of them in all."""

    tokens: Tokens
    positions: tuple[tuple[int, ...], ...]

    @property
    def clusters(self) -> list[str]:
        return [f"row {i}" for i, places in enumerate(self.positions) for _ in places]

    @property
    def following(self) -> list[int]:
        return [ids[p + 1] for ids, places in zip(self.tokens.ids, self.positions, strict=True) for p in places]

    @property
    def n(self) -> int:
        return sum(map(len, self.positions))


def sample_text(
    model: Model, text: Corpus, width: int, n_tokens: int, a_row: int, seed: int, bos: bool | None
) -> Sample:
    """At least `n_tokens` positions where the text has them, at most `a_row` of each row.

    The first position of a row, whose residual is an outlier in most models, and the last, which nothing follows, are
    left out.

    Raises:
        BadPrompts: the text has fewer tokens than one row.
    """
    width = min(width, model.info.n_ctx)
    a_row = min(a_row, width - 2)
    count = max(2, -(-n_tokens // a_row))
    found = rows(text, model, width=width, n_tokens=MORE * count * width, bos=bos)
    draw = random.Random(seed)
    chosen = sorted(draw.sample(range(found.n_rows), min(count, found.n_rows)))
    return Sample(found.rows(chosen), tuple(tuple(sorted(draw.sample(range(1, width - 1), a_row))) for _ in chosen))
