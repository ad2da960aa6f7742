"""What a call would take: the parts in memory, the arithmetic, and seconds by the measured rate."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..result import Frozen
from .calibration import Rate
from .sizes import Sizes


class Part(Frozen):
    """One thing that is held in memory."""

    what: str
    formula: str = Field(description="Written with L d H K h F V T B s as in references/compute-awareness.")
    bytes: int


class Cost(Frozen):
    """Memory and arithmetic of a call."""

    parts: tuple[Part, ...] = Field(description="What is held beside the weights, largest first.")
    peak_bytes: int = Field(description="Sum of the parts: memory needed beyond what is loaded now.")
    flops: float = Field(description="Floating-point operations.")
    seconds: float = Field(description="By the measured rate; the first call in a process takes longer.")
    basis: str = Field(description="What was counted.")

    def largest(self) -> str:
        """The largest part, for an error."""
        return f"mostly {self.parts[0].what}, {in_bytes(self.parts[0].bytes)}" if self.parts else "nothing of size"


def in_bytes(n: float) -> str:
    """A number of bytes for reading: '538.1 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def cost(parts: Sequence[Part], flops: float, passes: float, sizes: Sizes, rate: Rate, basis: str) -> Cost:
    """Put a cost together; `passes` is how often all block weights are read."""
    ordered = tuple(sorted(parts, key=lambda p: -p.bytes))
    read = passes * sizes.layers * sizes.block_parameters * sizes.item_bytes
    return Cost(
        parts=ordered, peak_bytes=sum(p.bytes for p in ordered), flops=flops,
        seconds=rate.seconds(flops, read), basis=basis,
    )  # fmt: skip
