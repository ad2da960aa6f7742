"""What reads a place: its row space, and a subspace taken apart by it.

Interchanging a subspace can act through directions that nothing reads, tied to others that are otherwise at rest
(Makelov et al., arXiv 2311.17030, section 3): the part of a subspace in the row space of what follows must do it alone.
f features of the place, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..measures.metrics import widened
from ..model.protocol import Model, Norm
from ..model.sites import Site
from .direct_effects import wide
from .subspaces import RANK, orthonormal

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Halves(NamedTuple):
    """A subspace taken apart by what can read it."""

    row: Float[Tensor, "r f"] | None  # what is read; None where none of it is
    null: Float[Tensor, "n f"] | None
    share: float  # of the basis that lies in the row space: mean squared length
    null_dimensions: int  # of the place


def halves(basis: Float[Tensor, "k f"], read: Float[Tensor, "r f"]) -> Halves:
    """The basis projected on the row space (an orthonormal basis of it is given) and on the null space.

    A projection that keeps less than a thousandth of a direction's length counts as none.
    """
    wide_basis = basis.to(read)
    row = wide_basis @ read.T @ read
    share = float(row.pow(2).sum() / len(basis))
    return Halves(_kept(row), _kept(wide_basis - row), share, read.shape[1] - len(read))


def _kept(part: Float[Tensor, "k f"]) -> Float[Tensor, "r f"] | None:
    if float(part.norm(dim=1).max()) < 1e-3:
        return None
    return orthonormal(part, 1e-3)


def row_space(model: Model, site: Site) -> Float[Tensor, "r f"] | None:
    """An orthonormal basis of the directions of a place that anything after it can read; None for q and k.

    Heads, values and neurons are read by their output matrix; the residual and what is added to it by the queries,
    keys, values and MLPs behind it, each through its norm's weights, and by the unembedding. (A norm's scale sees every
    direction: it is left out.)

    Raises:
        Unsupported: the weights of this architecture are not known.
    """
    if site.kind in ("q", "k"):
        return None
    info, weights, layer = model.info, model.weights, site.layer or 0
    if site.kind == "neuron":
        out = weights.mlp_out(layer)
        assert out is not None
        return _span([out], site.index)
    if site.kind in ("head", "v"):
        group = info.n_heads // info.n_kv_heads if site.kind == "v" else 1
        first = (site.index or 0) * group
        return _span([weights.o(layer)[h] for h in range(first, first + group)], None)
    return _span(list(_readers(model, site)), None)


def _readers(model: Model, site: Site) -> Iterator[Float[Tensor, "f m"]]:
    """Every matrix that reads the residual after a place, its norm's weights in it."""
    info, weights = model.info, model.weights
    layer = -1 if site.layer is None else site.layer
    for n in range(max(layer, 0), info.n_layers):
        here = n == layer
        if not here or site.kind in ("resid_pre", "embed"):
            norm = weights.attention_norm(n)
            for matrix in (weights.q(n), weights.k(n), weights.v(n)):
                yield from (_normed(norm, one) for one in matrix)
        behind_attention = site.kind in ("resid_pre", "resid_mid") or (site.kind == "attn_out" and not info.parallel)
        if not here or behind_attention:
            into = (weights.mlp_in(n), weights.mlp_gate(n))
            yield from (_normed(weights.mlp_norm(n), one) for one in into if one is not None)
    yield _normed(weights.final_norm(), weights.unembed())


def _normed(norm: Norm, matrix: Float[Tensor, "f m"]) -> Float[Tensor, "f m"]:
    """What a matrix reads before a norm of scale 1."""
    own = wide(norm)
    rows = widened(matrix) if own.weight is None else own.weight[:, None] * widened(matrix)
    return rows - rows.mean(0, keepdim=True) if norm.kind == "layer" else rows


def _span(matrices: Sequence[Float[Tensor, "f _"]], index: int | None) -> Float[Tensor, "r f"]:
    """A basis of the directions that some matrix does not send to 0, by the sum of their Gram matrices."""
    import torch

    total = sum(m.double() @ m.double().T for m in matrices)
    assert isinstance(total, torch.Tensor)
    if index is not None:
        total = total[index : index + 1, index : index + 1]
    sizes, vectors = torch.linalg.eigh(total)
    return vectors.T[sizes > RANK**2 * float(sizes.max())].to(widened(matrices[0]))
