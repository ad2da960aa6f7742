"""Seconds, and the machine's matrix-multiply rate in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

T = TypeVar("T")
SHAPES = ((4096, 576, 1536), (4096, 1536, 576), (2048, 2048, 2048))  # tokens x in x out; the MLP of a small model


@dataclass
class Rate:
    """Multiply-add rates (FLOP/s, a multiply-add counted as two) measured now and then during a run."""

    dtype: torch.dtype
    device: torch.device
    found: list[float] = field(default_factory=list)

    def measure(self, shapes: Sequence[tuple[int, int, int]] = SHAPES, repeats: int = 4) -> float:
        """The best of several products of several shapes: what the machine can do at this moment."""
        best = max(self._product(*shape) for shape in shapes for _ in range(repeats))
        self.found.append(best)
        return best

    @property
    def best(self) -> float:
        return max(self.found)

    def _product(self, n: int, d_in: int, d_out: int) -> float:
        x = torch.ones(n, d_in, dtype=self.dtype, device=self.device)
        w = torch.ones(d_out, d_in, dtype=self.dtype, device=self.device)
        out = torch.empty(n, d_out, dtype=self.dtype, device=self.device)
        torch.mm(x, w.T, out=out)
        return 2.0 * n * d_in * d_out / timed(lambda: torch.mm(x, w.T, out=out))[0]


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, an accelerator's queue included, and what it gave."""
    _wait()
    start = time.perf_counter()
    given = work()
    _wait()
    return time.perf_counter() - start, given


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
