"""What the places of a model mean, proven on the model itself: a kind whose identity fails is not offered.

One short pass reads everything and checks, in every layer,

    resid_pre + attn_out = resid_mid        resid_pre + attn_out + mlp_out = resid_post
    pattern = softmax(scores)               head = pattern @ v
    scores = c * q . k where not masked, for one c (before the scores' soft-cap, where there is one)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import AnatomistError, NotFinite
from ..sites import WHOLE_MODEL, Site, SiteKind
from ..tokens import Tokens

if TYPE_CHECKING:
    from ..protocol import Model

LENGTH = 9  # tokens: enough for a difference between positions, cheap on any model
At = Callable[[SiteKind], Tensor]


def proven_kinds(model: Model, score_caps: tuple[float, ...] = ()) -> tuple[SiteKind, ...]:
    """The declared kinds that are computed and mean what `sites.py` says; `score_caps`: soft-caps that may apply."""
    reads = _read(model, model.info.sites)
    kinds = {site.kind for site in reads}
    refuted: set[SiteKind] = set()
    for layer in range(model.info.n_layers):

        def at(kind: SiteKind, layer: int = layer) -> Tensor:
            return reads[Site(kind, layer)]

        for subjects, others, holds in _identities(score_caps):
            if kinds.issuperset(subjects + others) and not holds(at):
                refuted.update(subjects)
    return tuple(kind for kind in model.info.sites if kind in kinds - refuted)


def _read(model: Model, kinds: tuple[SiteKind, ...]) -> Mapping[Site, Tensor]:
    """Every place of these kinds in one pass; if that fails, of the kinds that can be computed.

    Raises:
        NotFinite: the weights themselves give NaN or infinity.
    """
    info = model.info
    ids = tuple((7 * i + 3) % info.d_vocab for i in range(min(LENGTH, info.n_ctx)))
    tokens = Tokens((ids,), (("",) * len(ids),), False)
    try:
        return model.run(tokens, read=_everywhere(kinds, info.n_layers)).reads
    except NotFinite:
        raise
    except AnatomistError:
        if len(kinds) == 1:
            return {}
        return {site: x for kind in kinds for site, x in _read(model, (kind,)).items()}


def _everywhere(kinds: tuple[SiteKind, ...], n_layers: int) -> list[Site]:
    return [Site(kind, i) for kind in kinds for i in ([None] if kind in WHOLE_MODEL else range(n_layers))]


def _identities(
    caps: tuple[float, ...],
) -> list[tuple[tuple[SiteKind, ...], tuple[SiteKind, ...], Callable[[At], bool]]]:
    """(kinds that fall if the identity fails, the other kinds it needs, the identity)."""
    return [
        (("resid_mid",), ("resid_pre", "attn_out"), _middle),
        (("attn_out", "mlp_out"), ("resid_pre", "resid_post"), _adds_up),
        (("scores",), ("pattern",), _softmax),
        (("head", "v"), ("pattern",), _mixes),
        # Where both fail it is the pattern, which they share, that is not to be trusted.
        (("pattern",), ("scores", "head", "v"), lambda at: _softmax(at) or _mixes(at)),
        (("q", "k"), ("scores", "pattern"), lambda at: any(_proportional(at, cap) for cap in (None, *caps))),
    ]  # fmt: skip


def _middle(at: At) -> bool:
    return _same(at("resid_pre") + at("attn_out"), at("resid_mid"))


def _adds_up(at: At) -> bool:
    return _same(at("resid_pre") + at("attn_out") + at("mlp_out"), at("resid_post"))


def _softmax(at: At) -> bool:
    return _same(at("scores").float().softmax(-1), at("pattern"))


def _mixes(at: At) -> bool:
    pattern, v, z = at("pattern"), at("v"), at("head")
    by_query_head = v.repeat_interleave(z.shape[2] // v.shape[2], dim=2)
    return _same(torch.einsum("bhqk,bkhd->bqhd", pattern, by_query_head), z)


def _proportional(at: At, cap: float | None) -> bool:
    """Whether unmasked scores are one constant times q . k."""
    q, k, scores = at("q"), at("k"), at("scores").float()
    products = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)).float()
    seen = at("pattern") > 0
    x, y = products[seen], scores[seen]
    y = y if cap is None else cap * torch.atanh((y / cap).clamp(-1 + 1e-6, 1 - 1e-6))
    return _same(x * ((x @ y) / (x @ x).clamp(min=torch.finfo(x.dtype).tiny)), y)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, relative to the largest entry."""
    tolerance = 1e-3 if b.dtype.itemsize >= 4 else 5e-2
    return bool((a - b).abs().max() <= tolerance * b.abs().max())
