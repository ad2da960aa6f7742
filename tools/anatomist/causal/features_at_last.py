"""What features say at the last token directly: through the final norm, its divisor frozen, and the unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..dictionaries.logits import direct_logits, residual_directions
from ..dictionaries.protocol import Dictionary
from ..dictionaries.reading import Encoded
from ..errors import Unsupported
from ..measures.statistics import Clusters
from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts
from ..result import Estimate

if TYPE_CHECKING:
    from numpy import ndarray


class Looked(NamedTuple):
    """The encoded tokens that are looked at."""

    encoded: Encoded
    prompts: EncodedPrompts
    chosen: ndarray  # [tokens] bool: which of the encoded tokens are looked at


def direct_on_answer(
    model: Model, dictionary: Dictionary, looked: Looked, features: Sequence[int], seed: int
) -> list[Estimate] | None:
    """Direct effect of each feature at the last token on answer minus wrong, per prompt, then averaged.

    None without answers, or where the dictionary's directions do not stand in the residual stream.
    """
    import numpy as np

    prompts = looked.prompts
    if prompts.answers is None or prompts.wrongs is None:
        return None
    try:
        directions = residual_directions(model, dictionary, features)
    except Unsupported:
        return None
    scale = _final_scales(model, prompts.clean)
    at_last = _activations_at_last(looked, features)  # [prompts, features], in units of the direction
    said = direct_logits(model, directions).float().cpu().numpy()
    toward = np.stack([
        said[:, list(a)].mean(1) - said[:, list(w)].mean(1)
        for a, w in zip(prompts.answers, prompts.wrongs, strict=True)
    ])  # fmt: skip
    effects = at_last * toward / scale[:, None]
    found = Clusters(prompts.clusters, seed=seed).means(effects)
    return [found.estimate(k) for k in range(len(features))]


def _activations_at_last(looked: Looked, features: Sequence[int]) -> ndarray:
    import numpy as np

    encoded, prompts = looked.encoded, looked.prompts
    place = {feature: k for k, feature in enumerate(features)}
    out = np.zeros((prompts.n, len(features)))
    last = np.array(prompts.clean.last)
    here = (encoded.positions == last[encoded.rows])[encoded.token]
    for token, feature, value in zip(encoded.token[here], encoded.feature[here], encoded.value[here], strict=True):
        if int(feature) in place:
            out[encoded.rows[token], place[int(feature)]] = value * encoded.worth[token]
    return out


def _final_scales(model: Model, tokens: Tokens) -> ndarray:
    """The final norm's divisor at each prompt's last token."""
    site = Site("resid_post", model.info.n_layers - 1)
    residual = model.run(tokens, read=[site]).reads[site]
    last = residual[range(tokens.n_rows), list(tokens.last)]
    return model.weights.final_norm().scale(last)[:, 0].float().cpu().numpy()
