"""What is said of a cloud of points at one place: cosines, dimensions, and the points and dimensions that stand out.

n points, D model width. Formulas: `measures/geometry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..measures.geometry import (
    Order,
    components_for,
    cosines,
    dimension_shares,
    mean_cosine,
    order_fit,
    participation,
    principal,
)
from ..measures.statistics import holm
from ..result import Frozen, SelfTest

if TYPE_CHECKING:
    from numpy import ndarray

OUTLIER = 5.0  # times the median norm, from which a point stands out
NAMED = 5  # outliers and dimensions
AGREE = 1e-6


class Outlier(Frozen):
    """A point whose norm stands out."""

    point: str = Field(description="The point: a token, or its position with it.")
    times: float = Field(description="Its norm over the median norm.")


class Dimension(Frozen):
    """One dimension of the model's own basis."""

    dimension: int = Field(description="Its index.")
    of_cosine: float = Field(description="What it adds to the mean cosine; all dimensions add up to it.")
    of_square: float = Field(description="Its share of the mean squared norm.")


class Untrained(Frozen):
    """The same of an untrained model."""

    mean_cosine: float = Field(description="Mean cosine of pairs.")
    mean_cosine_centred: float = Field(description="With the mean taken away.")
    participation: float = Field(description="Effective dimension.")


class Ordering(Frozen):
    """Whether the points lie in the order given."""

    share: float = Field(description="Share of the centred squares that the line or cycle explains.")
    by_chance: float = Field(description="Mean share of shuffled orders.")
    p: float = Field(description="Share of shuffled orders that do as well, corrected over the places (Holm).")


class Geometry(Frozen):
    """The points of one place."""

    place: str = Field(description="The table or site.")
    mean_cosine: float = Field(description="Mean cosine of pairs of different points; 0 in a round cloud.")
    mean_cosine_centred: float = Field(
        description="With the points' mean taken away, outliers left out; -1 / (n - 1) in a round cloud."
    )
    mean_cosine_rest: float | None = Field(description="Without the outliers; null where there are none.")
    participation: float = Field(description="Effective dimension: (sum of variances)^2 / sum of squares.")
    participation_rest: float | None = Field(description="Without the outliers; null where there are none.")
    first_share: float = Field(description="Share of the variance along the first principal component.")
    components_90: int = Field(description="Principal components that hold 90% of the variance.")
    median_norm: float = Field(description="Median norm of a point.")
    n_outliers: int = Field(description="Points with more than 5 times the median norm.")
    outliers: tuple[Outlier, ...] = Field(description="The first five of them, largest first.")
    dimensions: tuple[Dimension, ...] = Field(description="The three that add most to the mean cosine, in size.")
    untrained: Untrained | None = Field(description="The same points of an untrained model; null where there is none.")
    ordering: Ordering | None = Field(description="The test of `order`, where it was asked for.")


def geometry(
    place: str, x: ndarray, labels: Sequence[str], untrained: Untrained | None, ordering: Ordering | None
) -> Geometry:
    """Everything about the points x [n, D] of one place."""
    import numpy as np

    norms = np.linalg.norm(x, axis=1)
    out = outlying(norms)
    rest = x[~out] if out.any() and (~out).sum() > 2 else None
    pca, shares = principal(x), dimension_shares(x)
    square = (x**2).sum(0) / max(float((x**2).sum()), 1e-300)
    largest = sorted(np.flatnonzero(out), key=lambda i: -norms[i])[:NAMED]
    median = float(np.median(norms))
    return Geometry(
        place=place,
        mean_cosine=float(shares.sum()),
        mean_cosine_centred=_centred_cosine(x if rest is None else rest),
        mean_cosine_rest=None if rest is None else mean_cosine(rest),
        participation=participation(pca.variances),
        participation_rest=None if rest is None else participation(principal(rest).variances),
        first_share=float(pca.shares[0]),
        components_90=components_for(pca.shares, 0.9),
        median_norm=median,
        n_outliers=int(out.sum()),
        outliers=tuple(Outlier(point=labels[int(i)], times=float(norms[i]) / (median or 1.0)) for i in largest),
        dimensions=tuple(
            Dimension(dimension=int(d), of_cosine=float(shares[d]), of_square=float(square[d]))
            for d in np.argsort(-abs(shares), kind="stable")[:3]
        ),
        untrained=untrained,
        ordering=ordering,
    )


def _centred_cosine(x: ndarray) -> float:
    return mean_cosine(x - x.mean(0))


def outlying(norms: ndarray) -> ndarray:
    """Which points have a norm far above the median one."""
    import numpy as np

    median = float(np.median(norms))
    return norms > OUTLIER * median if median > 0 else np.zeros(len(norms), dtype=bool)


def untrained_of(x: ndarray) -> Untrained:
    """The figures that an untrained model is compared by."""
    return Untrained(
        mean_cosine=mean_cosine(x), mean_cosine_centred=_centred_cosine(x),
        participation=participation(principal(x).variances),
    )  # fmt: skip


def orderings(points: Mapping[str, ndarray], order: Order, seed: int) -> dict[str, Ordering]:
    """The test of an order at every place, corrected over the places."""
    fits = [order_fit(x, order, seed=seed) for x in points.values()]
    corrected = holm([fit.p for fit in fits])
    return {
        place: Ordering(share=fit.share, by_chance=float(fit.null.mean()), p=p)
        for place, fit, p in zip(points, fits, corrected, strict=True)
    }


def sums_agree(x: ndarray, variances: ndarray) -> tuple[SelfTest, ...]:
    """The mean cosine by sums over dimensions, and the variances, against all pairs of points written out."""
    import numpy as np

    n = len(x)
    pairs = cosines(x)[~np.eye(n, dtype=bool)].mean()
    products = x @ x.T
    squares = products.diagonal()[:, None] + products.diagonal()[None] - 2 * products  # of the distances of all pairs
    mine, own = 2 * float(variances.sum()), float(squares.sum()) / n**2
    return (
        _agrees("mean cosine against all pairs written out", mean_cosine(x), float(pairs), 1.0),
        _agrees("variance against the distances of all pairs", mine, own, abs(own) or 1.0),
    )


def _agrees(name: str, mine: float, own: float, scale: float) -> SelfTest:
    found = abs(mine - own) / scale
    return SelfTest(name=name, expected=0.0, found=found, tolerance=AGREE, passed=found <= AGREE)
