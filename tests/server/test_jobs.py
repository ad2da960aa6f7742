"""Jobs: a handle at once, progress and the result later, cancellation in between."""

from __future__ import annotations

import anyio
import pytest
from anatomist.errors import BadSite, UnknownName
from anatomist.operation import Outcome
from anatomist_mcp.content import Shown
from anatomist_mcp.jobs import Jobs
from anatomist_mcp.operations.get_job import shown
from anatomist_mcp.session import Report

pytestmark = pytest.mark.anyio


class Found(Outcome):
    number: int


async def quick(report: Report) -> Shown:
    await report(1, 4, "a quarter")
    return Shown(Found(summary="found it", number=7), "r-0001")


async def endless(report: Report) -> Shown:
    await report(1, 4, "a quarter")
    await anyio.sleep_forever()
    raise AssertionError


async def failing(report: Report) -> Shown:
    raise BadSite("layer 99 does not exist: layers are 0 to 1.")


async def test_a_finished_job_gives_its_result_and_its_run() -> None:
    jobs = Jobs()
    async with anyio.create_task_group() as group:
        job = jobs.start(group, "sweep", quick)
        assert job.state == "queued"
    report = shown(jobs.find(job.handle))
    assert report.result.model_dump()["state"] == "done"
    assert report.result.model_dump()["result"] == {"summary": "found it", "warnings": [], "number": 7}
    assert report.run_id == "r-0001"


async def test_a_running_job_tells_how_far_it_is_and_is_cancelled_at_once() -> None:
    jobs = Jobs()
    async with anyio.create_task_group() as group:
        job = jobs.start(group, "sweep", endless)
        await anyio.wait_all_tasks_blocked()
        standing = job.report()
        assert (standing.state, standing.fraction, standing.doing) == ("running", 0.25, "a quarter")
        assert (await jobs.cancel(job.handle)).state == "cancelled"
    assert "cancelled" in job.report().summary


async def test_a_failed_job_fails_with_the_error_of_its_call() -> None:
    jobs = Jobs()
    async with anyio.create_task_group() as group:
        job = jobs.start(group, "sweep", failing)
    with pytest.raises(BadSite, match=rf"job {job.handle} \(sweep\) failed: layer 99"):
        shown(job)


async def test_cancelling_what_has_ended_changes_nothing() -> None:
    jobs = Jobs()
    async with anyio.create_task_group() as group:
        job = jobs.start(group, "sweep", quick)
    assert (await jobs.cancel(job.handle)).state == "done"


@pytest.mark.bad_input
def test_an_unknown_job_lists_those_that_exist() -> None:
    with pytest.raises(UnknownName, match=r"unknown job 'j-0009'.*list_runs"):
        Jobs().find("j-0009")
