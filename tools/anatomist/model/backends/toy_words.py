"""The words of a toy's language, one token each: a BOS token where there is one, and words that are answers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import BadPrompts
from ..tokens import Tokens

SHOWN = 12  # words listed in an error


@dataclass(frozen=True)
class Words:
    """Token ids and their strings."""

    strings: tuple[str, ...]
    bos: int | None = None  # put first where the caller does not say otherwise
    readable: int | None = None  # ids from here on are answers only: the model has no embedding for them

    @classmethod
    def numbered(cls, n: int) -> Words:
        """'t0', 't1', ... for models whose tokens mean nothing."""
        return cls(tuple(f"t{i}" for i in range(n)))

    @property
    def n_readable(self) -> int:
        return len(self.strings) if self.readable is None else self.readable

    def tokenize(self, prompts: Sequence[str | Sequence[int]], n_ctx: int, bos: bool | None) -> Tokens:
        """See `Model.tokenize`.

        Raises:
            BadPrompts: a prompt that is empty or too long, a word or an id that cannot stand in one, BOS without one.
        """
        if bos and self.bos is None:
            raise BadPrompts("bos=True was asked for, but this toy model has no BOS token; leave bos out.")
        rows = tuple(self._row(i, prompt, n_ctx, bos) for i, prompt in enumerate(prompts))
        starts = bool(rows) and self.bos is not None and all(row[0] == self.bos for row in rows)
        return Tokens(rows, tuple(self.named(row) for row in rows), starts)

    def _row(self, row: int, prompt: str | Sequence[int], n_ctx: int, bos: bool | None) -> tuple[int, ...]:
        text = isinstance(prompt, str)
        ids = self.ids(prompt) if isinstance(prompt, str) else tuple(int(i) for i in prompt)
        # As a tokenizer does: text is given its BOS token, ready ids are left alone unless it is asked for.
        wanted = self.bos is not None and (text if bos is None else bos)
        if wanted and ids[:1] != (self.bos,):
            assert self.bos is not None
            ids = (self.bos, *ids)
        if not 0 < len(ids) <= n_ctx:
            raise BadPrompts(f"prompt {row} has {len(ids)} tokens; this model takes 1 to {n_ctx}.")
        for i in ids:
            if not 0 <= i < self.n_readable:
                raise BadPrompts(
                    f"prompt {row} has token id {i}; ids are 0 to {self.n_readable - 1} for this model{self._only()}."
                )
        return ids

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids of the words of a text, without BOS.

        Raises:
            BadPrompts: a word that is no token.
        """
        known = {word: i for i, word in enumerate(self.strings)}
        for word in text.split():
            if word not in known:
                raise BadPrompts(f"{word!r} is not a token; {self._listed()}.")
        return tuple(known[word] for word in text.split())

    def named(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The word of every id."""
        return tuple(self.strings[i] for i in ids)

    def _listed(self) -> str:
        if self.strings == Words.numbered(len(self.strings)).strings:
            return f"a toy's tokens are 't0' to 't{len(self.strings) - 1}'"
        more = f" and {len(self.strings) - SHOWN} more" if len(self.strings) > SHOWN else ""
        return f"this toy's tokens are {', '.join(map(repr, self.strings[:SHOWN]))}{more}"

    def _only(self) -> str:
        if self.readable is None:
            return ""
        return f" in a prompt ({', '.join(map(repr, self.strings[self.readable :][:SHOWN]))} are answers only)"
