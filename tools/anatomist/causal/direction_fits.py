"""Directions between two sets of activations, and how well a direction tells held-out ones apart.

x [n, D], labels 1 (positive) or 0. With m1, m0 the means of the two sets and u a unit vector towards the positive side,
a direction is kept as v = ((m1 - m0) . u) u: adding v once moves the mean of one set to the mean of the other along u.

| method | u |
|---|---|
| mean_difference | (m1 - m0) / |m1 - m0| |
| pca | first principal component: of the differences of pairs where there are pairs (not centred: Zou et al., arXiv
  2310.01405, section 3.1), else of all examples about their mean |
| logistic | weights of an L2-penalised logistic regression on examples centred and divided by one number |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from ..errors import BadArguments
from ..measures.labels import shuffled
from ..measures.linear import Span, auroc

if TYPE_CHECKING:
    from numpy import ndarray

Method = Literal["mean_difference", "pca", "logistic"]
METHODS: tuple[Method, ...] = get_args(Method)
LEAST = 1e-6  # of the distance between the means: the shortest a direction is kept


class Direction(NamedTuple):
    """A direction and where along it the two sets part."""

    vector: ndarray  # [D], v above
    threshold: float  # of the projection on u

    def project(self, x: ndarray) -> ndarray:
        """x . u."""
        import numpy as np

        return x @ (self.vector / np.linalg.norm(self.vector))


def fit_directions(
    methods: Sequence[Method], x: ndarray, labels: ndarray, groups: Sequence[str], *, penalty: float = 1.0,
    span: Span | None = None,
) -> dict[Method, Direction]:  # fmt: skip
    """One direction a method; `span` is that of x, where it is known.

    Raises:
        BadArguments: one label only, the two means are equal, or examples that do not differ.
    """
    import numpy as np

    x, y = np.asarray(x, dtype=float), np.asarray(labels)
    if len(set(y.tolist())) < 2:
        raise BadArguments("a direction needs examples of both labels; give both sides.")
    inside = span or Span.of(x)
    gap = x[y == 1].mean(0) - x[y == 0].mean(0)
    if not np.linalg.norm(gap) > 1e-12 * inside.scale:
        raise BadArguments("the two sets have the same mean: no direction of difference exists at this place.")
    found: dict[Method, Direction] = {}
    for method in methods:
        if method == "logistic":
            fitted = inside.logistic(y, penalty=penalty)
            size = float(np.linalg.norm(fitted.weights))
            found[method] = _towards(fitted.weights / size, gap, -fitted.bias / size)
        else:
            u = gap if method == "mean_difference" else _component(inside, y, groups)
            u = u / np.linalg.norm(u)
            found[method] = _towards(u, gap, float((x[y == 1].mean(0) + x[y == 0].mean(0)) @ u) / 2)
    return found


def _towards(u: ndarray, gap: ndarray, threshold: float) -> Direction:
    """Turned to the positive side; a component that the means do not differ along keeps a trace of length."""
    overlap = float(gap @ u)
    least = LEAST * float((gap @ gap) ** 0.5)
    return Direction(max(abs(overlap), least) * (u if overlap >= 0 else -u), threshold if overlap >= 0 else -threshold)


def _component(span: Span, labels: ndarray, groups: Sequence[str]) -> ndarray:
    """First principal component of the pairs' differences, or of all examples."""
    import numpy as np

    if len(set(groups)) == len(groups):
        return np.linalg.svd(span.inner - span.inner.mean(0), full_matrices=False)[2][0] @ span.basis
    names = np.asarray(groups, dtype=str)
    pairs = [names == g for g in dict.fromkeys(groups) if len(set(labels[names == g].tolist())) > 1]
    if not pairs:
        return np.linalg.svd(span.inner - span.inner.mean(0), full_matrices=False)[2][0] @ span.basis
    gaps = [span.inner[p & (labels == 1)].mean(0) - span.inner[p & (labels == 0)].mean(0) for p in pairs]
    return np.linalg.svd(np.stack(gaps), full_matrices=False)[2][0] @ span.basis


class Part(NamedTuple):
    """Examples of one part."""

    x: ndarray  # [n, D]
    labels: ndarray  # [n]
    groups: tuple[str, ...]  # [n]


class Separation(NamedTuple):
    """How a method's direction does on examples it was not fitted on, beside shuffled labels."""

    direction: Direction
    scores: ndarray  # [n] projections less the threshold
    shuffled_auroc: ndarray  # [shuffles]
    shuffled_accuracy: ndarray  # [shuffles]


def separations(
    methods: Sequence[Method], fit: Part, test: Part, *, shuffles: int, seed: int, penalty: float = 1.0
) -> dict[Method, Separation]:
    """Fit on one part and score the other, then again with the labels of both shuffled by group.

    The same seed gives the same shuffles for any layer, so that the largest over layers is a null of the largest.
    """
    import numpy as np

    span = Span.of(fit.x)
    real = fit_directions(methods, fit.x, fit.labels, fit.groups, penalty=penalty, span=span)
    null = _shuffled_fits(methods, fit, test, shuffles, seed, penalty, span)
    return {
        m: Separation(
            real[m], real[m].project(test.x) - real[m].threshold,
            np.array([a for a, _ in null[m]]), np.array([b for _, b in null[m]]),
        )
        for m in methods
    }  # fmt: skip


def _shuffled_fits(
    methods: Sequence[Method], fit: Part, test: Part, shuffles: int, seed: int, penalty: float, span: Span
) -> dict[Method, list[tuple[float, float]]]:
    """AUROC and accuracy of every method under each shuffle."""
    found: dict[Method, list[tuple[float, float]]] = {m: [] for m in methods}
    for own, other in zip(
        shuffled(fit.labels.tolist(), fit.groups, shuffles, seed),
        shuffled(test.labels.tolist(), test.groups, shuffles, seed + 1),
        strict=True,
    ):
        try:
            fitted = fit_directions(methods, fit.x, own, fit.groups, penalty=penalty, span=span)
        except BadArguments:  # a shuffle that makes both means equal separates nothing
            for m in methods:
                found[m].append((0.5, 0.5))
            continue
        for m, direction in fitted.items():
            scores = direction.project(test.x) - direction.threshold
            found[m].append((auroc(scores, other), float(((scores > 0) == other).mean())))
    return found


def random_aurocs(test: Part, count: int, seed: int) -> ndarray:
    """AUROC of `count` random directions, each turned to its better side: what any direction gives in this space."""
    import numpy as np

    drawn = np.random.default_rng(seed).standard_normal((test.x.shape[1], count))
    found = np.array([auroc(scores, test.labels) for scores in (test.x @ drawn).T])
    return np.maximum(found, 1 - found)


