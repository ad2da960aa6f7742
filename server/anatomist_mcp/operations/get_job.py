"""Read how a job stands: state, part done, and the result once it is finished.

Without a handle it lists this server's jobs. It waits up to `wait_seconds` for the job to end. A failed job comes back
as an error with its reason. Stored results of earlier servers are in list_runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import anyio
from anatomist.errors import AnatomistError
from anatomist.result import Frozen
from pydantic import Field

from ..content import Shown
from ..jobs import Job, JobReport

if TYPE_CHECKING:
    from ..app import App
    from ..session import Report

TITLE = "Job: state or result"
WHERE = "server"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    """Which job."""

    job: Annotated[str | None, Field(description="Handle from a call with as_job; all jobs when absent.")] = None
    wait_seconds: Annotated[float, Field(ge=0, le=50, description="Wait at most so many seconds for the end.")] = 0


class JobStanding(JobReport):
    """One job, or the list of them."""


async def run(app: App, arguments: Arguments, report: Report) -> Shown:
    if arguments.job is None:
        return Shown(JobStanding(**dict(app.jobs.listing())))
    job = app.jobs.find(arguments.job)
    with anyio.move_on_after(arguments.wait_seconds):
        await job.over.wait()
    return shown(job)


def shown(job: Job) -> Shown:
    """The job's standing with its result, told as the result itself is told.

    Raises:
        AnatomistError: of the job's own class when it failed.
    """
    if isinstance(job.failure, AnatomistError):
        raise type(job.failure)(f"job {job.handle} ({job.tool}) failed: {job.failure}")
    standing = JobStanding(**dict(job.report()))
    if job.shown is None:
        return Shown(standing)
    return Shown(standing, job.shown.run_id, job.shown.png, told=job.shown.result)
