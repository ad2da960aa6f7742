"""Long calls as jobs: a handle at once, progress and the result later, cancellation in between.

Jobs belong to the server and outlive a client's connection; finished results also lie in the store as runs.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import anyio
from anatomist.errors import AnatomistError, UnknownName
from anatomist.operation import Outcome
from anyio.abc import TaskGroup
from pydantic import Field, JsonValue

from .content import Shown
from .session import Report

State = Literal["queued", "running", "done", "failed", "cancelled"]
KEPT = 200  # finished jobs that are remembered
Work = Callable[[Report], Awaitable[Shown]]


class JobReport(Outcome):
    """One job as it stands."""

    job: str | None = Field(default=None, description="Handle: pass it to get_job or cancel_job.")
    state: State | None = Field(default=None, description="queued, running, done, failed or cancelled.")
    tool: str | None = Field(default=None, description="What was called.")
    fraction: float | None = Field(default=None, description="Part done, 0 to 1, where it is known.")
    doing: str | None = Field(default=None, description="What it last said it was doing.")
    seconds: float | None = Field(default=None, description="Seconds since it was asked for, until it ended.")
    run: str | None = Field(default=None, description="Stored run of a finished job.")
    result: dict[str, JsonValue] | None = Field(default=None, description="The finished result, of the tool's type.")
    jobs: tuple[str, ...] = Field(default=(), description="All jobs, one a line, when no job was named.")


class JobStarted(Outcome):
    """What a call gives that was asked for as a job."""

    job: str = Field(description="Handle: pass it to get_job or cancel_job.")
    state: State = Field(description="queued.")


@dataclass
class Job:
    """One call under way or ended."""

    handle: str
    tool: str
    asked: float = field(default_factory=time.monotonic)
    ended: float | None = None
    state: State = "queued"
    fraction: float | None = None
    doing: str = ""
    shown: Shown | None = None
    failure: BaseException | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.asked

    async def hear(self, done: float, total: float, what: str) -> None:
        """Take down progress."""
        if not what.startswith("waiting"):
            self.state = "running"
        self.fraction = done / total if total else self.fraction
        self.doing = what

    def line(self) -> str:
        part = "" if self.fraction is None else f", {self.fraction:.0%}"
        return f"{self.handle}: {self.tool}, {self.state}{part}, {self.seconds:.0f} s"

    def started(self) -> JobStarted:
        return JobStarted(summary=f"Job {self.line()}. {self._next_step()}", job=self.handle, state=self.state)

    def report(self) -> JobReport:
        return JobReport(
            summary=f"Job {self.line()}. {self._next_step()}",
            job=self.handle,
            state=self.state,
            tool=self.tool,
            fraction=self.fraction,
            doing=self.doing or None,
            seconds=round(self.seconds, 2),
            run=self.shown.run_id if self.shown else None,
            result=self.shown.result.model_dump(mode="json") if self.shown else None,
        )

    def _next_step(self) -> str:
        match self.state:
            case "queued" | "running":
                return f"Next: get_job(job={self.handle!r}) again, or cancel_job. Other calls wait for it."
            case "done":
                return "Its result:"
            case "failed":
                return f"It failed: {self.failure}"
            case "cancelled":
                return "It was cancelled; nothing was stored. Call the tool again to start anew."


class Jobs:
    """All jobs of this server."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._last = 0

    def start(self, group: TaskGroup, tool: str, work: Work) -> Job:
        """Begin a call in the background."""
        self._last += 1
        job = Job(f"j-{self._last:04d}", tool)
        self._jobs[job.handle] = job
        self._forget_old()
        group.start_soon(self._carry_out, job, work)
        return job

    def find(self, handle: str) -> Job:
        """A job by its handle.

        Raises:
            UnknownName: no such job in this server.
        """
        if handle not in self._jobs:
            raise UnknownName.of(
                "job", handle, self._jobs, "get_job without a handle lists them; finished runs are in list_runs."
            )
        return self._jobs[handle]

    def listing(self) -> JobReport:
        lines = tuple(job.line() for job in self._jobs.values())
        return JobReport(summary=f"{len(lines)} job(s) in this server. list_runs has the stored runs.", jobs=lines)

    def names(self) -> tuple[str, ...]:
        return tuple(self._jobs)

    async def cancel(self, handle: str) -> Job:
        """Stop a job and wait until it has stopped; one that ended stays as it is."""
        job = self.find(handle)
        job.scope.cancel()
        await job.over.wait()
        return job

    async def _carry_out(self, job: Job, work: Work) -> None:
        try:
            with job.scope:
                job.shown = await work(job.hear)
                job.state = "done"
            if job.scope.cancelled_caught:
                job.state = "cancelled"
        except AnatomistError as error:
            job.state, job.failure = "failed", error
        finally:
            job.ended = time.monotonic()
            job.over.set()

    def _forget_old(self) -> None:
        finished = [h for h, job in self._jobs.items() if job.over.is_set()]
        for handle in finished[: max(0, len(finished) - KEPT)]:
            del self._jobs[handle]
