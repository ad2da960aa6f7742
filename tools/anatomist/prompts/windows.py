"""Running text as windows that keep to one document each, so that an example can say where it is from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import BadArguments, BadPrompts
from ..model.protocol import Model
from .corpus import Corpus

SHORTEST = 4  # tokens; shorter rests of a document are left out


class Window(NamedTuple):
    """Consecutive tokens of one document, without BOS."""

    document: int
    start: int  # index in the document of the first token
    ids: tuple[int, ...]


def windows(
    corpus: Corpus, model: Model, *, width: int, n_tokens: int, seed: int, bos: bool | None = None
) -> Iterator[Window]:
    """Windows of `width` tokens (a BOS token counted) until `n_tokens` are reached or the text ends.

    Documents come in random order, each with as many windows, drawn at random, as its share of the tokens wanted is;
    so that a small sample is one of all documents and not of the first. Only one document is held at a time.

    Raises:
        BadArguments: windows too short for a token after BOS.
        BadPrompts: no document has so many tokens as the shortest window.
    """
    taken = width - (model.info.adds_bos if bos is None else bos)
    if taken < SHORTEST:
        raise BadArguments(f"windows of {width} tokens; give at least {SHORTEST + 1}.")
    order = random.Random(seed).sample(range(len(corpus.documents)), len(corpus.documents))
    share = max(1, -(-n_tokens // (taken * len(order))))
    given, turn = 0, 0
    while given < n_tokens:
        before = given
        for document in order:
            for window in _drawn(corpus, model, document, taken, seed)[turn * share : (turn + 1) * share]:
                yield window
                given += len(window.ids)
                if given >= n_tokens:
                    return
        turn += 1
        if given == before:
            break
    if given == 0:
        raise BadPrompts(f"no document of the text {corpus.name!r} has {SHORTEST} tokens; give longer texts.")


def _drawn(corpus: Corpus, model: Model, document: int, taken: int, seed: int) -> list[Window]:
    """All windows of a document in random order, the same at every call."""
    ids = model.token_ids(corpus.documents[document])
    cut = [Window(document, i, tuple(ids[i : i + taken])) for i in range(0, len(ids), taken)]
    return random.Random(f"{seed} {document}").sample(long := [w for w in cut if len(w.ids) >= SHORTEST], len(long))
