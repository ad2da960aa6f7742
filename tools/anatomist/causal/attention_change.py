"""How attention changes when its queries or keys do, exactly, where a gradient sees only the first order.

B rows, H query heads, K key-value heads, T positions. A softmax that attends to one key has almost no gradient: however
far its scores move, a first-order estimate says that nothing happens. AtP* (Kramar et al., arXiv 2403.00745, section
3.1.1) therefore puts dM/dpattern . (new pattern - pattern) in place of the gradient at queries or keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from einops import einsum, repeat

from ..measures.metrics import widened
from ..model.protocol import AttentionRule

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Moving = Literal["q", "k"]


def moved(
    which: Moving, rule: AttentionRule, base: Float[Tensor, "B T n h"], other: Float[Tensor, "B T n h"],
    fixed: Float[Tensor, "B T m h"], pattern: Float[Tensor, "B H T T"], chosen: Float[Tensor, "B T"],
) -> Float[Tensor, "B H T T"]:  # fmt: skip
    """The pattern where queries (or keys) at the chosen positions (1 or 0) are the other run's; `fixed` are the keys
    (or queries) of the base run."""
    weight = chosen[:, :, None, None]
    mixed = widened(base) + weight * (widened(other) - widened(base))
    q, k = (mixed, widened(fixed)) if which == "q" else (widened(fixed), mixed)
    heads = q.shape[2]
    scores = rule.scaling * einsum(q, _for_queries(k, heads), "b i n h, b j n h -> b n i j")
    if rule.score_cap is not None:
        scores = rule.score_cap * (scores / rule.score_cap).tanh()
    return scores.masked_fill(_hidden(pattern, rule.window), float("-inf")).softmax(-1)


def _for_queries(x: Float[Tensor, "B T m h"], heads: int) -> Float[Tensor, "B T n h"]:
    """Keys as each query head sees them."""
    return repeat(x, "b t m h -> b t (m g) h", g=heads // x.shape[2])


def _hidden(pattern: Float[Tensor, "B H T T"], window: int | None) -> Tensor:
    """Keys that a query must not see [T, T]."""
    at = pattern.new_ones(pattern.shape[-1]).cumsum(0)
    apart = at[:, None] - at[None, :]
    return (apart < 0) | (apart >= (pattern.shape[-1] if window is None else window))


def through_pattern(
    gradient: Float[Tensor, "B H T T"], new: Float[Tensor, "B H T T"], pattern: Float[Tensor, "B H T T"]
) -> Float[Tensor, "B H T"]:
    """Gradient at the pattern times its change, per query position."""
    return (widened(gradient) * (new - widened(pattern))).sum(-1)
