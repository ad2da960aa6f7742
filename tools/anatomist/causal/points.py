"""Points of a model's spaces: token vectors of its tables, or activations at places, each with a readable label.

n points, D model width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..measures.metrics import widened
from ..model.batches import batches
from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import PositionSpec, Tokens
from ..prompts.columns import resolve
from ..prompts.corpus import Corpus
from ..prompts.encoding import encode
from ..prompts.prompt_set import PromptSet
from ..prompts.windows import windows
from .vocabulary import token_labels

if TYPE_CHECKING:
    from numpy import ndarray

WINDOW = 64  # tokens of running text the model sees at a time
EACH = 16  # points from one window


class Chosen(NamedTuple):
    """Tokens whose activations are the points: one (row, position) a point."""

    tokens: Tokens
    places: tuple[tuple[int, int], ...]
    labels: tuple[str, ...]
    source: str  # in words


def table_points(model: Model, which: str, ids: Sequence[int]) -> ndarray:
    """Rows of the embedding or columns of the unembedding, [n, D]."""
    vectors = model.weights.embed()[list(ids)] if which == "embedding" else model.weights.unembed(ids).T
    return widened(vectors).double().cpu().numpy()


def sampled_ids(model: Model, n: int, seed: int) -> tuple[int, ...]:
    """Tokens of the vocabulary at random."""
    every = range(model.info.d_vocab)
    return tuple(sorted(random.Random(seed).sample(every, min(n, len(every)))))


def lone_tokens(model: Model, ids: Sequence[int], bos: bool | None) -> Chosen:
    """Every token as a prompt of its own."""
    tokens = model.tokenize([[i] for i in ids], bos=bos)
    places = tuple(enumerate(tokens.last))
    return Chosen(tokens, places, token_labels(model, ids), f"{len(ids)} tokens, each alone")


def of_prompts(model: Model, prompts: PromptSet, position: PositionSpec, bos: bool | None) -> Chosen:
    """One position of every prompt.

    Raises:
        BadPosition: a position that the prompts do not have.
    """
    encoded = encode(prompts, model, bos=bos)
    (column,) = resolve(encoded.clean, encoded.roles, [position])
    strings = [encoded.clean.strings[row][p] for row, p in enumerate(column.positions)]
    labels = strings if len(set(strings)) == len(strings) else [f"{row}:{s}" for row, s in enumerate(strings)]
    where = f"{encoded.n} prompts at {column.label}"
    return Chosen(encoded.clean, tuple(enumerate(column.positions)), tuple(labels), where)


def of_text(model: Model, corpus: Corpus, n: int, seed: int, bos: bool | None) -> Chosen:
    """Random positions of windows of running text.

    Raises:
        BadPrompts: no text.
    """
    drawn, rows = random.Random(seed), -(-n // EACH)
    width = min(WINDOW, model.info.n_ctx)
    found = list(windows(corpus, model, width=width, n_tokens=rows * width, seed=seed, bos=bos))
    tokens = model.tokenize([w.ids for w in found], bos=bos)
    every = [(row, p) for row, length in enumerate(tokens.lengths) for p in range(length)]
    places = tuple(sorted(drawn.sample(every, min(n, len(every)))))
    labels = tuple(tokens.label(row, p) for row, p in places)
    return Chosen(tokens, places, labels, f"{len(places)} positions of text ({corpus.name}) at random")


def read_points(
    model: Model, chosen: Chosen, sites: Sequence[Site], budget_bytes: int, told: Callable[[int], None]
) -> Mapping[Site, ndarray]:
    """[n, D] of every place; `told` hears how many rows were read.

    Raises:
        WouldNotFit: one row's places are over the budget.
    """
    import numpy as np

    of_row: dict[int, list[tuple[int, int]]] = {}
    for i, (row, position) in enumerate(chosen.places):
        of_row.setdefault(row, []).append((i, position))
    out = {site: np.zeros((len(chosen.places), model.info.d_model)) for site in sites}
    done = 0
    for rows in batches(model.info, chosen.tokens, sites, budget_bytes):
        reads = model.run(chosen.tokens.rows(rows), read=sites).reads
        for site in sites:
            x = widened(reads[site])
            for r, row in enumerate(rows):
                for i, position in of_row.get(row, ()):
                    out[site][i] = x[r, position].double().cpu().numpy()
        done += len(rows)
        told(done)
    return out
