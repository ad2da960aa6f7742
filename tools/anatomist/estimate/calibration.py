"""How fast this machine multiplies: two products of different height give the rates of arithmetic and of reading.

The time of [m, d] @ [d, F] is taken as reading the matrix plus arithmetic: a + b m. Prompts are short, so both count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..errors import Unsupported
from ..model.protocol import Model
from ..result import Frozen

if TYPE_CHECKING:
    from torch import Tensor

LOW, HIGH = 4, 128  # rows of the two products
MATRIX_BYTES = 32 * 1024**2  # too large for the caches of most processors, as a model's weights are
_SECONDS = 0.02  # to spend on each


class Rate(Frozen):
    """Measured speed."""

    flops_per_second: float = Field(gt=0, description="Arithmetic of matrix products, operations a second.")
    bytes_per_second: float = Field(gt=0, description="Weights read a second by products of few rows.")
    how: str = Field(description="What was measured.")

    def seconds(self, flops: float, weight_bytes_read: float) -> float:
        """Time of some arithmetic that reads weights so many bytes in all."""
        return flops / self.flops_per_second + weight_bytes_read / self.bytes_per_second


def measured_rate(model: Model) -> Rate:
    """The rate on a model's own device, dtype and weights (its embedding, which every model has)."""
    table = _embedding(model)
    columns = MATRIX_BYTES // (table.shape[1] * table.element_size())
    matrix = table[:columns].mT.detach()  # [D, n], as an unembedding is read
    left = table[:1].detach().expand(HIGH, -1).contiguous()

    def product(rows: int) -> None:
        _finish(left[:rows] @ matrix)

    info = model.info
    return _rate(product, matrix.shape[0], matrix.shape[1], matrix.element_size(), f"{info.dtype} on {info.device}")


def _embedding(model: Model) -> Tensor:
    """The table of an architecture whose parts are not known too: its plain model names it."""
    try:
        return model.weights.embed()
    except Unsupported:
        plain: Any = getattr(model, "_hf", None)
        if plain is None:
            raise
        return plain.get_input_embeddings().weight.detach()


def machine_rate() -> Rate:
    """The rate of float32 products without torch, for estimates before any model is loaded."""
    import numpy

    d, n = 1024, 8192
    matrix, left = numpy.ones((d, n), numpy.float32), numpy.ones((HIGH, d), numpy.float32)

    def product(rows: int) -> None:
        numpy.matmul(left[:rows], matrix)

    return _rate(product, d, n, 4, "float32 with numpy on the CPU, no model loaded")


def _rate(product: Callable[[int], None], d: int, n: int, item_bytes: int, how: str) -> Rate:
    low, high = _seconds(product, LOW), _seconds(product, HIGH)
    per_row = max(high - low, 0.05 * high) / (HIGH - LOW)  # noise can hide the slope of a tiny product
    fixed = max(low - LOW * per_row, 0.01 * low)
    return Rate(
        flops_per_second=2 * d * n / per_row,
        bytes_per_second=d * n * item_bytes / fixed,
        how=f"products of {LOW} and {HIGH} rows with a {d} x {n} matrix, {how}",
    )


def _seconds(product: Callable[[int], None], rows: int) -> float:
    """The fastest of several, after one to warm up: other work on the machine only ever adds."""
    product(rows)
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while True:
        start = time.perf_counter()
        product(rows)
        now = time.perf_counter()
        best = min(best, now - start)
        if now > until:
            return max(best, 1e-9)


def _finish(result: Tensor) -> None:
    """Wait for a device that computes on its own time."""
    result[0, 0].item()
