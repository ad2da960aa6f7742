"""The bench that the checks of a finding work on: the host runs techniques and notes them with their purpose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from .model.sites import Shape
from .result import Result
from .technique import Progress

if TYPE_CHECKING:
    from .host import Host


@dataclass(frozen=True)
class HostBench:
    """See `investigation.bench.Bench`."""

    host: Host
    investigation: str
    purpose: str
    progress: Progress

    def technique(self, name: str, arguments: Mapping[str, object]) -> tuple[Result, str]:
        answer = self.host.call(
            name, {**arguments, "investigation": self.investigation}, self.progress, purpose=self.purpose
        )
        assert answer.run_id is not None
        return cast(Result, answer.result), answer.run_id

    def fresh_prompts(self, task: str, model: str, n: int, seed: int) -> str:
        made = self.host.call("make_prompts", {"task": task, "model": model, "n": n, "seed": seed}, self.progress)
        return str(made.result.handle)  # type: ignore[attr-defined]

    def shape(self, model: str) -> Shape:
        return self.host.model(model).info.shape
