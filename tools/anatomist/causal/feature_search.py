"""Which units tell two sets of texts apart: every feature tested, the best judged on texts that chose nothing.

n examples (texts), F units (features, coordinates, words). A unit's score is the AUROC of its value: the chance that
a text with the concept has the larger value of two. Tested on one part by Mann-Whitney (texts in pairs: Wilcoxon's
signed ranks), adjusted over all units tested by Holm and by Benjamini-Hochberg; and by shuffling the labels group by
group, the largest |AUROC - 1/2| over all units being the null (Westfall & Young). Judged on the other part.

Baselines get the same treatment: the best of as many random features, the best coordinate of the activation, the best
single token, all tokens together (naive Bayes on counts), difference of means; and the best feature by labels that
were shuffled before anything was chosen. (Kantamneni et al., arXiv 2502.16681; Gurnee et al., arXiv 2305.01610.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..dictionaries.protocol import Dictionary
from ..dictionaries.reading import read_of
from ..errors import BadArguments
from ..measures.labels import shuffled
from ..measures.linear import auroc
from ..measures.statistics import benjamini_hochberg, holm
from ..model.batches import batches
from ..model.protocol import Model
from ..model.sweep_cost import item_bytes
from .labelled import Labelled

if TYPE_CHECKING:
    from numpy import ndarray

SHUFFLES = 500
LARGEST_EFFECT = 100.0  # pooled standard deviations; more where neither set varies would say nothing
FEWEST = 3  # examples on which a unit must differ from 0 to be tested


class Read(NamedTuple):
    """Values of the units on every example of one part."""

    values: ndarray  # [n, F] float32
    activations: ndarray  # [n, D]
    counts: ndarray  # [n, words] times that a token stands at the positions read
    labels: ndarray  # [n] 0 or 1
    groups: tuple[str, ...]


class Tested(NamedTuple):
    """Every unit that was tested, on the part that chooses."""

    units: ndarray  # [m] indices
    auroc: ndarray  # [m]
    effect: ndarray  # [m] Cohen's d
    p: ndarray
    p_holm: ndarray
    q: ndarray
    p_shuffled: ndarray

    def best(self, k: int) -> list[int]:
        """Places (of this tuple's arrays) of the k units furthest from 1/2."""
        return sorted(range(len(self.units)), key=lambda i: (-abs(self.auroc[i] - 0.5), -abs(self.effect[i])))[:k]


def read_units(
    model: Model, dictionary: Dictionary, labelled: Labelled, words: Sequence[int], budget_bytes: int
) -> Read:
    """Feature values, activations and token counts of every example, averaged over its positions where it has several.

    words: token ids that are counted.

    Raises:
        WouldNotFit: one text is over the budget.
    """
    import numpy as np

    site, f = dictionary.info.reads, dictionary.info.d_dict
    of = labelled.of_example
    rows_of: dict[int, list[int]] = {}
    for i, row in enumerate(of):
        rows_of.setdefault(row, []).append(i)
    values = np.zeros((len(of), f), dtype=np.float32)
    activations = np.zeros((len(of), dictionary.info.d_in), dtype=np.float32)
    counts = np.zeros((len(of), len(words)), dtype=np.float32)
    place = {token: i for i, token in enumerate(words)}
    extra = 3 * labelled.tokens.width * f * item_bytes(model.info)
    for rows in batches(model.info, labelled.tokens, [site], budget_bytes, extra=extra):
        part = labelled.rows(rows)
        x = read_of(model.run(part.tokens, read=[site]), site)
        for k, (row, places) in enumerate(zip(rows, part.positions, strict=True)):
            here = x[k, list(places)]
            encoded = dictionary.encode(here).float()
            if labelled.averaged:
                encoded, here = encoded.mean(0, keepdim=True), here.mean(0, keepdim=True)
            values[rows_of[row]] = encoded.cpu().numpy()
            activations[rows_of[row]] = here.float().cpu().numpy()
            _count(counts, rows_of[row], [part.tokens.ids[k][p] for p in places], place, labelled.averaged)
    labels, groups = labelled.per_example()
    return Read(values, activations, counts, np.array(labels), groups)


def _count(counts: ndarray, examples: list[int], ids: list[int], place: dict[int, int], averaged: bool) -> None:
    for i, token in enumerate(ids):
        if token in place:
            counts[examples[0] if averaged else examples[i], place[token]] += 1


def scored(values: ndarray, labels: ndarray, groups: Sequence[str], *, seed: int) -> Tested:
    """Every unit that is not 0 on at least three examples.

    Raises:
        BadArguments: there is none.
    """
    import numpy as np

    units = np.flatnonzero((values != 0).sum(0) >= FEWEST)
    if not len(units):
        raise BadArguments(
            f"no unit differs from 0 on {FEWEST} texts or more; give more texts, or read more positions ('mean')."
        )
    chosen = values[:, units].astype(float)
    ranks = _ranks(chosen)
    score = _auroc(ranks, labels)
    p = _raw_p(chosen, labels, groups)
    null = np.abs(_auroc(ranks, shuffled(labels.tolist(), groups, SHUFFLES, seed)) - 0.5).max(-1)
    extreme = (null[:, None] >= np.abs(score - 0.5) - 1e-12).sum(0)
    yes, no = chosen[labels == 1], chosen[labels == 0]
    spread = np.sqrt((yes.var(0) * len(yes) + no.var(0) * len(no)) / max(1, len(chosen) - 2))
    gap = yes.mean(0) - no.mean(0)
    effect = gap / np.maximum(spread, abs(gap) / LARGEST_EFFECT + 1e-30)
    return Tested(
        units, score, effect, p, np.array(holm(p.tolist())), np.array(benjamini_hochberg(p.tolist())),
        (1 + extreme) / (1 + SHUFFLES),
    )  # fmt: skip


def _raw_p(values: ndarray, labels: ndarray, groups: Sequence[str]) -> ndarray:
    """Mann-Whitney; where every group holds one example of each label, Wilcoxon's signed ranks of the pairs."""
    import numpy as np
    from scipy.stats import mannwhitneyu, wilcoxon

    pairs = _pairs(labels, groups)
    if pairs is None:
        p = mannwhitneyu(values[labels == 1], values[labels == 0], axis=0, method="asymptotic").pvalue
    else:
        gaps = values[[a for a, _ in pairs]] - values[[b for _, b in pairs]]
        p = np.ones(values.shape[1])
        moved = np.flatnonzero((gaps != 0).any(0))
        tested = wilcoxon(gaps[:, moved], axis=0, method="asymptotic")
        p[moved] = getattr(tested, "pvalue")  # noqa: B009  # the stubs name no field of scipy's result
    return np.clip(np.nan_to_num(np.asarray(p, dtype=float), nan=1.0), 0.0, 1.0)


def _pairs(labels: ndarray, groups: Sequence[str]) -> list[tuple[int, int]] | None:
    """(positive, negative) of every group, where each group is such a pair."""
    held: dict[str, dict[int, list[int]]] = {}
    for i, (label, group) in enumerate(zip(labels.tolist(), groups, strict=True)):
        held.setdefault(group, {}).setdefault(label, []).append(i)
    found = [(of.get(1, []), of.get(0, [])) for of in held.values()]
    if any(len(a) != 1 or len(b) != 1 for a, b in found):
        return None
    return [(a[0], b[0]) for a, b in found]


def _ranks(values: ndarray) -> ndarray:
    from scipy.stats import rankdata

    return rankdata(values, axis=0)


def _auroc(ranks: ndarray, labels: ndarray) -> ndarray:
    """From ranks [n, m] and labels [n] or [B, n]: (sum of the positives' ranks - n1 (n1 + 1) / 2) / (n1 n0)."""
    ones = labels.sum(-1)
    zeros = labels.shape[-1] - ones
    below = ones * (ones + 1) / 2
    if labels.ndim == 1:
        return (labels @ ranks - below) / (ones * zeros)
    return (labels @ ranks - below[:, None]) / (ones * zeros)[:, None]


def held_out_of_best(values: ndarray, labels: ndarray, other: ndarray, other_labels: ndarray) -> float:
    """AUROC on the other part of the unit that is best on this one, turned the way it was best."""
    best = int(abs(_auroc(_ranks(values.astype(float)), labels) - 0.5).argmax())
    sign = 1.0 if auroc(values[:, best], labels) >= 0.5 else -1.0
    return auroc(sign * other[:, best], other_labels)


def naive_bayes(fit: Read, held_out: Read) -> float:
    """AUROC on the other part of all tokens together: log odds of each token with one added, times its count."""
    import numpy as np

    yes, no = (1 + fit.counts[fit.labels == label].sum(0) for label in (1, 0))
    weights = np.log(yes / yes.sum()) - np.log(no / no.sum())
    return auroc(held_out.counts @ weights, held_out.labels)


def difference_of_means(fit: Read, held_out: Read) -> float:
    """AUROC on the other part of the projection on the difference of the two means."""
    direction = fit.activations[fit.labels == 1].mean(0) - fit.activations[fit.labels == 0].mean(0)
    return auroc(held_out.activations @ direction, held_out.labels)
