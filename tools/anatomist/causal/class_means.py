"""The plain rival of a learned subspace: the directions along which the means of the answers' classes lie apart.

N interchanges (a base run x_i and a source run s_i), f features of the place, k dimensions. The class of a base run is
its own answer, that of a source run the answer wanted of the interchange. Every pair is centred on its middle first,
d_i = (s_i - x_i) / 2, so that what both runs share (wording, the rest of the prompt) does not count. With M_c the mean
of the n_c centred runs of class c:

    S = sum_c n_c M_c M_c^T          scatter between the classes [f, f]

The basis: the k leading eigenvectors of S. Of two classes the first is the difference of their means, normalised. S has
fewer dimensions than there are classes: what is missing up to k are the leading principal directions of the pairs'
differences, the former projected out.

Source: Rao 1948, "The utilization of multiple measurements in problems of biological classification" (scatter between
classes); Marks & Tegmark, arXiv 2310.06824, section 5 (difference of means as a direction to intervene on).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..measures.metrics import IdSets, widened
from .subspaces import RANK, Ends

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class ClassBasis(NamedTuple):
    """Orthonormal directions, those of the class means first."""

    basis: Float[Tensor, "m f"]  # m < k only where all the pairs differ in fewer dimensions
    classes: int
    from_means: int  # the first so many come from the class means, the others from the pairs' differences


def class_basis(ends: Ends, kept: IdSets, wanted: IdSets, dimension: int) -> ClassBasis:
    """What the differences between class means span, cut or filled to `dimension`; the runs must differ somewhere."""
    import torch

    half = (widened(ends.source) - widened(ends.base)) / 2
    least = RANK * float(half.norm())
    sums = _weighted_means(half, kept, wanted)
    lead = _principal(sums, least)[:dimension]
    more = _principal(half - half @ lead.T @ lead, least)[: dimension - len(lead)]
    exact = torch.linalg.qr(torch.cat([lead, more]).T).Q.T  # keeps the order, and what the first so many span
    return ClassBasis(exact, len(sums), len(lead))


def _weighted_means(half: Float[Tensor, "N f"], kept: IdSets, wanted: IdSets) -> Float[Tensor, "C f"]:
    """sqrt(n_c) M_c for every class."""
    bases, sources = ([tuple(sorted(set(ids))) for ids in sets] for sets in (kept, wanted))
    number = {label: c for c, label in enumerate(dict.fromkeys([*bases, *sources]))}
    sums, sizes = half.new_zeros((len(number), half.shape[1])), half.new_zeros(len(number))
    for labels, sign in ((bases, -1), (sources, 1)):
        at = half.new_tensor([number[label] for label in labels]).long()
        sums.index_add_(0, at, sign * half)
        sizes.index_add_(0, at, half.new_ones(len(at)))
    return sums / sizes.sqrt()[:, None]


def _principal(rows: Float[Tensor, "n f"], least: float) -> Float[Tensor, "r f"]:
    """Principal directions (about 0), longest first; singular values up to `least` count as none."""
    import torch

    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    return directions[sizes > least]
