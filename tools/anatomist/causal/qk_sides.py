"""The two sides of a QK circuit: which vectors stand in place of the residual, and how scores depend on distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BadArguments, Unsupported
from ..model.protocol import Model, ModelInfo
from ..model.sites import parse_head
from .circuits import TokensAs, written_by

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The head and how its scores depend on distance."""

    layer: int
    head: int
    offsets: tuple[int, ...]  # (0,) where scores do not depend on it
    rotary: bool
    cap: float | None  # scores become cap * tanh(scores / cap)

    def shown(self, offset: int) -> int | None:
        """The offset, where it means something."""
        return offset if self.rotary else None

    def capped(self, score: float) -> float:
        return score if self.cap is None else self.cap * math.tanh(score / self.cap)


@dataclass(frozen=True)
class Sides:
    """The vectors on either side, and what they are in words."""

    query: Tensor  # [n, D]
    key: Tensor  # [n, D]
    words: str


def need_static_qk(info: ModelInfo, instead: str) -> None:
    """
    Raises:
        Unsupported: queries and keys are normalised, so that no matrix gives the scores.
    """
    if info.qk_norm:
        raise Unsupported(
            f"{info.name} ({info.architecture}) normalises its queries and keys: scores are not bilinear in the "
            f"residual, so there is no static QK matrix to show. {instead}"
        )


def place_of(model: Model, head: str, offsets: Sequence[int] | None, *, by_rotation: bool) -> Place:
    """
    Raises:
        Unsupported: the model normalises queries and keys.
        BadSite: no such head.
        BadArguments: offsets that mean nothing, outside the context, or outside the layer's window.
    """
    info = model.info
    need_static_qk(info, "attention_patterns shows where its heads look on prompts.")
    layer, index = parse_head(head, info.shape)
    rule, rotary = model.weights.attention_rule(layer), info.positional == "rotary"
    if offsets is not None and not (rotary and by_rotation):
        raise BadArguments(
            f"offsets {list(offsets)}: positions of {info.name} are {info.positional}; only rotary models turn scores "
            "by the offset. Leave `offsets` out, or take between='positions' where they are learned."
        )
    chosen = tuple(offsets or ((1,) if rotary else (0,)))
    longest = min(info.n_ctx, rule.window or info.n_ctx) - 1
    if len(set(chosen)) < len(chosen) or not all(0 <= o <= longest for o in chosen):
        raise BadArguments(f"offsets {list(chosen)}: each once, from 0 to {longest}, as far as layer {layer} sees.")
    return Place(layer, index, chosen, rotary, rule.score_cap)


def sides_of(
    model: Model, place: Place, base: Float[Tensor, "n D"], words: str, keys_through: str | None, tokens_as: TokensAs
) -> Sides:
    """The vectors themselves on both sides, or keys as an earlier head writes them.

    Raises:
        BadArguments: the head is not earlier, or cannot have read these vectors.
    """
    if keys_through is None:
        return Sides(base, base, f"{words} on both sides")
    earlier, head = parse_head(keys_through, model.info.shape)
    if earlier >= place.layer:
        raise BadArguments(f"keys_through {keys_through} must lie before layer {place.layer}.")
    if tokens_as == "after_block_0" and earlier == 0:
        raise BadArguments("a head of layer 0 reads what enters block 0: use tokens_as='embedding'.")
    through = f"for keys what {keys_through} writes where it looks at the token alone"
    return Sides(base, written_by(model, earlier, head, base), f"{words} for queries; {through}")
