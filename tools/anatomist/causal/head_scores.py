"""Attention scores of every head on repeated random tokens, and the copying score of every head's weights.

L layers, H heads. Random tokens have no content of their own: what a head does on them is its kind, not the text's.
Source: Olsson et al., arXiv 2209.11895 (repeated random tokens); Elhage et al. 2021 (copying: the sum of the OV
circuit's eigenvalues over the sum of their magnitudes).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments, Unsupported
from ..model.batches import batches
from ..model.protocol import Model
from ..model.sites import Site, check_site
from ..model.tokens import Tokens
from ..prompts.tasks.induction import SHORTEST, material
from .attention_scores import TARGETS, ScoreName, on_targets, targets, uniform
from .circuits import embedding_gram, ov_core
from .low_rank import eigenvalues, positive_share

if TYPE_CHECKING:
    from numpy import ndarray

Ids = tuple[tuple[int, ...], ...]
MOST_CACHED = 32
_scored: dict[tuple[str, int, Ids], HeadScores] = {}  # of random twins; they are the same every time


class HeadScores(NamedTuple):
    """Scores of one model."""

    attention: dict[ScoreName, ndarray]  # [seeds, L, H]
    copying: ndarray | None  # [L, H]; None where the weights of this architecture are not known
    even: dict[ScoreName, float]  # of attention spread evenly over what a query sees
    row_sums: float  # largest distance from 1 of a query's summed weights


def repeated_tokens(model: Model, seeds: Sequence[int], rows: int, length: int, bos: bool | None) -> list[Tokens]:
    """Per seed, rows of `length` different random tokens, twice; special tokens are left out.

    Raises:
        BadArguments: the vocabulary or the context is too small for four tokens twice.
        Unsupported: the model sees what comes after a token too.
    """
    if not model.info.causal:
        raise Unsupported(
            f"{model.info.name} sees the whole row at once; these scores and their baseline are of heads that "
            "look back. Look at it with attention_patterns, or use a causal model."
        )
    pool = [int(i) for i in material(model)["ids"]]
    length = min(length, len(pool), (model.info.n_ctx - 1) // 2)
    if length < SHORTEST:
        raise BadArguments(
            f"a run of {length} tokens, twice, is all that {model.info.name} has room for (context {model.info.n_ctx}, "
            f"{len(pool)} ordinary tokens); {SHORTEST} are needed. Use a model with a larger context."
        )
    drawn = [[random.Random(f"{seed} {row}").sample(pool, length) for row in range(rows)] for seed in seeds]
    return [model.tokenize([run + run for run in runs], bos=bos) for runs in drawn]


def score_heads(
    model: Model, sets: Sequence[Tokens], budget_bytes: int, progress: Callable[[int], None] = lambda rows: None,
    *, copying: bool = True,
) -> HeadScores:  # fmt: skip
    """Every score of every head, per set of tokens.

    Raises:
        BadSite: this backend cannot give patterns.
        WouldNotFit: the patterns of one row are over the budget.
    """
    import numpy as np

    info = model.info
    check_site(Site("pattern", 0), info.shape)
    found: dict[ScoreName, ndarray] = {
        name: np.zeros((len(sets), info.n_layers, info.n_heads)) for name in TARGETS
    }
    even: dict[ScoreName, float] = {}
    worst = 0.0
    for number, tokens in enumerate(sets):
        worst = max(worst, _add(found, even, number, model, tokens, budget_bytes, progress))
    return HeadScores(found, copying_scores(model) if copying else None, even, worst)


def _add(
    found: dict[ScoreName, ndarray], even: dict[ScoreName, float], number: int, model: Model, tokens: Tokens,
    budget_bytes: int, progress: Callable[[int], None],
) -> float:  # fmt: skip
    """Means over the rows of one set; returns how far a query's weights are from summing to 1."""
    sites = [Site("pattern", layer) for layer in range(model.info.n_layers)]
    worst = 0.0
    for rows in batches(model.info, tokens, sites, budget_bytes):
        batch = tokens.rows(rows)
        reads = model.run(batch, read=sites).reads
        first = reads[sites[0]].float()
        wanted = targets(batch, first)
        for name, keys in wanted.items():  # every row repeats with the same period: any of them gives it
            even[name] = float(on_targets(uniform(batch, first), keys)[0][0, 0])
        for layer, site in enumerate(sites):
            pattern = reads[site].float()
            worst = max(worst, float((pattern.sum(-1) - 1).abs().max()))
            for name, keys in wanted.items():
                found[name][number, layer] += on_targets(pattern, keys)[0].sum(0).cpu().numpy() / tokens.n_rows
        progress(len(rows))
    return worst


def copying_scores(model: Model) -> ndarray:
    """Per head the share of its OV circuit's eigenvalues that is positive, -1 to 1: [L, H]."""
    import numpy as np

    info, norms = model.info, [model.weights.attention_norm(layer) for layer in range(model.info.n_layers)]
    different = {(norm.kind, norm.eps): norm for norm in norms}
    grams = {kind: embedding_gram(model, norm) for kind, norm in different.items()}
    out = np.zeros((info.n_layers, info.n_heads))
    for layer, norm in enumerate(norms):
        gram = grams[norm.kind, norm.eps]
        out[layer] = [positive_share(eigenvalues(ov_core(model, layer, h, gram))) for h in range(info.n_heads)]
    return out


def twin_scores(
    model: Model, seed: int, make: Callable[[int], Model], sets: Sequence[Tokens], budget_bytes: int, *, copying: bool
) -> HeadScores:
    """The same scores of an untrained model of the same configuration; kept for the next call on one like it."""
    info = model.info
    what = f"{info.configuration} {info.dtype} {info.backend} {copying}"
    key = (what, seed, tuple(row for tokens in sets for row in tokens.ids))
    if info.configuration is None or key not in _scored:
        twin = make(seed)
        try:
            found = score_heads(twin, sets, budget_bytes, copying=copying)
        finally:
            twin.close()
        while len(_scored) >= MOST_CACHED:
            _scored.pop(next(iter(_scored)))
        _scored[key] = found
    return _scored[key]
