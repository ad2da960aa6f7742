"""Linear models of several classes, and of numbers: logistic and ridge regression, nearest means.

n examples, d width, r rank, K classes. With z the examples of a `Span` (centred, divided by one number) turned to their
principal axes,

    logistic: mean over rows of -log softmax(z w + b)[y]  +  l2 / 2 |w|^2      (two classes: one weight, the other is 0)
    ridge:    mean over rows of (y - z w - b)^2 / 2       +  l2 / 2 |w|^2

The bias is not penalised. Along these axes ridge is a division and the logistic loss has about unit curvature, so that
hundreds of fits (layers, penalties, controls) stay cheap. Weights come back in units of the activations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments, NotFinite
from .linear import Span

if TYPE_CHECKING:
    from numpy import ndarray

CONVERGED = 1e-7  # largest gradient entry of a finished fit
MOST_STEPS = 2000


class Scorer(NamedTuple):
    """A fitted model: scores are x @ weight.T + bias, one column a class (numbers: one column)."""

    weight: ndarray  # [K, d]; numbers: [1, d]; two classes: the first row is 0
    bias: ndarray  # [K]

    def scores(self, x: ndarray) -> ndarray:
        """[n, d] -> [n, K]."""
        return x @ self.weight.T + self.bias


class Axes(NamedTuple):
    """Training rows along their principal axes."""

    z: ndarray  # [n, r], scaled
    basis: ndarray  # [r, d], orthonormal rows
    variance: ndarray  # [r]: mean of z squared
    mean: ndarray  # [d]
    scale: float

    @classmethod
    def of(cls, x: ndarray) -> Axes:
        """
        Raises:
            BadArguments: fewer than two rows, or rows that are all the same.
            NotFinite: NaN or infinity.
        """
        import numpy as np

        if not np.isfinite(x).all():
            raise NotFinite("the activations to fit hold NaN or infinity; load the model with dtype='float32'.")
        span = Span.of(x)
        variance, turn = np.linalg.eigh(span.inner.T @ span.inner / len(x))
        return cls(span.inner @ turn, turn.T @ span.basis, np.maximum(variance, 0.0), span.mean, span.scale)

    def raw(self, w: ndarray, b: ndarray) -> Scorer:
        """Weights [r, K] and bias [K] of z, in units of x."""
        weight = w.T @ self.basis / self.scale
        return Scorer(weight, b - weight @ self.mean)


def logistic(axes: Axes, y: ndarray, classes: int, l2: float) -> Scorer:
    """Logistic regression of labels y [n] (0 .. classes - 1), multinomial for more than two.

    Raises:
        BadArguments: no penalty, fewer than two classes, or a label outside them.
        NotFinite: the fit did not converge.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    y = np.asarray(y, dtype=int)
    _check_classes(y, classes, l2)
    n, r = axes.z.shape
    free = 1 if classes == 2 else classes
    target = np.eye(classes)[y]
    step = 1 / np.sqrt(axes.variance / 4 + l2)  # the loss has curvature at most this, squared, along each axis

    def loss(flat: ndarray) -> tuple[float, ndarray]:
        p = flat.reshape(r + 1, free)
        w = p[:-1] * step[:, None]
        scores = axes.z @ w + p[-1]
        logs = log_softmax(np.hstack([np.zeros((n, classes - free)), scores]), axis=1)
        slope = (np.exp(logs) - target)[:, classes - free :] / n
        gradient = np.vstack([(axes.z.T @ slope + l2 * w) * step[:, None], slope.sum(0)])
        return float(-(logs * target).sum() / n + l2 / 2 * (w**2).sum()), gradient.ravel()

    options = {"maxiter": MOST_STEPS, "gtol": CONVERGED, "ftol": 1e-15, "maxls": 50}
    found = minimize(loss, np.zeros((r + 1) * free), jac=True, method="L-BFGS-B", options=options)
    if abs(found.jac).max() > 1e3 * CONVERGED:
        raise NotFinite(f"logistic regression did not converge ({found.message}); use a larger penalty than {l2:g}.")
    p = found.x.reshape(r + 1, free)
    fit = axes.raw(p[:-1] * step[:, None], p[-1])
    nothing = np.zeros((classes - free, fit.weight.shape[1]))
    return Scorer(np.vstack([nothing, fit.weight]), np.concatenate([nothing[:, 0], fit.bias]))


def ridge(axes: Axes, y: ndarray, l2: float) -> Scorer:
    """Ridge regression of numbers y [n]."""
    import numpy as np

    if l2 < 0:
        raise BadArguments(f"the penalty {l2:g} is negative; give 0 or more.")
    y = np.asarray(y, dtype=float)
    w = axes.z.T @ (y - y.mean()) / len(y) / (axes.variance + l2)
    return axes.raw(w[:, None], np.array([y.mean()]))


def nearest_mean(x: ndarray, y: ndarray, classes: int) -> Scorer:
    """The class whose mean is nearest; of two classes the difference of means with its threshold half way.

    |x - m|^2 is smallest where x . m - |m|^2 / 2 is largest. A class without examples is never chosen.
    """
    import numpy as np

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=int)
    _check_classes(y, classes, 1.0)
    there = [bool((y == k).any()) for k in range(classes)]
    means = np.stack([x[y == k].mean(0) if there[k] else np.zeros(x.shape[1]) for k in range(classes)])
    bias = np.where(there, -(means**2).sum(1) / 2, -1e30)
    return Scorer(means - means[0], bias - bias[0]) if classes == 2 and all(there) else Scorer(means, bias)


def constant(y: ndarray, classes: int | None, width: int) -> Scorer:
    """What can be said without looking: the labels' frequencies, or the mean of numbers (`classes` None)."""
    import numpy as np

    if classes is None:
        return Scorer(np.zeros((1, width)), np.array([y.mean()]))
    share = np.bincount(y, minlength=classes) / len(y)
    return Scorer(np.zeros((classes, width)), np.log(np.maximum(share, 1e-30)))


def _check_classes(y: ndarray, classes: int, l2: float) -> None:
    if classes < 2 or y.min() < 0 or y.max() >= classes:
        raise BadArguments(f"labels {y.min()} to {y.max()} for {classes} classes; give at least two, numbered from 0.")
    if l2 <= 0:
        raise BadArguments(f"the penalty {l2:g} must be above 0: separable classes have no finite fit without one.")
