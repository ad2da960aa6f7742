"""Matrices of the vocabulary by the vocabulary, kept as a product of two thin factors and never written out.

A matrix M [n, m] is `left @ right.T` with left [n, r] and right [m, r]; r is a head's width. Entries, extremes,
eigenvalues and singular values all follow from the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # of M written out at a time while it is searched
EIGENVALUE_FLOOR = 1e-6  # of the largest: what is smaller is rounding, not signal


class Factors(NamedTuple):
    """M = left @ right.T."""

    left: Tensor  # [n, r]
    right: Tensor  # [m, r]

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[0]

    def entries(self, rows: Sequence[int], columns: Sequence[int]) -> Float[Tensor, "a b"]:
        """The part of M at the given rows and columns."""
        return self.left[list(rows)] @ self.right[list(columns)].T


class Entry(NamedTuple):
    """One entry of M."""

    row: int
    column: int
    value: float


def extremes(
    m: Factors, k: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[Entry], list[Entry]]:
    """The k largest and the k smallest entries, best first. M passes by in pieces of a few rows.

    The k largest entries of a piece lie in the k rows with the largest maxima, so only those rows are sorted.
    """
    n, width = m.shape
    size = max(1, CHUNK_BYTES // (width * m.left.dtype.itemsize))
    high: list[Entry] = []
    low: list[Entry] = []
    for start in range(0, n, size):
        piece = m.left[start : start + size] @ m.right.T
        high = sorted([*high, *_largest(piece, k, start)], key=lambda e: -e.value)[:k]
        low = sorted([*low, *_smallest(piece, k, start)], key=lambda e: e.value)[:k]
        progress(min(n, start + size), n)
    return high, low


def _largest(piece: Float[Tensor, "a m"], k: int, start: int) -> Iterator[Entry]:
    rows = piece.amax(1).topk(min(k, piece.shape[0])).indices
    best, columns = piece[rows].topk(min(k, piece.shape[1]), dim=1)
    for row, values, places in zip(rows.tolist(), best.tolist(), columns.tolist(), strict=True):
        yield from (Entry(start + row, c, v) for v, c in zip(values, places, strict=True))


def _smallest(piece: Float[Tensor, "a m"], k: int, start: int) -> Iterator[Entry]:
    rows = piece.amin(1).topk(min(k, piece.shape[0]), largest=False).indices
    best, columns = piece[rows].topk(min(k, piece.shape[1]), dim=1, largest=False)
    for row, values, places in zip(rows.tolist(), best.tolist(), columns.tolist(), strict=True):
        yield from (Entry(start + row, c, v) for v, c in zip(values, places, strict=True))


def eigenvalues(core: Float[Tensor, "*more r r"]) -> Float[Tensor, "*more r 2"]:
    """Eigenvalues, largest magnitude first, as real and imaginary part; `core` is right.T @ left.

    The eigenvalues of left @ right.T that are not zero are those of right.T @ left. In double precision: such matrices
    are far from normal.
    """
    values = core.double().linalg_eigvals_by_magnitude() if False else _sorted_eigenvalues(core)
    return values


def _sorted_eigenvalues(core: Tensor) -> Tensor:
    values = core.double().cpu()
    found = _eigvals(values)
    order = found.abs().argsort(dim=-1, descending=True)
    sorted_ = found.gather(-1, order)
    return sorted_.real.new_empty((*sorted_.shape, 2)).copy_(_pairs(sorted_))
