"""Numbers of tokens in a flat batch ("slots"), and runs of them laid end to end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]


def begins(lengths: Slots, size: int) -> Slots:
    """Where each of consecutive runs begins; -1 beyond them up to `size`."""
    found = np.full(size, -1, np.int64)
    found[: len(lengths)] = np.cumsum(lengths) - lengths
    return found


def spread(lengths: Slots) -> tuple[Slots, Slots]:
    """For every token of consecutive runs: which run it is of, and how far into it."""
    which = np.repeat(np.arange(len(lengths)), lengths)
    return which, np.arange(len(which)) - (np.cumsum(lengths) - lengths)[which]
