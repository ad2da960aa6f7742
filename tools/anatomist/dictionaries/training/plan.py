"""What a training takes, before it starts: memory, disk and seconds."""

from __future__ import annotations

from pydantic import Field

from ...model.protocol import ModelInfo
from ...model.sites import Site
from ...result import Frozen
from ..fit import width_of
from .recipe import Recipe, parameters

_ADAM = 16  # bytes a parameter: weights, gradients and two moments in float32
_HELD = 6  # arrays of features a token that a step holds: before and after the activation, their gradients, counting
_GATED = 1.5  # a second encoding and a second decoding
_PYTHON = 0.02  # seconds a step beside the products, on a small machine


class TrainingCost(Frozen):
    """What a training takes."""

    memory_bytes: int = Field(description="Weights, optimiser and one batch, beside the model.")
    cache_bytes: int = Field(description="Activations on disk; kept, and used again by the next training on them.")
    checkpoint_bytes: int = Field(description="The checkpoint on disk.")
    reading_seconds: float = Field(description="Reading the activations, by the measured rate of the model.")
    training_seconds: float = Field(description="The steps, by the same rate.")
    epochs: float = Field(description="How often the text is gone through.")

    @property
    def seconds(self) -> float:
        return self.reading_seconds + self.training_seconds

    @property
    def disk_bytes(self) -> int:
        return self.cache_bytes + 2 * self.checkpoint_bytes  # the new one is whole before the old one goes


def training_cost(
    recipe: Recipe, info: ModelInfo, site: Site, *, tokens: int, flops_per_token: float, flops_per_second: float,
    held_out: int = 0,
) -> TrainingCost:  # fmt: skip
    """flops_per_token: of the model's forward pass up to the site; held_out: tokens the figures are measured on."""
    d = width_of(site, info)
    n = parameters(recipe, d)
    products = 12.0 * d * recipe.d_dict * recipe.batch * (_GATED if recipe.architecture == "gated" else 1.0)
    return TrainingCost(
        memory_bytes=_ADAM * n + 4 * recipe.batch * (_HELD * recipe.d_dict + 4 * d),
        cache_bytes=tokens * (d * (4 if info.dtype == "float32" else 2) + 4),
        checkpoint_bytes=12 * n,
        # Measuring: one pass to read and two to splice, for either set of tokens, each to the end of the model.
        reading_seconds=(tokens + 5 * 2 * held_out) * flops_per_token / flops_per_second,
        training_seconds=recipe.steps * (products / flops_per_second + _PYTHON),
        epochs=recipe.steps * recipe.batch / max(1, tokens),
    )
