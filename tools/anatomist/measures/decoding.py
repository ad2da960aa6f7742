"""How well many probes predict: accuracy and R2, with cluster bootstrap intervals, and permutations by group.

n test examples in G groups, C cells (layers), R draws. A statistic maps weights of the groups [R, G] (how often each
was drawn; all 1 for the value itself) to values [R, C], so that differences of two statistics share their draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..result import Estimate
from .resampling import Clusters, Intervals, tail_of

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator

Statistic = Callable[["ndarray"], "ndarray"]
PERMUTATIONS = 1000


def accuracy(correct: ndarray, clusters: Clusters) -> Statistic:
    """Share that is right; correct [n, C]."""
    sums, sizes = clusters.sums(correct), clusters.sizes
    return lambda weights: weights @ sums / (weights @ sizes)[:, None]


def r_squared(predicted: ndarray, y: ndarray, clusters: Clusters) -> Statistic:
    """1 - squared error over squared deviation from the test mean; predicted [n, C], y [n]."""
    import numpy as np

    y = np.asarray(y, dtype=float)
    errors = clusters.sums((np.asarray(predicted, dtype=float) - y[:, None]) ** 2)
    y = y - y.mean()  # for the sums of squares alone: they stay exact where numbers are large
    total, squares, sizes = clusters.sums(y), clusters.sums(y**2), clusters.sizes

    def statistic(weights: ndarray) -> ndarray:
        spread = weights @ squares - (weights @ total) ** 2 / (weights @ sizes)
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw of equal labels has no value
            return 1 - weights @ errors / np.where(spread > 0, spread, np.nan)[:, None]

    return statistic


def intervals(statistic: Statistic, clusters: Clusters) -> Intervals:
    """The statistic of all groups, with an expanded percentile interval over the draws."""
    import numpy as np

    value = statistic(np.ones((1, clusters.count)))[0]
    if clusters.count < 2:
        return Intervals(value, None, None, clusters.n, clusters.count, clusters.level)
    tail = tail_of(clusters.level, clusters.count)
    low, high = np.nanquantile(statistic(clusters.draws), (tail, 1 - tail), axis=0)
    return Intervals(value, low, high, clusters.n, clusters.count, clusters.level)


def joined(estimates: Sequence[Estimate]) -> Intervals:
    """Estimates of the same examples, one a cell."""
    import numpy as np

    one = estimates[0]
    ends = (None if one.low is None else np.array([getattr(e, side) for e in estimates]) for side in ("low", "high"))
    low, high = ends
    return Intervals(np.array([e.mean for e in estimates]), low, high, one.n, one.clusters, one.level)


def permuted(labels: ndarray, groups: Sequence[str], seed: int) -> ndarray:
    """Labels as they would be if they meant nothing, group by group; classes numbered from 0, or numbers (floats).

    Groups of one label exchange it among themselves. A group of several classes has them renamed at random among those
    it holds, so that what goes together in it stays together; one of several numbers has them shuffled.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    _, first, of_row = np.unique(np.asarray(groups, dtype=str), return_index=True, return_inverse=True)
    alone = np.bincount(of_row, weights=labels != labels[first][of_row]) == 0
    exchanged = labels[first]
    exchanged[alone] = generator.permutation(exchanged[alone])
    inside = _renamed(labels, of_row, generator) if labels.dtype.kind == "i" else _shuffled(labels, of_row, generator)
    return np.where(alone[of_row], exchanged[of_row], inside)


def _renamed(labels: ndarray, of_row: ndarray, generator: Generator) -> ndarray:
    """Each group's classes, renamed among themselves."""
    import numpy as np

    held = np.zeros((of_row.max() + 1, labels.max() + 1), dtype=bool)
    held[of_row, labels] = True
    order = np.argsort(np.where(held, generator.random(held.shape), 2.0), axis=1)  # classes held first, at random
    names = np.zeros_like(order)
    np.put_along_axis(names, np.argsort(~held, axis=1, kind="stable"), order, axis=1)
    return names[of_row, labels]


def _shuffled(labels: ndarray, of_row: ndarray, generator: Generator) -> ndarray:
    """Each group's numbers in random order."""
    import numpy as np

    out = np.empty_like(labels)
    out[np.argsort(of_row, kind="stable")] = labels[np.lexsort((generator.random(len(labels)), of_row))]
    return out


def permutation_p(
    score: Callable[[ndarray], ndarray], labels: ndarray, groups: Sequence[str], *, seed: int,
    permutations: int = PERMUTATIONS,
) -> ndarray:  # fmt: skip
    """Per cell the chance of so high a score when test labels are dealt anew by group, adjusted over all cells: [C].

    `score` gives the fixed predictions' score of each cell for given labels. The largest cell of each permutation is
    the null (Westfall & Young), so that the chance of any false claim among all cells is held. Holds exactly where
    groups are exchangeable: the predictions have not seen these labels.
    """
    import numpy as np

    observed = score(labels)
    largest = [score(permuted(labels, groups, seed + 1 + i)).max() for i in range(permutations)]
    extreme = permutations - np.searchsorted(np.sort(largest), observed - 1e-12, side="left")
    return (1 + extreme) / (1 + permutations)
