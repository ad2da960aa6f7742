"""Stop a job and free the worker, within two seconds. What it had computed is dropped; stored runs stay.

A job that has ended stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from anatomist.result import Frozen
from pydantic import Field

from ..content import Shown
from ..jobs import JobReport

if TYPE_CHECKING:
    from ..app import App
    from ..session import Report

TITLE = "Job: cancel"
WHERE = "server"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    """Which job."""

    job: Annotated[str, Field(description="Handle from a call with as_job; get_job without a handle lists them.")]


class JobCancelled(JobReport):
    """The job after it was stopped."""


async def run(app: App, arguments: Arguments, report: Report) -> Shown:
    job = await app.jobs.cancel(arguments.job)
    return Shown(JobCancelled(**dict(job.report())))
