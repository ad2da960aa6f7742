"""The logit lens: a residual read as if it were the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ParityError
from ..measures.metrics import widened
from ..model.protocol import Model, ModelInfo
from ..result import SelfTest
from .direct_effects import wide

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TOLERANCE = 1e-3  # nats: the last layer's lens against the model's own prediction
HALF_TOLERANCE = 0.5  # in half precision the model's own logits are rounded, by up to 0.06 at 16 to 32 logits
WIDE = frozenset({"float32", "float64"})


def lens(model: Model, residual: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
    """Logits read from a residual: final norm (float32 inside, as models do it), unembedding, soft-cap; float32."""
    weights = model.weights
    normed = wide(weights.final_norm())(widened(residual))
    logits = widened(normed.to(residual.dtype) @ weights.unembed())
    bias, cap = weights.unembed_bias(), weights.logit_softcap()
    logits = logits if bias is None else logits + widened(bias)
    return logits if cap is None else (logits / cap).tanh() * cap


def last_layer_test(worst: float, info: ModelInfo) -> SelfTest:
    """The largest difference of the last layer's lens from the model's own log-probabilities, as a test.

    Raises:
        ParityError: it is more than rounding: the weights are not what they seem.
    """
    accepted = TOLERANCE if info.dtype in WIDE else HALF_TOLERANCE
    if worst > accepted:
        raise ParityError(
            f"the lens of the last layer differs from the model's own log-probabilities by {worst:.2g} nats "
            f"(accepted: {accepted:g}); the final norm or unembedding of this architecture is not read correctly. "
            "Load the model in float32 if it is not; else report the architecture. The numbers are withheld."
        )
    return SelfTest(
        name="largest difference of the last layer's lens from the model's own log-probabilities (nats)",
        expected=0.0, found=worst, tolerance=accepted, passed=worst <= accepted,
    )  # fmt: skip
