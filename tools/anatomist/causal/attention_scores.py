"""What a head attends to, as scores: previous token, induction, duplicate token, first token, entropy.

B rows, H heads, T positions; P[p, j] is the weight of query position p on key position j <= p.

| score | mean over query positions p | of |
|---|---|---|
| previous_token | p >= 1 | P[p, p - 1] |
| induction | the token at p stood at some i <= p - 2 | sum over such i of P[p, i + 1] |
| duplicate_token | the token at p stood at some i < p | sum over such i of P[p, i] |
| first_token | p >= 1 | P[p, 0] |
| entropy | p >= 1 | -sum over j of P[p, j] ln P[p, j], in nats |

Source: Elhage et al. 2021, "A mathematical framework for transformer circuits" (previous-token and induction heads);
Olsson et al., arXiv 2209.11895 (prefix matching); Wang et al., arXiv 2211.00593 (duplicate-token heads); Xiao et al.,
arXiv 2309.17453 (attention sinks). The baseline spreads every query's weight evenly over the positions it can see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from ..model.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

ScoreName = Literal["previous_token", "induction", "duplicate_token", "first_token", "entropy"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
TARGETS: tuple[ScoreName, ...] = SCORES[:-1]


def targets(tokens: Tokens, like: Float[Tensor, ...]) -> dict[ScoreName, Bool[Tensor, "B T T"]]:
    """For each score the key positions that count, [row, query, key]; `like` gives the device."""
    width = tokens.width
    ids = like.new_tensor([[*row, *[-1] * (width - len(row))] for row in tokens.ids]).long()  # [B, T]
    at = like.new_ones(width).cumsum(0) - 1
    query, key = at[:, None], at[None, :]
    real = like.new_tensor([[p < n for p in range(width)] for n in tokens.lengths]).bool()[:, :, None]
    same = (ids[:, :, None] == ids[:, None, :]) & (key < query) & real
    after = same.roll(1, dims=2) & (key >= 1) & (key < query)
    every = real.expand(-1, -1, width)
    return {
        "previous_token": every & (key == query - 1),
        "induction": after,
        "duplicate_token": same,
        "first_token": every & (key == 0) & (query >= 1),
    }


def on_targets(
    pattern: Float[Tensor, "B H T T"], target: Bool[Tensor, "B T T"]
) -> tuple[Float[Tensor, "B H"], Bool[Tensor, " B"]]:
    """Weight on the target keys, averaged over the queries that have one; and which rows have such a query."""
    queries = target.any(-1)  # [B, T]
    count = queries.sum(-1)
    weight = (pattern * target[:, None]).sum(-1)  # [B, H, T]
    total = (weight * queries[:, None]).sum(-1)
    return total / count.clamp(min=1)[:, None], count > 0


def entropy(pattern: Float[Tensor, "B H T T"], tokens: Tokens) -> Float[Tensor, "B H"]:
    """Mean entropy over query positions from 1 on, in nats; rows of one token have none and give 0."""
    terms = -(pattern * pattern.clamp(min=1e-30).log()).sum(-1)  # [B, H, T]
    counted = pattern.new_tensor([[1 <= p < n for p in range(pattern.shape[-1])] for n in tokens.lengths])
    return (terms * counted[:, None]).sum(-1) / counted.sum(-1).clamp(min=1)[:, None]


def scores(
    pattern: Float[Tensor, "B H T T"], tokens: Tokens
) -> dict[ScoreName, tuple[Float[Tensor, "B H"], Bool[Tensor, " B"]]]:
    """Every score of every head on every row, and which rows it is defined on."""
    several = pattern.new_tensor([n > 1 for n in tokens.lengths]).bool()
    found: dict[ScoreName, tuple[Tensor, Tensor]] = {"entropy": (entropy(pattern, tokens), several)}
    for name, target in targets(tokens, pattern).items():
        found[name] = on_targets(pattern, target)
    return found


def uniform(tokens: Tokens, like: Float[Tensor, ...], *, causal: bool = True) -> Float[Tensor, "B 1 T T"]:
    """The baseline pattern: the same weight on every key a query can see, 1 / (p + 1), or 1 / length both ways."""
    width = tokens.width
    if causal:
        seen = like.new_ones(width, width).tril().expand(tokens.n_rows, 1, width, width)
    else:
        real = like.new_tensor([[float(key < n) for key in range(width)] for n in tokens.lengths])
        seen = real[:, None, None].expand(-1, 1, width, width)
    return seen / seen.sum(-1, keepdim=True)
