"""Tokenizers for tests of prompt making: each splits text by one pattern and numbers the pieces as they come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace

from anatomist.errors import BadPrompts
from anatomist.model.tokens import Tokens

PAIRS = r" ?\d\d| ?\d| ?[^\W\d]+|\n|."  # '1732' is '17', '32'
TRIPLES = r" ?\d{1,3}| ?[^\W\d]+|\n|."  # '1732' is '173', '2'


class Splitter:
    """The tokenizing half of a Model: enough to make and encode prompts, nothing to run."""

    def __init__(self, pattern: str, *, bos: bool = False) -> None:
        self.pattern = re.compile(pattern)
        self.numbers: dict[str, int] = {"<s>": 0}
        self.bos = bos
        self.info = SimpleNamespace(d_vocab=100_000, n_ctx=512, tokenizer="Splitter")

    def token_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.numbers.setdefault(piece, len(self.numbers)) for piece in self.pattern.findall(text))

    def token_strings(self, ids: Sequence[int]) -> tuple[str, ...]:
        strings = {number: piece for piece, number in self.numbers.items()}
        return tuple(strings[i] for i in ids)

    def tokenize(self, prompts: Sequence[str | Sequence[int]], *, bos: bool | None = None) -> Tokens:
        starts = self.bos if bos is None else bos
        rows = [self.token_ids(p) if isinstance(p, str) else tuple(p) for p in prompts]
        for i, row in enumerate(rows):
            if not row:
                raise BadPrompts(f"prompt {i} is empty; give at least one token.")
        ids = tuple((0, *row) if starts else row for row in rows)
        return Tokens(ids, tuple(self.token_strings(row) for row in ids), starts)
