"""Random features of a dictionary's size and sparsity: what any dictionary finds by chance.

Directions are drawn at random, unit length; feature i is active where x . d_i exceeds a threshold of its own, set so
that it is active on the dictionary's mean share of the tokens given. Nothing is learned. (Korznikov et al.,
arXiv 2602.14111: random features score well on many measures.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .protocol import Dictionary, DictionaryInfo

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class RandomFeatures:
    """A dictionary of random directions and thresholds."""

    def __init__(self, like: Dictionary, x: Float[Tensor, "n d_in"], *, seed: int) -> None:
        """x: tokens on which it is to be as sparse as `like`."""
        import numpy as np

        info = like.info
        drawn = np.random.default_rng(seed).standard_normal((info.d_dict, info.d_in))
        self.directions = x.new_tensor(drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).float()
        self._mean = x.float().mean(0)
        share = float((like.encode(x) != 0).float().mean())
        z = (x.float() - self._mean) @ self.directions.T
        self._thresholds = z.quantile(min(max(1 - share, 0.0), 1.0), dim=0).clamp(min=0)
        self.info: DictionaryInfo = info.model_copy(
            update={"name": f"random features (seed {seed})", "source": "baseline", "architecture": "random"}
        )

    def encode(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest f"]:
        z = (x.float() - self._mean) @ self.directions.T
        return z * (z > self._thresholds)

    def decode(
        self, f: Float[Tensor, "*rest f"], x: Float[Tensor, "*rest d_in"] | None = None
    ) -> Float[Tensor, "*rest d_in"]:
        return f @ self.directions + self._mean

    def scale(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest 1"]:
        return x.new_ones((*x.shape[:-1], 1))

    def offset(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest d_in"]:
        return self._mean.expand(x.shape)

    def close(self) -> None:
        del self.directions, self._mean, self._thresholds
