"""How many threads a model computes with: a setting, with a measured default.

More threads are not always faster: on a busy or oversubscribed machine two threads on two cores can be several times
slower than one, because every product waits for the slowest thread. So, unless told (`ANATOMIST_THREADS`, or the
argument), a product of the size that a small model makes is timed with 1, 2, 4, ... threads, for some tens of
milliseconds in all, and the fastest is taken. A choice of fewer threads than there are may have come from a busy
moment: a later call looks again (`reconsider_threads`). What was told or set stays.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import BadArguments

SETTING = "ANATOMIST_THREADS"
AGAIN = 20.0  # seconds after which a choice of fewer threads than there are is looked at once more
GAIN = 0.9  # more threads must take less than this share of the time of fewer, else they are not worth their harm


class Choice(NamedTuple):
    """A number of threads, and when it was measured among how many; told and set ones are not measured."""

    threads: int
    most: int = 0
    at: float = 0.0

    @property
    def doubtful(self) -> bool:
        """Fewer than there are, and measured some time ago."""
        return self.threads < self.most and time.monotonic() - self.at > AGAIN


_chosen: Choice | None = None


def use_threads(threads: int | None = None) -> int:
    """Set torch's compute threads and return their number.

    threads: None keeps what an earlier call was told, or takes the setting `ANATOMIST_THREADS`, or what is measured
    fastest.

    Raises:
        BadArguments: the argument or the setting is not a whole number of at least 1.
    """
    global _chosen
    if threads is not None:
        _chosen = Choice(_checked(threads, "threads"))
    elif _chosen is None:
        setting = os.environ.get(SETTING)
        _chosen = Choice(_checked(setting, SETTING)) if setting else _measured_now(available())
    torch.set_num_threads(_chosen.threads)
    return _chosen.threads


def reconsider_threads() -> int:
    """Measure once more where few threads were chosen some time ago, and nobody has set another number since."""
    global _chosen
    if _chosen is not None and _chosen.doubtful and torch.get_num_threads() == _chosen.threads:
        _chosen = _measured_now(_chosen.most)
        torch.set_num_threads(_chosen.threads)
    return torch.get_num_threads()


def _measured_now(most: int) -> Choice:
    return Choice(measured(most), most, time.monotonic())


def available() -> int:
    """The most threads worth trying: torch's own limit (which knows OMP_NUM_THREADS) and the cores we may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), cores))


def measured(most: int, *, rounds: int = 7, budget: float = 0.2) -> int:
    """The number of threads up to `most` whose product takes the least time (median of interleaved rounds).

    After `budget` seconds no further round begins: where that happens, threads are waiting for each other.
    """
    tried = candidates(most)
    if len(tried) == 1:
        return 1
    before = torch.get_num_threads()
    left, right = torch.ones(64, 576), torch.ones(576, 1536)
    seconds: dict[int, list[float]] = {n: [] for n in tried}
    start = time.perf_counter()
    try:
        for turn in range(rounds + 1):
            if turn > 1 and time.perf_counter() - start > budget:
                break
            for n in tried:
                taken = _time(left, right, n)
                if turn:  # the first round only wakes the threads
                    seconds[n].append(taken)
    finally:
        torch.set_num_threads(before)
    return fastest({n: statistics.median(times) for n, times in seconds.items()})


def candidates(most: int) -> Sequence[int]:
    """1, 2, 4, ... and `most` itself."""
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return [*powers, most]


def fastest(seconds: dict[int, float]) -> int:
    """The fewest threads that no larger number beats clearly."""
    best, *more = sorted(seconds)
    for n in more:
        if seconds[n] < GAIN * seconds[best]:
            best = n
    return best


def _time(left: torch.Tensor, right: torch.Tensor, threads: int, repeats: int = 3) -> float:
    """Seconds of a few products with so many threads."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    return time.perf_counter() - start


def _checked(value: int | str, what: str) -> int:
    try:
        threads = int(value)
    except ValueError:
        threads = 0
    if threads < 1:
        raise BadArguments(f"{what}={value!r} is not a number of threads; give a whole number of at least 1.")
    return threads
