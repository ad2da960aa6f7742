"""Progress as MCP wants it: numbers that only grow, at most a few a second, and nothing for what is quick."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

Send = Callable[[float, float | None, str | None], Awaitable[None]]  # progress, total, message
STEP = 0.001  # what a message without a number of its own adds


class Progress:
    """Turns phases that each count from zero into one growing line."""

    def __init__(self, send: Send, every: float = 0.2) -> None:
        self._send = send
        self._every = every
        self._base = 0.0  # where the present phase began
        self._sent = 0.0
        self._last = (0.0, 0.0)  # done, total of the present phase
        self._at = float("-inf")

    async def __call__(self, done: float, total: float, what: str) -> None:
        """Report `done` of `total` (0 = unknown)."""
        if total and (total != self._last[1] or done < self._last[0]):
            self._base, self._last = self._sent, (done, total)
        if time.monotonic() - self._at < self._every and not (total and done >= total):
            return
        value = self._base + done if total else self._sent
        self._last = (done, total) if total else self._last
        self._sent = max(value, self._sent + STEP)
        self._at = time.monotonic()
        await self._send(self._sent, max(self._base + total, self._sent) if total else None, what)
