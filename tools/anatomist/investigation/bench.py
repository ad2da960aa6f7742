"""What the checks may ask for: fresh prompts, and techniques run and noted like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import AnatomistError
from ..model.sites import Shape
from ..result import Result


class Bench(Protocol):
    """Runs techniques for a finding; every run is stored and noted in the investigation."""

    def technique(self, name: str, arguments: Mapping[str, object]) -> tuple[Result, str]:
        """A technique's result and the id of its run."""
        ...

    def fresh_prompts(self, task: str, model: str, n: int, seed: int) -> str:
        """Handle of a new prompt set, both parts."""
        ...

    def shape(self, model: str, /) -> Shape: ...


@dataclass(frozen=True)
class Setting:
    """How thorough the checks are, and their seed."""

    n: int = 64  # prompts a part
    controls: int = 39  # random sets: the smallest p is 1 / 40
    seeds: int = 3
    seed: int = 0
    level: float = 0.05  # of all attempts at one claim together


class NotApplicable(AnatomistError):
    """A check that cannot be made of this finding; the text says why."""


class NoBehaviour(NotApplicable):
    """The metric is 0 on these prompts: there is nothing to lose or to bring back."""
