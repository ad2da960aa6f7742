"""The worker seen from the server: a process that may be slow, stuck or dead costs one call, never the conversation."""

from __future__ import annotations

import json
import os
import signal
import time

import anyio
import pytest
from anatomist.errors import BadSite, WorkerDied, WouldNotFit
from anatomist_mcp.session import PATIENCE, InternalError, Session

pytestmark = pytest.mark.anyio


class Heard(list):
    """Progress that was reported."""

    def __init__(self) -> None:
        self.begun = anyio.Event()

    async def __call__(self, done: float, total: float, what: str) -> None:
        self.append((done, total, what))
        self.begun.set()


async def worker_pid(session: Session) -> int:
    return json.loads((await session.call("quick", {}, Heard())).result)["pid"]


async def test_a_call_is_answered_by_the_process_that_was_started(odd: Session) -> None:
    assert await worker_pid(odd) == odd.pid
    assert await worker_pid(odd) == odd.pid


async def test_progress_reaches_the_caller(odd: Session) -> None:
    heard = Heard()
    async with anyio.create_task_group() as group:
        group.start_soon(odd.call, "polite", {}, heard)
        await heard.begun.wait()
        group.cancel_scope.cancel()
    assert heard == [(1, 3, "polite")]


async def cancel_when_it_has_begun(session: Session, name: str) -> float:
    """Cancel a call after its first progress; seconds until the session is free."""
    heard = Heard()
    async with anyio.create_task_group() as group:
        group.start_soon(session.call, name, {}, heard)
        await heard.begun.wait()
        started = time.monotonic()
        group.cancel_scope.cancel()
    return time.monotonic() - started


async def test_a_worker_that_listens_survives_a_cancellation(odd: Session) -> None:
    before = await worker_pid(odd)
    assert await cancel_when_it_has_begun(odd, "polite") < 1
    assert await worker_pid(odd) == before


async def test_a_worker_that_does_not_listen_is_replaced_within_two_seconds(odd: Session) -> None:
    before = await worker_pid(odd)
    assert PATIENCE <= await cancel_when_it_has_begun(odd, "stuck") < 2
    assert await worker_pid(odd) != before


async def test_a_caller_who_cannot_be_reached_any_more_frees_the_worker(odd: Session) -> None:
    async def gone(done: float, total: float, what: str) -> None:
        raise ConnectionResetError

    before = await worker_pid(odd)
    with pytest.raises(ConnectionResetError):
        await odd.call("polite", {}, gone)
    with anyio.fail_after(2):
        assert await worker_pid(odd) == before


async def test_a_worker_killed_during_a_call_is_an_error_that_says_so_and_the_next_call_works(odd: Session) -> None:
    with pytest.raises(WorkerDied, match=r"ended during die \(killed by signal 9.*Nothing stored is lost.*Call again"):
        await odd.call("die", {}, Heard())
    assert odd.state is None
    assert await worker_pid(odd) == odd.pid


async def test_a_worker_that_ends_itself_for_memory_says_so_and_is_replaced(odd: Session) -> None:
    with pytest.raises(WouldNotFit, match="too much"):
        await odd.call("last word", {}, Heard())
    assert await worker_pid(odd) == odd.pid


async def test_a_worker_killed_between_calls_is_replaced_without_an_error(odd: Session) -> None:
    before = await worker_pid(odd)
    os.kill(before, signal.SIGKILL)
    assert odd._process is not None
    await odd._process.wait()
    assert await worker_pid(odd) != before


async def test_a_new_worker_is_told_which_models_the_old_one_held(odd: Session) -> None:
    await odd.call("held", {}, Heard())
    with pytest.raises(WorkerDied):
        await odd.call("die", {}, Heard())
    answer = await odd.call("what_was_restored", {}, Heard())
    assert json.loads(answer.result)["restored"] == [{"handle": "kept"}]


async def test_calls_queue_and_say_so(odd: Session) -> None:
    waiting, held = Heard(), Heard()
    async with anyio.create_task_group() as group:
        group.start_soon(odd.call, "polite", {}, held)
        await held.begun.wait()
        group.start_soon(odd.call, "quick", {}, waiting)
        await waiting.begun.wait()
        group.cancel_scope.cancel()
    assert waiting == [(0, 0, "waiting: 1 call(s) in the queue")]


async def test_answers_of_any_size_arrive_whole(odd: Session) -> None:
    answer = await odd.call("large", {}, Heard())
    assert len(json.loads(answer.result)["text"]) == 1_000_000


async def test_a_deliberate_error_keeps_its_class_and_text(odd: Session) -> None:
    with pytest.raises(BadSite, match="no such site"):
        await odd.call("deliberate", {}, Heard())


async def test_a_defect_travels_with_its_type_and_log_id_only(odd: Session) -> None:
    with pytest.raises(InternalError, match=r"defect failed with an internal error \(KeyError, log id ab12\)"):
        await odd.call("defect", {}, Heard())
