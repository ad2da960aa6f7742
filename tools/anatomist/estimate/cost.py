"""What a call would take: the parts in memory, the arithmetic, and seconds by the measured rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from ..result import Frozen
from .calibration import Rate
from .sizes import Sizes


class Part(Frozen):
    """One thing that is held."""

    what: str
    formula: str = Field(description="L layers, d width, H heads, K kv heads, h head size, F MLP, V, T, B, s bytes.")
    bytes: int
    place: Literal["memory", "disk"] = Field(default="memory", description="disk: written to the run piece by piece.")


class Cost(Frozen):
    """Memory and arithmetic of a call."""

    parts: tuple[Part, ...] = Field(description="What is held beside the weights, largest first, all prompts at once.")
    peak_bytes: int = Field(description="Memory beyond what is loaded now; prompts are taken in batches to stay in it.")
    disk_bytes: int = Field(default=0, description="Written to the workspace.")
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


def cost(
    parts: Sequence[Part], flops: float, passes: float, sizes: Sizes, rate: Rate, basis: str,
    *, rows: int = 1, budget: int | None = None,
) -> Cost:  # fmt: skip
    """Put a cost together.

    passes: how often all block weights are read. budget: bytes that batches of the `rows` prompts are fitted to; a
    single prompt is the least.
    """
    ordered = tuple(sorted(parts, key=lambda p: -p.bytes))
    whole = sum(p.bytes for p in ordered if p.place == "memory")
    read = passes * sizes.layers * sizes.block_parameters * sizes.item_bytes
    return Cost(
        parts=ordered, peak_bytes=whole if budget is None else min(whole, max(budget, whole // max(rows, 1))),
        disk_bytes=sum(p.bytes for p in ordered if p.place == "disk"), flops=flops,
        seconds=rate.seconds(flops, read), basis=basis,
    )  # fmt: skip
