"""Probes before and after an erasure: what a linear reader finds on examples that it was not fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..errors import BadArguments
from ..measures.labels import split_by_group
from ..measures.linear import Span
from ..measures.statistics import Clusters
from ..result import Estimate, Frozen
from .erasure import Eraser, mean_gap, orthogonal, size_of_edit

if TYPE_CHECKING:
    from numpy import ndarray

RANDOM_PROBES = 3  # random edits that probes are held against
CONSTANT = 1e-6  # of a score in log-odds: variation below this is rounding


class LayerErasure(Frozen):
    """One layer."""

    layer: int = Field(description="The layer.")
    before: Estimate = Field(description="Held-out accuracy of a logistic probe before erasure.")
    after: Estimate = Field(description="The same after erasure here and in earlier layers, refitted on the fit part.")
    fresh: Estimate | None = Field(
        description="After erasure, probes fitted and tested within the held-out part, which the eraser never saw."
    )
    random: float = Field(description="Accuracy after a random edit of rank 1 instead, mean of three.")
    gap_before: float = Field(description="Distance of the class means of the fit part, over the median norm.")
    gap_after: float = Field(description="The same after erasure: 0 up to rounding.")
    size: float = Field(description="Share of the variance that the edit takes, on the fit part.")
    size_mean_projection: float = Field(
        description="The same for projecting out the difference of means, which also leaves no linear trace."
    )


class Sides(NamedTuple):
    """Examples of one part."""

    plain: ndarray  # [n, D], without any erasure
    left: ndarray  # [n, D], what the earlier layers' erasures left
    labels: ndarray  # [n]
    groups: tuple[str, ...]  # [n]


def probed(layer: int, eraser: Eraser, fit: Sides, test: Sides, *, penalty: float, seed: int) -> LayerErasure:
    """Probes before and after the eraser of one layer, and how much it takes."""
    import numpy as np

    y, z = fit.labels, test.labels
    clusters = Clusters(test.groups, seed=seed)
    one, two = eraser(fit.left), eraser(test.left)
    norm = float(np.median(np.linalg.norm(fit.plain, axis=1)))
    drawn = np.random.default_rng(seed).standard_normal((RANDOM_PROBES, fit.plain.shape[1]))
    others = [orthogonal(fit.plain, v) for v in drawn]
    random = [_correct(o(fit.plain), y, o(test.plain), z, penalty).mean() for o in others]
    projected = orthogonal(fit.left, mean_gap(fit.left, y))
    fresh = _fresh(two, test, penalty, seed)
    return LayerErasure(
        layer=layer,
        before=clusters.means(_correct(fit.plain, y, test.plain, z, penalty)).estimate(),
        after=clusters.means(_correct(one, y, two, z, penalty)).estimate(),
        fresh=None if fresh is None else clusters.means(fresh).estimate(),
        random=float(np.mean(random)),
        gap_before=float(np.linalg.norm(mean_gap(fit.plain, y))) / norm,
        gap_after=float(np.linalg.norm(mean_gap(one, y))) / norm,
        size=size_of_edit(fit.left, one),
        size_mean_projection=size_of_edit(fit.left, projected(fit.left)),
    )


def _correct(x: ndarray, y: ndarray, test: ndarray, z: ndarray, penalty: float) -> ndarray:
    """1 where a logistic probe fitted on x is right about an example of the other part, else 0.

    A probe whose scores do not vary beyond rounding says the same of every example: what was commoner in the fit.
    """
    scores = Span.of(x).logistic(y, penalty=penalty)(test)
    if scores.max() - scores.min() < CONSTANT:
        scores = 0 * scores + (1 if 2 * y.sum() >= len(y) else -1)
    return ((scores > 0) == z).astype(float)


def _fresh(x: ndarray, test: Sides, penalty: float, seed: int) -> ndarray | None:
    """Each half of the held-out part judged by a probe of the other half; None where it cannot be halved."""
    import numpy as np

    try:
        halves = [list(h) for h in split_by_group(test.labels.tolist(), test.groups, 0.5, seed)]
    except BadArguments:
        return None
    out = np.empty(len(x))
    for a, b in (halves, halves[::-1]):
        out[b] = _correct(x[a], test.labels[a], x[b], test.labels[b], penalty)
    return out
