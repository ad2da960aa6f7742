"""What features say to the vocabulary directly: their directions in the residual stream, through norm and unembedding.

A direction at `head` goes through the output matrix, at `neuron` through the MLP's; at all other sites it is in the
residual stream already. With s the divisor of the final norm at a token (frozen), one unit of feature i adds
scale(x) / s * W_U^T (w * centred(d_i)) to that token's own logits, before any soft-cap. Effects through later layers
are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from einops import einsum, rearrange

from ..errors import Unsupported
from ..model.protocol import Model
from .protocol import Dictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

NOTHING = 1e-6  # of a direction's norm: logits that small are rounding
CHUNK = 2**26  # numbers of features x vocabulary held at once


def residual_directions(
    model: Model, dictionary: Dictionary, features: Sequence[int]
) -> Float[Tensor, "n D"]:
    """What one unit of each feature adds to the residual stream.

    Raises:
        Unsupported: a norm stands between the site and the residual stream, so that it adds no fixed direction.
    """
    site = dictionary.info.writes
    rows = dictionary.directions[list(features)]
    weights = model.weights
    if site.kind in ("resid_pre", "resid_mid", "resid_post", "embed", "attn_out", "mlp_out"):
        return rows
    if site.kind not in ("head", "neuron") or model.info.post_norms or site.layer is None:
        raise Unsupported(
            f"a feature at {site} of {model.info.name} adds no fixed direction to the residual stream (a norm stands "
            "between them); its direct logit effect is not defined. Choose a dictionary of the residual stream."
        )
    if site.kind == "head":
        by_head = rearrange(rows, "n (H h) -> n H h", H=model.info.n_heads)
        return einsum(by_head, weights.o(site.layer).to(rows), "n H h, H h D -> n D")
    out = weights.mlp_out(site.layer)
    assert out is not None
    return rows @ out.to(rows)


def direct_logits(
    model: Model, directions: Float[Tensor, "n D"], tokens: Sequence[int] | None = None
) -> Float[Tensor, "n V"]:
    """Logits of each direction through the final norm's weight and the unembedding, the norm's divisor left out (1)."""
    norm = model.weights.final_norm()
    through = norm.frozen(directions.to(_like(model)), directions.new_ones((1, 1)).to(_like(model)))
    return through @ model.weights.unembed(tokens)


def promoted(
    model: Model, directions: Float[Tensor, "n D"], k: int
) -> list[tuple[list[tuple[int, float]], list[tuple[int, float]]]]:
    """For each direction the k tokens it raises most and the k it lowers most, as (id, logit), after taking away the
    mean over the vocabulary (which the softmax does not see)."""
    found = []
    step = max(1, CHUNK // model.info.d_vocab)
    for start in range(0, len(directions), step):
        logits = direct_logits(model, directions[start : start + step])
        logits = (logits - logits.mean(-1, keepdim=True)).float()
        logits = logits * (logits.abs() > NOTHING * directions.norm(dim=-1).max())
        most, least = logits.topk(k, dim=-1), (-logits).topk(k, dim=-1)
        for i in range(len(logits)):
            up = list(zip(most.indices[i].tolist(), most.values[i].tolist(), strict=True))
            down = list(zip(least.indices[i].tolist(), (-least.values[i]).tolist(), strict=True))
            found.append((up, down))
    return found


def _like(model: Model) -> Tensor:
    """A weight whose device and dtype the unembedding has."""
    return model.weights.unembed([0])
