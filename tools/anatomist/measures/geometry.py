"""How points lie in space: cosines, principal components, how many dimensions they use, and whether an order shows.

x [n, D]: n points in D dimensions. Centred: the mean of the points taken away.

Source: Ethayarajh, arXiv 1909.00512 (anisotropy: the mean cosine of random pairs); Mu & Viswanath, arXiv 1702.01417
(take the mean away); Timkey & van Schijndel, arXiv 2109.04404, equation 3 (a dimension's share of the mean cosine);
participation ratio (sum of variances)^2 / sum of their squares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from numpy import ndarray

Order = Literal["line", "cycle"]


class Principal(NamedTuple):
    """Principal components of centred points, largest variance first."""

    variances: ndarray  # [k] mean squares along each, k = min(n, D)
    coordinates: ndarray  # [n, k]; each column's largest entry in size is positive
    components: ndarray  # [k, D]

    @property
    def shares(self) -> ndarray:
        total = self.variances.sum()
        return self.variances / total if total > 0 else self.variances


class OrderFit(NamedTuple):
    """How much of the points' variance a given order of them explains."""

    share: float
    null: ndarray  # the same of shuffled orders
    p: float  # (1 + shuffled orders that do as well) / (1 + shuffled)


def unit(x: ndarray) -> ndarray:
    """Each point divided by its length; a point at the origin stays there."""
    import numpy as np

    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1.0)


def centred(x: ndarray) -> ndarray:
    return x - x.mean(0)


def cosines(x: ndarray) -> ndarray:
    """[n, n]."""
    u = unit(x)
    return u @ u.T


def mean_cosine(x: ndarray) -> float:
    """Mean over all pairs of different points."""
    return float(dimension_shares(x).sum())


def dimension_shares(x: ndarray) -> ndarray:
    """[D]: what each dimension adds to the mean cosine, sum over pairs of u_i u_j along it; they sum to it."""
    u, n = unit(x), len(x)
    return (u.sum(0) ** 2 - (u**2).sum(0)) / (n * (n - 1))


def principal(x: ndarray) -> Principal:
    """Of the centred points."""
    import numpy as np

    u, s, v = np.linalg.svd(centred(x), full_matrices=False)
    coordinates = u * s
    turn = np.sign(coordinates[abs(coordinates).argmax(0), np.arange(len(s))])
    turn = np.where(turn == 0, 1.0, turn)
    return Principal(s**2 / len(x), coordinates * turn, v * turn[:, None])


def participation(variances: ndarray) -> float:
    """Between 1 (all on a line) and the number of dimensions (all alike); 0 for points that do not differ."""
    total = variances.sum()
    return float(total**2 / (variances**2).sum()) if total > 0 else 0.0


def participation_of_noise(n: int, width: int) -> float:
    """What n points of a round cloud of `width` dimensions have on average: few points cannot show many dimensions.

    With m = n - 1 degrees of freedom (tr S)^2 / tr S^2 tends to m D / (m + D) (moments of a Wishart matrix).
    """
    return (n - 1) * width / (n - 1 + width)


def components_for(shares: ndarray, wanted: float) -> int:
    """The fewest leading components that hold the share wanted of the variance."""
    import numpy as np

    return int(np.searchsorted(np.cumsum(shares), wanted - 1e-12) + 1)


def order_fit(x: ndarray, order: Order, *, seed: int, shuffles: int = 1000) -> OrderFit:
    """Points in the order given, against the same points in shuffled orders.

    The share of the centred points' sum of squares explained by a line (the index) or by one turn of a circle (cosine
    and sine of 2 pi index / n): the points' regression on these.
    """
    import numpy as np

    away, rng = centred(np.asarray(x, dtype=float)), np.random.default_rng(seed)
    n, total = len(away), float((away**2).sum())
    index = np.arange(n)
    turn = 2 * np.pi * index / n
    design = np.stack([np.cos(turn), np.sin(turn)] if order == "cycle" else [index - index.mean()], axis=1)
    design = design / np.linalg.norm(design, axis=0)  # columns are orthogonal to each other and to the mean

    def share(points: ndarray) -> float:
        return float(((design.T @ points) ** 2).sum()) / total if total else 0.0

    own = share(away)
    null = np.array([share(away[rng.permutation(n)]) for _ in range(shuffles)])
    return OrderFit(own, null, (1 + int((null >= own - 1e-12).sum())) / (1 + shuffles))
