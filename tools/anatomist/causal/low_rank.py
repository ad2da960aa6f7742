"""Matrices of the vocabulary by the vocabulary, kept as a product of two thin factors and never written out.

M [n, m] is `left @ right.T` with left [n, r] and right [m, r]; r is a head's width. Entries, extremes, eigenvalues and
singular values follow from the factors: the eigenvalues of M that are not zero are those of right.T @ left [r, r], its
singular values those of R_left @ R_right.T with the triangular factors of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # of M written out at a time while it is searched


class Factors(NamedTuple):
    """M = left @ right.T."""

    left: Tensor  # [n, r]
    right: Tensor  # [m, r]

    def entries(self, rows: Sequence[int], columns: Sequence[int]) -> Float[Tensor, "a b"]:
        """The part of M at the given rows and columns."""
        return self.left[list(rows)] @ self.right[list(columns)].T

    def core(self) -> Float[Tensor, "r r"]:
        """right.T @ left: it has the eigenvalues of M that are not zero."""
        return self.right.T @ self.left


class Entry(NamedTuple):
    """One entry of M."""

    row: int
    column: int
    value: float


def extremes(
    m: Factors, k: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The k largest and the k smallest entries, most extreme first; M passes by in pieces of a few rows."""
    n, width = m.left.shape[0], m.right.shape[0]
    size = max(1, CHUNK_BYTES // (width * m.left.dtype.itemsize))
    high: list[Entry] = []
    low: list[Entry] = []
    for start in range(0, n, size):
        piece = m.left[start : start + size] @ m.right.T
        high = sorted([*high, *_most(piece, k, start, largest=True)], key=lambda e: -e.value)[:k]
        low = sorted([*low, *_most(piece, k, start, largest=False)], key=lambda e: e.value)[:k]
        progress(min(n, start + size), n)
    return tuple(high), tuple(low)


def _most(piece: Float[Tensor, "a m"], k: int, start: int, *, largest: bool) -> list[Entry]:
    """The k largest (or smallest) entries of a piece: they lie in the k rows with the most extreme ends."""
    ends = piece.amax(1) if largest else piece.amin(1)
    rows = ends.topk(min(k, piece.shape[0]), largest=largest).indices
    best = piece[rows].topk(min(k, piece.shape[1]), dim=1, largest=largest)
    found = zip(rows.tolist(), best.values.tolist(), best.indices.tolist(), strict=True)
    return [Entry(start + row, c, v) for row, values, places in found for v, c in zip(values, places, strict=True)]


def own_ranks(m: Factors, rows: Sequence[int]) -> list[int]:
    """For chosen rows of a square M, how many other entries of the row are as large as the one on the diagonal."""
    size = max(1, CHUNK_BYTES // (m.right.shape[0] * m.left.dtype.itemsize))
    found: list[int] = []
    for start in range(0, len(rows), size):
        chosen = list(rows[start : start + size])
        piece = m.left[chosen] @ m.right.T
        own = piece[range(len(chosen)), chosen]
        found += ((piece >= own[:, None]).sum(1) - 1).tolist()
    return found


def eigenvalues(core: Float[Tensor, "*more r r"]) -> ndarray:
    """Complex eigenvalues [.., r] of square matrices, largest magnitude first, in double precision."""
    import numpy as np

    values = np.linalg.eigvals(core.double().cpu().numpy())
    return np.take_along_axis(values, np.argsort(-np.abs(values), axis=-1), axis=-1)


def positive_share(values: ndarray) -> ndarray:
    """Sum of eigenvalues over the sum of their magnitudes, -1 to 1; 0 for a matrix of zeros (Elhage et al. 2021)."""
    import numpy as np

    whole = np.abs(values).sum(-1)
    return np.where(whole > 0, values.sum(-1).real / np.where(whole > 0, whole, 1.0), 0.0)


def singular_values(m: Factors) -> ndarray:
    """Singular values of M [r], largest first."""
    import numpy as np

    left, right = (triangular(x) for x in m)
    return np.linalg.svd((left @ right.T).double().cpu().numpy(), compute_uv=False)


def triangular(x: Float[Tensor, "n r"]) -> Float[Tensor, "s r"]:
    """R of x = U R with orthonormal U: |x y| = |R y| for every y. In double precision inside."""
    packed = x.double().geqrf()[0]
    return packed[: min(x.shape)].triu().to(x.dtype)
