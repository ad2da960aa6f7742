"""The bench that the checks of a finding work on: runs techniques and notes them in the investigation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from .errors import AnatomistError
from .model.sites import Shape
from .result import Frozen, Result
from .technique import Progress


class Answered(Protocol):
    """What a call gives: see `host.Answer`."""

    @property
    def result(self) -> Frozen: ...
    @property
    def run_id(self) -> str | None: ...


class Calls(Protocol):
    """Calls a technique or an operation by name: see `host.Host.call`."""

    def __call__(
        self, name: str, arguments: Mapping[str, object], progress: Progress, *, purpose: str = ""
    ) -> Answered: ...


@dataclass(frozen=True)
class HostBench:
    """See `investigation.bench.Bench`."""

    call: Calls
    shape: Callable[[str], Shape]
    investigation: str
    purpose: str
    progress: Progress

    def technique(self, name: str, arguments: Mapping[str, object]) -> tuple[Result, str]:
        within = {**arguments, "investigation": self.investigation}
        answer = self.call(name, within, self.progress, purpose=self.purpose)
        if answer.run_id is None:
            raise AnatomistError(f"{name!r} keeps no run, so that it cannot be evidence; name a technique.")
        return cast(Result, answer.result), answer.run_id

    def fresh_prompts(self, task: str, model: str, n: int, seed: int) -> str:
        made = self.call("make_prompts", {"task": task, "model": model, "n": n, "seed": seed}, self.progress)
        return str(made.result.model_dump()["handle"])
