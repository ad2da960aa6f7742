"""Erasing a concept from activations by the smallest affine edit that leaves no linear trace (LEACE).

n examples, D width. With mean m, covariance S and cross-covariance s of the activations x and the label z, and W the
inverse square root of S, LEACE is x - W^-1 u u^T W (x - m), u along W s (Belrose et al., arXiv 2306.03819, theorem 4.3;
computed by the authors' package `concept-erasure`). It is an oblique projection of rank 1: what is read is u^T W, what
is written W^-1 u. Everything is in double precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

SMALLEST = 1e-7  # correlation of the whitened activations and the label below which there is nothing to erase


class Eraser(NamedTuple):
    """x - ((x - offset) . read) write."""

    offset: ndarray  # [D]
    read: ndarray  # [D]
    write: ndarray  # [D]

    def __call__(self, x: ndarray) -> ndarray:
        """The examples after erasure, [n, D]."""
        return x - ((x - self.offset) @ self.read)[:, None] * self.write

    def value(self, like: Float[Tensor, " d"]) -> Float[Tensor, "k2 d"]:
        """The value of an edit with rule 'erase'."""
        return like.new_tensor([self.offset.tolist(), self.read.tolist(), self.write.tolist()])


def leace(x: ndarray, labels: ndarray, *, shrinkage: bool, like: Float[Tensor, " d"]) -> Eraser:
    """The least-squares eraser of a label of two values.

    `shrinkage` estimates the covariance by optimal linear shrinkage, better for texts that were not fitted on; without
    it the edit is the smallest on the very examples. The class means become equal on the examples either way.

    Raises:
        BadArguments: one label only, or the two means are equal already.
    """
    from concept_erasure import LeaceFitter

    wide = like.double().new_tensor(x.tolist())
    z = wide.new_tensor(labels.tolist())
    fitter = LeaceFitter(
        x.shape[1], 1, dtype=wide.dtype, device=wide.device, shrinkage=shrinkage, svd_tol=SMALLEST,
        constrain_cov_trace=False,  # its mixture with an orthogonal projection would leave a linear trace
    )  # fmt: skip
    found = fitter.update(wide, z).eraser
    assert found.bias is not None, "the fit is affine"
    read, write = found.proj_right[0], found.proj_left[:, 0]
    if not read.norm() > 0 or not write.norm() > 0:
        raise BadArguments("the two sets have the same mean at this place: there is nothing to erase linearly.")
    return Eraser(*(part.cpu().numpy() for part in (found.bias, read, write)))


def orthogonal(x: ndarray, direction: ndarray) -> Eraser:
    """The orthogonal projection that takes a direction out, about the examples' mean."""
    import numpy as np

    unit = direction / np.linalg.norm(direction)
    return Eraser(x.mean(0), unit, unit)


def mean_gap(x: ndarray, labels: ndarray) -> ndarray:
    """Difference of the two class means [D]."""
    return x[labels == 1].mean(0) - x[labels == 0].mean(0)


def size_of_edit(x: ndarray, erased: ndarray) -> float:
    """Mean squared change over the total variance: the share of the variance that the edit takes."""
    return float(((erased - x) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
