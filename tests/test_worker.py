"""The worker process: its messages, its errors, its end."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from anatomist.desk import Answer
from anatomist.errors import BadSite, Cancelled
from anatomist.host import Host
from anatomist.operation import Outcome
from anatomist.worker import OUT_OF_MEMORY, Calls, Channel, Pipes, Worker

QUIET = {"model": "toy-induction", "prompt": "t1 t2 t1", "max_new_tokens": 1}


class Said(Outcome):
    words: str


class ScriptedHost(Host):
    """A host whose calls do what their name says; everything else is the real one."""

    def call(self, name, arguments, progress=None):  # type: ignore[no-untyped-def, override]
        match name:
            case "say":
                return Answer("say", Said(summary="said", words="hello"))
            case "refuse":
                raise BadSite("no such site; the sites are these.")
            case "break":
                raise KeyError("secret.bin")
            case "report":
                for step in range(1000):
                    progress(step, 1000, "working")
                return Answer("report", Said(summary="said", words="reported"))
        raise AssertionError(name)


@pytest.fixture
def sent(tmp_path: Path):  # type: ignore[no-untyped-def]
    """What a worker sends for one call after another."""
    written, calls = io.BytesIO(), Calls()
    worker = Worker(ScriptedHost(tmp_path), Channel(Pipes(io.BytesIO(), written)), calls)

    def ask(name: str, call: int = 1, *, cancelled: bool = False) -> list[dict]:
        written.seek(0)
        written.truncate()
        if cancelled:
            calls.cancel(call)
        worker._answer({"type": "call", "id": call, "name": name, "arguments": {}})
        return [json.loads(line) for line in written.getvalue().splitlines()]

    return ask


def test_an_answer_carries_the_result_as_json_and_the_state_of_the_process(sent) -> None:  # type: ignore[no-untyped-def]
    (answer,) = sent("say", 7)
    assert (answer["type"], answer["id"], answer["run"], answer["png"]) == ("answer", 7, None, None)
    assert json.loads(answer["result"])["words"] == "hello"
    assert answer["state"]["models"] == []


@pytest.mark.bad_input
def test_a_deliberate_error_travels_with_its_class_and_text(sent) -> None:  # type: ignore[no-untyped-def]
    (error,) = sent("refuse")
    assert (error["error"], error["deliberate"]) == ("BadSite", True)
    assert error["text"] == "no such site; the sites are these."


def test_any_other_exception_is_logged_with_its_traceback_and_travels_without_its_text(
    sent, caplog: pytest.LogCaptureFixture  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    with caplog.at_level(logging.ERROR):
        (error,) = sent("break")
    assert (error["error"], error["deliberate"]) == ("KeyError", False)
    assert "secret" not in json.dumps(error)
    assert error["text"] in caplog.text
    assert "secret.bin" in caplog.text


def test_progress_is_sent_at_most_five_times_a_second(sent) -> None:  # type: ignore[no-untyped-def]
    *progress, answer = sent("report")
    assert answer["type"] == "answer"
    assert 1 <= len(progress) <= 3
    assert progress[0] == {"type": "progress", "id": 1, "done": 0.0, "total": 1000.0, "what": "working"}


def test_a_cancelled_call_stops_at_its_next_report_and_the_following_one_runs(sent) -> None:  # type: ignore[no-untyped-def]
    (error,) = sent("report", 1, cancelled=True)
    assert error["error"] == Cancelled.__name__
    assert sent("report", 1)[-1]["type"] == "answer"


def test_what_libraries_print_never_reaches_the_protocol() -> None:
    code = (
        "import os, sys; from anatomist.worker import Channel, take_pipes\n"
        "channel = Channel(take_pipes()); print('banner'); os.write(1, b'from compiled code\\n')\n"
        "channel.send(type='ready'); sys.stdout.write('unflushed')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, input="")
    assert json.loads(done.stdout) == {"type": "ready"}
    assert all(words in done.stderr for words in ("banner", "from compiled code", "unflushed"))


def worker_process(workspace: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "anatomist.worker", "--workspace", str(workspace), *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def ask(process: subprocess.Popen[bytes], **message: object) -> dict:
    """Send a message; the next one that is no progress."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    while True:
        answer = json.loads(process.stdout.readline())
        if answer["type"] not in ("progress", "ready"):
            return answer


def test_a_new_process_loads_again_what_an_old_one_held_under_the_same_handle(tmp_path: Path) -> None:
    with worker_process(tmp_path) as old:
        loaded = ask(old, type="call", id=1, name="load_model", arguments={"name": "toy-induction"})
        held = [{**loaded["state"]["models"][0], "handle": "mine"}]
        old.stdin.close()  # type: ignore[union-attr]
        assert old.wait(20) == 0
    with worker_process(tmp_path) as new:
        assert new.stdin is not None
        new.stdin.write(json.dumps({"type": "restore", "models": held}).encode() + b"\n")
        waiting = ask(new, type="call", id=1, name="load_model", arguments={"name": "toy-induction-soft"})
        assert [m["handle"] for m in waiting["waiting"]] == ["mine"]
        answer = ask(new, type="call", id=2, name="generate", arguments={**QUIET, "model": "mine"})
        assert json.loads(answer["result"])["text"] == "t2"
        assert "mine" in [m["handle"] for m in answer["state"]["models"]]
        assert answer["waiting"] == []
        new.stdin.close()


def test_a_process_over_its_memory_limit_ends_with_a_status_that_says_so(tmp_path: Path) -> None:
    with worker_process(tmp_path, "--memory-bytes", "1000000") as process:
        assert process.wait(30) == OUT_OF_MEMORY
