"""Cluster bootstrap: how far a mean over prompts would move with other prompts of the same kind.

Prompts that share a template and names are not independent, so whole clusters are drawn with replacement (Field &
Welsh 2007; Cameron, Gelbach & Miller 2008). The interval is a percentile interval with its tails widened for the number
of clusters G: the nominal tail a is replaced by Phi(-sqrt(G / (G - 1)) * t(1 - a, G - 1)) (Hesterberg 2015, "What
teachers should know about the bootstrap", arXiv 1411.5279: expanded percentile), without which few clusters give
intervals that are too short. Templates are taken as given: the interval says nothing of a new template.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments, NotFinite
from ..result import Estimate

if TYPE_CHECKING:
    from numpy import ndarray

REPLICATES = 2000
LEVEL = 0.95
NO_INTERVAL = "single cluster: no interval"
METHOD = "cluster bootstrap, expanded percentile"
CHUNK = 4_000_000  # replicate x cell numbers held at once


class Intervals(NamedTuple):
    """Means and interval ends of many quantities at once; low and high are None for a single cluster."""

    mean: ndarray  # [*cells]
    low: ndarray | None
    high: ndarray | None
    n: int
    clusters: int
    level: float

    def estimate(self, *cell: int) -> Estimate:
        """One cell as an Estimate; no index for a single quantity."""
        low, high = (None if side is None else float(side[cell]) for side in (self.low, self.high))
        method = METHOD if low is not None else NO_INTERVAL
        return Estimate(
            mean=float(self.mean[cell]), low=low, high=high, level=self.level, n=self.n, clusters=self.clusters,
            method=method,
        )  # fmt: skip


class Clusters:
    """Prompts grouped by label, and the draws of groups. One seed gives one set of draws, shared by all quantities."""

    def __init__(self, labels: Sequence[str], *, seed: int, replicates: int = REPLICATES, level: float = LEVEL) -> None:
        import numpy as np

        if not labels:
            raise BadArguments("there is nothing to average: no prompts were given.")
        if not 0 < level < 1 or replicates < 1:
            raise BadArguments(f"level {level} must lie between 0 and 1, and replicates ({replicates}) be at least 1.")
        _, self.of_row = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
        self.sizes = np.bincount(self.of_row).astype(float)
        self.n, self.count, self.level = len(labels), len(self.sizes), level
        self.draws = np.random.default_rng(seed).multinomial(
            self.count, np.full(self.count, 1 / self.count), size=replicates
        )  # [replicates, clusters]: how often each cluster was drawn

    def sums(self, values: ndarray) -> ndarray:
        """Sum over the rows of each cluster: [n, *cells] -> [clusters, *cells]."""
        import numpy as np

        values = np.asarray(values, dtype=float)
        if values.shape[:1] != (self.n,):
            raise BadArguments(f"{values.shape[0] if values.ndim else 0} values were given for {self.n} prompts.")
        if not np.isfinite(values).all():
            raise NotFinite(f"{int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite.")
        out = np.zeros((self.count, *values.shape[1:]))
        np.add.at(out, self.of_row, values)
        return out

    def means(self, values: ndarray) -> Intervals:
        """Means over rows, [n, *cells] -> [*cells], with intervals."""
        import numpy as np

        return self._intervals(self.sums(values), np.expand_dims(self.sizes, tuple(range(1, np.ndim(values)))))

    def ratios(self, numerators: ndarray, denominators: ndarray) -> Intervals:
        """Ratios of means over rows, [n, *cells] over [n, *cells] or [n], with intervals.

        A replicate whose denominator is 0 makes the interval infinite: withhold the ratio before (see `normalised`).
        """
        import numpy as np

        below = self.sums(denominators)
        return self._intervals(
            self.sums(numerators), below.reshape(*below.shape, *[1] * (np.ndim(numerators) - below.ndim))
        )

    def _intervals(self, above: ndarray, below: ndarray) -> Intervals:
        import numpy as np

        mean = above.sum(0) / below.sum(0)
        if self.count < 2:
            return Intervals(mean, None, None, self.n, self.count, self.level)
        flat, flat_below = above.reshape(self.count, -1), below.reshape(self.count, -1)
        shared = flat_below.shape[1] == 1
        step = max(1, CHUNK // len(self.draws))
        ends = [
            self._ends(flat[:, i : i + step], flat_below if shared else flat_below[:, i : i + step])
            for i in range(0, flat.shape[1], step)
        ]
        low, high = (np.concatenate([e[side] for e in ends]).reshape(mean.shape) for side in (0, 1))
        return Intervals(mean, low, high, self.n, self.count, self.level)

    def _ends(self, above: ndarray, below: ndarray) -> ndarray:
        import numpy as np

        tail = tail_of(self.level, self.count)
        replicates = (self.draws @ above) / (self.draws @ below)
        return np.quantile(replicates, (tail, 1 - tail), axis=0)


def tail_of(level: float, clusters: int) -> float:
    """The tail at which the percentiles are read, widened for few clusters."""
    from scipy.special import stdtrit

    t = float(stdtrit(clusters - 1, (1 + level) / 2))
    return NormalDist().cdf(-((clusters / (clusters - 1)) ** 0.5) * t)


def estimate(
    values: Sequence[float] | ndarray, clusters: Sequence[str], *, seed: int, replicates: int = REPLICATES,
    level: float = LEVEL,
) -> Estimate:  # fmt: skip
    """Mean over prompts with its cluster-bootstrap interval.

    Raises:
        BadArguments: nothing to average, or as many labels as values are not given.
        NotFinite: a value is NaN or infinite.
    """
    import numpy as np

    return Clusters(clusters, seed=seed, replicates=replicates, level=level).means(np.asarray(values)).estimate()


def paired_difference(
    a: Sequence[float] | ndarray, b: Sequence[float] | ndarray, clusters: Sequence[str], *, seed: int
) -> Estimate:
    """Mean of a - b over the same prompts."""
    import numpy as np

    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape:
        raise BadArguments(f"a paired difference needs the same prompts on both sides: {len(first)} and {len(second)}.")
    return estimate(first - second, clusters, seed=seed)


def difference(
    a: Sequence[float] | ndarray, clusters_a: Sequence[str], b: Sequence[float] | ndarray, clusters_b: Sequence[str],
    *, seed: int,
) -> Estimate:  # fmt: skip
    """Mean of a minus mean of b, different prompts on the two sides, each resampled by itself."""
    import numpy as np

    one, two = Clusters(clusters_a, seed=seed), Clusters(clusters_b, seed=seed + 1)
    above = [c.sums(np.asarray(v, dtype=float)) for c, v in ((one, a), (two, b))]
    gap = float(above[0].sum() / one.n - above[1].sum() / two.n)
    n, fewest = one.n + two.n, min(one.count, two.count)
    if fewest < 2:
        return Estimate(mean=gap, n=n, clusters=one.count + two.count, method=NO_INTERVAL)
    replicates = [(c.draws @ s) / (c.draws @ c.sizes) for c, s in zip((one, two), above, strict=True)]
    tail = tail_of(LEVEL, fewest)
    low, high = np.quantile(replicates[0] - replicates[1], (tail, 1 - tail))
    return Estimate(
        mean=gap, low=float(low), high=float(high), n=n, clusters=one.count + two.count, method=METHOD
    )


class Normalised(NamedTuple):
    """A normalised effect, or why there is none."""

    intervals: Intervals | None
    withheld: str | None  # the reason, for the result's warnings
    gap: Estimate  # mean of other - base


def normalised(x: ndarray, base: ndarray, other: ndarray, clusters: Clusters) -> Normalised:
    """Effects as fractions of the gap: mean(x - base) / mean(other - base), a ratio of means over prompts.

    x [n, *cells] is the metric with the edit, base [n] that of the run that is edited, other [n] that of the run it is
    patched from. Not clipped: values outside [0, 1] mean something. Withheld when the interval of the gap holds 0, for
    then the ratio has no stable sign; or where one cluster gives no interval of the gap but the gap itself is 0.
    """
    import numpy as np

    base, other = np.asarray(base, dtype=float), np.asarray(other, dtype=float)
    gap = clusters.means(other - base).estimate()
    unsure = gap.mean == 0 if gap.low is None or gap.high is None else gap.low <= 0 <= gap.high
    if unsure:
        return Normalised(None, f"no fraction of the gap is given: the gap, {gap}, has 0 in its interval.", gap)
    x = np.asarray(x, dtype=float)
    return Normalised(clusters.ratios(x - base.reshape(-1, *[1] * (x.ndim - 1)), other - base), None, gap)
