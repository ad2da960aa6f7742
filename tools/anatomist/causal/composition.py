"""How much of what one head reads lies along what another writes: composition scores through low-rank factors.

D model width, h head width, N heads (layer by layer). Activations multiply from the left. With OV_a = W_V W_O of the
writer and QK_b = W_Q W_K^T, OV_b of the reader:

    Q: |OV_a QK_b| / (|OV_a| |QK_b|)      K: |OV_a QK_b^T| / (|OV_a| |QK_b|)      V: |OV_a OV_b| / (|OV_a| |OV_b|)

in Frobenius norms (Elhage et al. 2021, https://transformer-circuits.pub/2021/framework, "Composition"). A matrix [D, D]
of rank h is never written out: with W_V = U R, U of orthonormal columns, |W_V W_O X| = |R W_O X|, and likewise on the
other side. Every score is then the norm of a product [h, D] [D, h].

Norm weights before attention are taken into the reading matrices, the centring of a layer norm too, and the linear part
of a norm after attention into the writing ones: copies, nothing in the model changes. Scales cancel in the ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..measures.metrics import widened
from ..model.protocol import Model
from ..model.sites import Site
from .circuits import kv_head, writes
from .low_rank import triangular

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

CompositionKind = Literal["q", "k", "v"]


class Read(NamedTuple):
    """What the heads of a layer read of the residual: [H, D, h], the other factor's norm taken in."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor


def written(model: Model, layer: int) -> Float[Tensor, "H h D"]:
    """R W_O of every head: |written X| is |W_V W_O X|."""
    info = model.info
    reads = _through_norm(model, layer, widened(model.weights.v(layer)))
    parts = [triangular(reads[kv_head(info, h)]) @ writes(model, layer, h) for h in range(info.n_heads)]
    return _stacked(parts)


def read(model: Model, layer: int, kinds: tuple[CompositionKind, ...], offset: int) -> Read:
    """The reading factors of a layer's heads; queries and keys at a relative position (`offset`)."""
    info, w = model.info, model.weights
    group = [kv_head(info, h) for h in range(info.n_heads)]
    values = _through_norm(model, layer, widened(w.v(layer)))
    v = _stacked([values[g] @ triangular(writes(model, layer, h).T).T for h, g in enumerate(group)])
    if not {"q", "k"} & set(kinds):
        return Read(None, None, v)
    queries = w.rotated(layer, _through_norm(model, layer, widened(w.q(layer))), offset)
    keys = w.rotated(layer, _through_norm(model, layer, widened(w.k(layer))), 0)
    q = [queries[h] @ triangular(keys[g]).T for h, g in enumerate(group)]
    k = [keys[g] @ triangular(queries[h]).T for h, g in enumerate(group)]
    return Read(_stacked(q), _stacked(k), v)


def scores_between(write: Float[Tensor, "A r D"], reads: Float[Tensor, "B D s"]) -> Float[Tensor, "A B"]:
    """|write_a read_b| / (|write_a| |read_b|) of every pair; 0 where a matrix is 0."""
    a, b = write.shape[0], reads.shape[0]
    product = write.flatten(0, 1) @ reads.transpose(0, 1).flatten(1)  # [A r, B s]
    norms = product.unflatten(0, (a, -1)).unflatten(2, (b, -1)).square().sum((1, 3)).sqrt()
    scale = write.flatten(1).norm(dim=1)[:, None] * reads.transpose(1, 2).flatten(1).norm(dim=1)
    return (norms / scale.clamp(min=1e-30)).where(scale > 0, norms.new_zeros(()))


def composition(
    model: Model, kind: CompositionKind, write: dict[int, Tensor], reads: dict[int, Read],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, "A B"]:  # fmt: skip
    """Scores of all writers (rows, by layer) on all readers (columns, by layer); -1 where the reader is not later."""
    heads, pairs = model.info.n_heads, [(a, b) for a in write for b in reads if b > a]
    rows, columns = ({layer: slice(i * heads, (i + 1) * heads) for i, layer in enumerate(d)} for d in (write, reads))
    out = write[pairs[0][0]].new_full((len(write) * heads, len(reads) * heads), -1.0)
    for done, (early, late) in enumerate(pairs):
        out[rows[early], columns[late]] = scores_between(write[early], getattr(reads[late], kind))
        progress(done + 1, len(pairs))
    return out


def written_out(model: Model, kind: CompositionKind, writer: Site, reader: Site, offset: int) -> float:
    """One score from the matrices themselves, [D, D] each: dear, and another way to the same number."""
    (early, a), (late, b) = ((site.layer or 0, site.index or 0) for site in (writer, reader))
    w, info = model.weights, model.info
    first = _through_norm(model, early, widened(w.v(early)))[kv_head(info, a)] @ writes(model, early, a)
    values, keys = (_through_norm(model, late, widened(m(late)))[kv_head(info, b)] for m in (w.v, w.k))
    queries = _through_norm(model, late, widened(w.q(late)))[b]
    if kind == "v":
        second = values @ writes(model, late, b)
    else:
        second = w.rotated(late, queries, offset) @ w.rotated(late, keys, 0).T
        second = second if kind == "q" else second.T
    scale = float(first.norm() * second.norm())
    return float((first @ second).norm()) / scale if scale else 0.0


def random_scores(like: Float[Tensor, "h D"], draws: int, seed: int) -> ndarray:
    """Scores between random Gaussian matrices of the heads' shape, [draws]: what composition is without any."""
    import numpy as np

    width, d = like.shape
    drawn = np.random.default_rng(seed)
    found = np.empty(draws)
    for i in range(draws):
        one, two, three, four = (like.new_tensor(drawn.standard_normal((d, width))) for _ in range(4))
        left, right = triangular(one) @ two.T, three @ triangular(four).T
        found[i] = float((left @ right).norm() / (left.norm() * right.norm()))
    return found


def _through_norm(model: Model, layer: int, matrices: Float[Tensor, "n D h"]) -> Float[Tensor, "n D h"]:
    """Reading matrices behind the norm: its weight on the rows, and no part along a layer norm's mean."""
    norm = model.weights.attention_norm(layer)
    out = matrices if norm.weight is None else matrices * widened(norm.weight)[:, None]
    return out - out.mean(1, keepdim=True) if norm.kind == "layer" else out


def _stacked(parts: list[Tensor]) -> Float[Tensor, "H a b"]:
    out = parts[0].new_zeros((len(parts), *parts[0].shape))
    for i, part in enumerate(parts):
        out[i] = part
    return out
