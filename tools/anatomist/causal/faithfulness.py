"""How much of the behaviour a circuit keeps: faithfulness over sizes, its areas, rankings and their stability.

With m the metric's mean over the data set, M the whole model and 'empty' the circuit without anything,

    f(C) = (m(C) - m(empty)) / (m(M) - m(empty))

Over fractions p of all parts (.001 to 1): CPR = integral of f(p), circuits ranked by signed contribution;
CMD = integral of |1 - f(p)|, ranked by magnitude; both by trapezoids (Mueller et al., arXiv 2504.13151, section 3.2).
f is not clipped: above 1 the parts left out work against the behaviour, below 0 the circuit does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..errors import BadPrompts
from ..measures.resampling import METHOD, NO_INTERVAL, tail_of
from ..measures.statistics import Clusters, normalised
from ..result import Estimate, Frozen

if TYPE_CHECKING:
    from numpy import ndarray

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
Ranking = Literal["signed", "absolute"]
STABLE = 0.8


class Point(Frozen):
    """One size on a curve."""

    fraction: float = Field(description="Share of all parts.")
    size: int = Field(description="Parts kept, rounded down.")
    faithfulness: Estimate = Field(description="f of the circuit; not clipped.")


class Curve(Frozen):
    """Faithfulness over sizes."""

    name: str = Field(description="Which ranking the circuits were cut from.")
    points: tuple[Point, ...] = Field(description="One per fraction, smallest first.")
    cpr: Estimate = Field(description="Area under f (trapezoids from .001 to 1).")
    cmd: Estimate = Field(description="Area under |1 - f|; 0: at every size the circuit does what the model does.")


def sizes_of(n: int) -> tuple[int, ...]:
    """Parts at each fraction, rounded down."""
    return tuple(int(fraction * n + 1e-9) for fraction in FRACTIONS)


def ranked(scores: Sequence[float] | ndarray, ranking: Ranking) -> list[int]:
    """Parts from the first kept to the last: by contribution, or by its magnitude."""
    import numpy as np

    values = np.asarray(scores, dtype=float)
    return np.argsort(-(values if ranking == "signed" else np.abs(values)), kind="stable").tolist()


def weights_of(fractions: Sequence[float]) -> list[float]:
    """What each point counts in the area by trapezoids."""
    steps = [b - a for a, b in pairwise(fractions)]
    return [(left + right) / 2 for left, right in zip([0.0, *steps], [*steps, 0.0], strict=True)]


class Scale:
    """The data set's empty circuit and whole model: what faithfulness is measured by.

    Raises (at construction):
        BadPrompts: the whole model does not differ from the empty circuit.
    """

    def __init__(self, empty: ndarray, whole: ndarray, clusters: Clusters) -> None:
        self.empty, self.whole, self.clusters = empty, whole, clusters
        found = normalised(whole, empty, whole, clusters)
        if found.intervals is None:
            raise BadPrompts(
                f"the whole model and the empty circuit differ by {found.gap} only, with 0 in the interval: there is "
                "nothing to be faithful to. Check the task with check_prompts, or give more prompts."
            )

    def f(self, values: ndarray) -> Estimate:
        """Faithfulness of one circuit from the metric on every prompt."""
        found = normalised(values, self.empty, self.whole, self.clusters).intervals
        assert found is not None
        return found.estimate()

    def mean(self, values: ndarray) -> float:
        """Faithfulness without its interval."""
        return float((values - self.empty).mean() / (self.whole - self.empty).mean())

    def curve(self, name: str, sizes: Sequence[int], values: ndarray) -> Curve:
        """Faithfulness over sizes, values [sizes, prompts]."""
        import numpy as np

        points = tuple(
            Point(fraction=fraction, size=size, faithfulness=self.f(row))
            for fraction, size, row in zip(FRACTIONS, sizes, values, strict=True)
        )
        cpr, cmd = self._area(values, lambda f: f), self._area(values, lambda f: np.abs(1 - f))
        return Curve(name=name, points=points, cpr=cpr, cmd=cmd)

    def _area(self, values: ndarray, of: Callable[[ndarray], ndarray]) -> Estimate:
        """Area under a function of the data set's f, with its interval over draws of clusters."""
        import numpy as np

        weights, c = np.array(weights_of(FRACTIONS)), self.clusters
        above, below = c.sums((values - self.empty).T), c.sums(self.whole - self.empty)
        mean = float(weights @ of(above.sum(0) / below.sum()))
        if c.count < 2:
            return Estimate(mean=mean, n=c.n, clusters=c.count, level=c.level, method=NO_INTERVAL)
        tail = tail_of(c.level, c.count)
        drawn = of((c.draws @ above) / (c.draws @ below)[:, None]) @ weights
        low, high = np.quantile(drawn, (tail, 1 - tail))
        # A magnitude is larger in every draw than the mean's where f is near 1: the interval still holds the mean.
        low, high = min(float(low), mean), max(float(high), mean)
        return Estimate(mean=mean, low=low, high=high, n=c.n, clusters=c.count, level=c.level, method=METHOD)


def rediscovered(
    scores: ndarray, clusters: Sequence[str], claimed: Sequence[int], ranking: Ranking, *, draws: int, seed: int
) -> list[float]:
    """Jaccard overlap of the claimed set with sets of its size found on bootstrap samples of the prompts.

    scores [prompts, parts]; whole clusters are drawn.
    """
    again, first = Clusters(clusters, seed=seed, replicates=draws), set(claimed)
    sums = again.sums(scores)
    overlaps: list[float] = []
    for draw in again.draws:
        found = set(ranked(draw @ sums, ranking)[: len(first)])
        overlaps.append(len(found & first) / len(found | first) if first else 1.0)
    return overlaps
