"""The order in which tokens are trained on: a new permutation every time the text has been gone through.

It follows from the seed and the number of the step alone, so a training that is resumed sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...errors import BadPrompts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor


class Source(Protocol):
    """Activations of many tokens, on disk or in memory."""

    @property
    def tokens(self) -> int: ...
    @property
    def d(self) -> int: ...
    def open(self) -> ndarray: ...
    def some(self, mapped: ndarray, index: ndarray) -> Tensor:
        """Some tokens as float32 in memory."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Activations that are few enough to be held."""

    x: Float[Tensor, "n d"]

    @property
    def tokens(self) -> int:
        return self.x.shape[0]

    @property
    def d(self) -> int:
        return self.x.shape[1]

    def open(self) -> ndarray:
        return self.x.float().cpu().numpy()

    def some(self, mapped: ndarray, index: ndarray) -> Tensor:
        return self.x[index].float()


class Shuffled:
    """Batches of activations, from any step on."""

    def __init__(self, cached: Source, kept: ndarray, *, batch: int, seed: int, device: str) -> None:
        """kept: indices of the tokens that are trained on.

        Raises:
            BadPrompts: fewer tokens than one batch.
        """
        if len(kept) < batch:
            raise BadPrompts(
                f"{len(kept)} tokens to train on are less than one batch of {batch}; give more text or a smaller batch."
            )
        self.cached, self.kept, self.batch, self.seed, self.device = cached, kept, batch, seed, device
        self._mapped = cached.open()
        self._epoch, self._order = -1, kept

    @property
    def steps_an_epoch(self) -> int:
        return len(self.kept) // self.batch

    def at(self, step: int) -> Float[Tensor, "n d"]:
        """The batch of a step."""
        import numpy as np

        epoch, i = divmod(step, self.steps_an_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.kept)
        # In the order of the file: neighbours on disk are read together, and a sum over a batch has no order.
        index = np.sort(self._order[i * self.batch : (i + 1) * self.batch])
        return self.cached.some(self._mapped, index).to(self.device)

    def since(self, step: int) -> Iterator[Float[Tensor, "n d"]]:
        """All batches from a step on."""
        while True:
            yield self.at(step)
            step += 1


def ordinary(norms: ndarray, times: float) -> ndarray:
    """Indices of the tokens whose norm is at most so many times the median."""
    import numpy as np

    return np.flatnonzero(norms <= times * np.median(norms))
