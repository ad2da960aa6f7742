"""Circuits against the model itself, and against random matrices in a head's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..measures.metrics import widened
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site
from ..model.sweep_cost import pieces
from ..result import SelfTest
from .circuits import ROWS, core_of, linear_part, qk_factors, soft_capped, values

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

AGREE, AGREE_HALF = 1e-3, 5e-2  # largest difference accepted, of the largest number; in half precision


def check_scores(
    model: Model, layer: int, head: int, query: Float[Tensor, "n D"], key: Float[Tensor, "n D"], offset: int
) -> SelfTest:
    """Scores of a few pairs through the factors against the model's own on the same residuals.

    The residual before the layer is set to each key at position 0 and to its query at `offset` (at least 1).
    """
    site, dtype = Site("scores", layer, head), model.weights.o(layer).dtype
    value = query[:, None].expand(-1, offset + 1, -1).clone()
    value[:, 0] = key
    tokens = model.tokenize([[0] * (offset + 1)] * query.shape[0], bos=False)
    edit = Edit(site=Site("resid_pre", layer), rule="set", value=value.to(dtype))
    own = widened(model.run(tokens, read=[site], edits=[edit]).reads[site][:, offset, 0])
    left, right = qk_factors(model, layer, head, query, key, offset)
    mine = soft_capped((left * right).sum(-1), model.weights.attention_rule(layer).score_cap)
    return _agreement("scores against the model's own on the same vectors", mine, own, dtype.itemsize)


def check_values(model: Model, layer: int, head: int, x: Float[Tensor, "n D"]) -> SelfTest:
    """Values through the weights against what the head mixes in a prompt of one token, its residual set to x."""
    site, dtype = Site("head", layer, head), model.weights.o(layer).dtype
    tokens = model.tokenize([[0]] * x.shape[0], bos=False)
    edit = Edit(site=Site("resid_pre", layer), rule="set", value=x[:, None].to(dtype))
    own = widened(model.run(tokens, read=[site], edits=[edit]).reads[site][:, 0])
    mine = values(model, layer, head, x, biases=True)
    return _agreement("values against the model's own on the same vectors", mine, own, dtype.itemsize)


def _agreement(name: str, mine: Float[Tensor, "*any"], own: Float[Tensor, "*any"], item_bytes: int) -> SelfTest:
    """Largest difference as a share of the largest number."""
    largest = float(own.abs().max()) or 1.0
    found = float((mine - own).abs().max()) / largest
    tolerance = AGREE_HALF if item_bytes < 4 else AGREE
    return SelfTest(name=name, expected=0.0, found=found, tolerance=tolerance, passed=found <= tolerance)


def random_qk_cores(
    model: Model, layer: int, query: Float[Tensor, "n D"], key: Float[Tensor, "n D"], draws: int, seed: int
) -> Float[Tensor, "draws h h"]:
    """Cores of the QK circuit with random W_Q and W_K in place of a head's, without biases."""
    norm = model.weights.attention_norm(layer)
    gram = None
    for part in pieces(query.shape[0], ROWS):
        a, b = (norm.frozen(x[part.start : part.stop], norm.scale(x[part.start : part.stop])) for x in (query, key))
        gram = b.T @ a if gram is None else gram + b.T @ a
    assert gram is not None
    w_q, w_k = random_pair(gram, model.info.d_head, draws, seed)
    return w_k.transpose(1, 2) @ gram @ w_q


def random_ov_cores(
    model: Model, layer: int, gram: Float[Tensor, "D D"], draws: int, seed: int
) -> Float[Tensor, "draws h h"]:
    """Cores of the OV circuit with random W_V and W_O in place of a head's."""
    w_v, w_o = random_pair(gram, model.info.d_head, draws, seed)
    return core_of(model, layer, w_o.transpose(1, 2), w_v, gram)


def random_pair(
    like: Float[Tensor, "D D"], width: int, draws: int, seed: int
) -> tuple[Float[Tensor, "draws D h"], Float[Tensor, "draws D h"]]:
    """Two stacks of Gaussian matrices, D by a head's width."""
    import numpy as np

    drawn = np.random.default_rng(seed).standard_normal((2, draws, like.shape[0], width), dtype=np.float32)
    both = like.new_tensor(drawn)
    return both[0], both[1]


def check_written(model: Model, x: Float[Tensor, "n D"]) -> SelfTest:
    """Logits of directions by the weights against the model's own, its last residual set to them."""
    w, site = model.weights, Site("resid_post", model.info.n_layers - 1)
    norm, unembed, dtype = w.final_norm(), widened(w.unembed()), w.o(0).dtype
    tokens = model.tokenize([[0]] * x.shape[0], bos=False)
    edit = Edit(site=site, rule="set", value=x[:, None].to(dtype))
    own = model.run(tokens, edits=[edit], logits_at=tokens.last).logits
    assert own is not None
    mine = linear_part(norm, x) @ unembed / norm.scale(x)
    for bias in (None if norm.bias is None else widened(norm.bias) @ unembed, w.unembed_bias()):
        mine = mine if bias is None else mine + widened(bias)
    mine = soft_capped(mine, w.logit_softcap())
    return _agreement("logits of what is written against the model's own", mine, widened(own), dtype.itemsize)
