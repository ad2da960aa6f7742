"""Linear readings of activations: logistic regression, AUROC with intervals, and where a threshold lies.

n examples, d width. Labels are 1 (positive) or 0. Everything is in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments
from ..result import Estimate
from .resampling import METHOD, NO_INTERVAL, Clusters, tail_of

if TYPE_CHECKING:
    from numpy import ndarray

STEPS = 50  # Newton steps at most; a dozen is usual
CLOSE = 1e-9  # size of the last step, relative to the weights


class Linear(NamedTuple):
    """score = x . weights + bias; positive where the score is above 0."""

    weights: ndarray  # [d]
    bias: float

    def __call__(self, x: ndarray) -> ndarray:
        return x @ self.weights + self.bias


@dataclass(frozen=True, eq=False)
class Span:
    """Examples centred, scaled by one number, and written in the space they span: a fit takes min(n, d) numbers.

    The penalty of a fit is on the Euclidean length of its weights, which an orthonormal basis keeps; one scale for all
    coordinates keeps directions as they are.
    """

    inner: ndarray  # [n, r]
    basis: ndarray  # [r, d], orthonormal rows
    mean: ndarray  # [d]
    scale: float

    @classmethod
    def of(cls, x: ndarray) -> Span:
        """
        Raises:
            BadArguments: fewer than two examples, or all alike.
        """
        import numpy as np

        x = np.asarray(x, dtype=float)
        mean = x.mean(0)
        centred = x - mean
        scale = float(np.sqrt((centred**2).mean()))
        if len(x) < 2 or not scale > 0:
            raise BadArguments(f"{len(x)} examples that do not differ cannot be told apart; give others.")
        if x.shape[0] > x.shape[1]:
            return cls(centred / scale, np.eye(x.shape[1]), mean, scale)
        u, s, basis = np.linalg.svd(centred / scale, full_matrices=False)
        kept = s > s[0] * 1e-10
        return cls(u[:, kept] * s[kept], basis[kept], mean, scale)

    def logistic(self, labels: ndarray, *, penalty: float = 1.0) -> Linear:
        """Weights that minimise sum of log-losses + penalty / 2 |weights|^2 (the bias is free), by Newton's method.

        Raises:
            BadArguments: one label only, or a penalty that is not positive (separable examples have no minimum then).
        """
        import numpy as np

        y = np.asarray(labels, dtype=float)
        if not penalty > 0 or not 0 < y.mean() < 1:
            raise BadArguments(
                f"a fit needs both labels and a penalty above 0; {y.mean():.0%} are positive, the penalty is {penalty}."
            )
        z = np.concatenate([self.inner, np.ones((len(y), 1))], axis=1)
        ridge = np.append(np.full(z.shape[1] - 1, penalty), 0.0)
        w = np.append(np.zeros(z.shape[1] - 1), np.log(y.mean() / (1 - y.mean())))
        for _ in range(STEPS):
            step = _newton(z, y, w, ridge)
            w = w + _shortened(z, y, w, ridge, step) * step
            if np.linalg.norm(step) <= CLOSE * (1 + np.linalg.norm(w)):
                break
        weights = w[:-1] @ self.basis / self.scale
        return Linear(weights, float(w[-1] - weights @ self.mean))


def _newton(z: ndarray, y: ndarray, w: ndarray, ridge: ndarray) -> ndarray:
    import numpy as np
    from scipy.special import expit

    p = expit(z @ w)
    hessian = (z * (p * (1 - p))[:, None]).T @ z + np.diag(ridge + 1e-12)
    return np.linalg.solve(hessian, z.T @ (y - p) - ridge * w)


def _shortened(z: ndarray, y: ndarray, w: ndarray, ridge: ndarray, step: ndarray) -> float:
    """The part of the step that does lower the objective."""
    before, size = _objective(z, y, w, ridge), 1.0
    while size > 1e-4 and _objective(z, y, w + size * step, ridge) > before:
        size /= 2
    return size


def _objective(z: ndarray, y: ndarray, w: ndarray, ridge: ndarray) -> float:
    import numpy as np

    score = z @ w
    return float(np.logaddexp(0, score).sum() - y @ score + (ridge * w**2).sum() / 2)


def auroc(scores: ndarray, labels: ndarray) -> float:
    """Chance that a positive example scores above a negative one, ties counted half."""
    return float(_above(scores, labels).mean())


def auroc_estimate(scores: ndarray, labels: ndarray, clusters: Clusters) -> Estimate:
    """AUROC with its cluster-bootstrap interval; replicates without both labels are left out."""
    import numpy as np

    above, mean = _above(scores, labels), auroc(scores, labels)
    drawn = clusters.draws[:, clusters.of_row].astype(float)  # [replicates, n]: how often each example was drawn
    positive, negative = drawn[:, labels == 1], drawn[:, labels == 0]
    pairs = positive.sum(1) * negative.sum(1)
    both = pairs > 0
    if clusters.count < 2 or not both.any():
        return Estimate(mean=mean, n=clusters.n, clusters=clusters.count, method=NO_INTERVAL)
    replicates = ((positive @ above) * negative).sum(1)[both] / pairs[both]
    tail = tail_of(clusters.level, clusters.count)
    low, high = np.quantile(replicates, (tail, 1 - tail))
    return Estimate(
        mean=mean, low=float(low), high=float(high), level=clusters.level, n=clusters.n, clusters=clusters.count,
        method=METHOD,
    )  # fmt: skip


def _above(scores: ndarray, labels: ndarray) -> ndarray:
    """[positives, negatives]: 1 where the positive scores higher, half where they tie."""
    import numpy as np

    labels = np.asarray(labels)
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        raise BadArguments("an AUROC needs examples of both labels; give more, or another split.")
    return (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
