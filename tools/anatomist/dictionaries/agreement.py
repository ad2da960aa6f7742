"""How many features of one dictionary another one has as well: the features to trust are those that come back.

For every feature of the first the largest cosine between its direction and any direction of the other; a feature is
found again where that is over .7. Random directions of the same number stand beside, for in few dimensions some pair is
always near. Signs count: a feature that points the other way is another feature.

Source: Paulo & Belrose, arXiv 2501.16615 (seeds of one training share only part of their features).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..result import Frozen
from .protocol import Dictionary

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FOUND_AGAIN = 0.7  # cosine of two directions from which they count as one feature
_ROWS = 4096  # directions compared at a time


class Agreement(Frozen):
    """The features of one dictionary looked for in another."""

    found_again: float = Field(description=f"Share whose nearest direction there has a cosine over {FOUND_AGAIN}.")
    median_cosine: float = Field(description="Median over features of the largest cosine.")
    by_chance: float = Field(description="Median of the same with as many random directions in the other's place.")


def agreement(first: Dictionary, other: Dictionary, *, seed: int = 0) -> Agreement:
    """Features of `first` in `other`; both explain the same site, their numbers of features may differ."""
    import numpy as np

    drawn = np.random.default_rng(seed).standard_normal(tuple(other.directions.shape))
    own = nearest(first.directions, other.directions)
    return Agreement(
        found_again=float((own > FOUND_AGAIN).double().mean()),
        median_cosine=float(own.median()),
        by_chance=float(nearest(first.directions, own.new_tensor(drawn)).median()),
    )


def nearest(a: Float[Tensor, "f d"], b: Float[Tensor, "g d"]) -> Float[Tensor, " f"]:
    """The largest cosine of each row of a with a row of b."""
    a, b = (v.float() / v.float().norm(dim=-1, keepdim=True).clamp_min(1e-30) for v in (a, b))
    parts = [(a[i : i + _ROWS] @ b.T).amax(-1) for i in range(0, len(a), _ROWS)]
    return a.new_tensor([cosine for part in parts for cosine in part.tolist()])
