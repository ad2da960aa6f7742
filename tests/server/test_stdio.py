"""Over pipes, as clients start it: nothing but messages on stdout, and no kill loses what is stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

from .raw import RawServer, text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes the POSIX way")
PROMPT = {"clean": "t3 t7 t1 t3", "corrupted": "t5 t7 t1 t3", "answer": "t7", "wrong": "t1"}
TOY = {"model": "toy-induction", "prompts": [PROMPT]}


def libraries(process: int) -> str:
    maps = Path(f"/proc/{process}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    return maps.read_text()


def test_stdout_holds_messages_only_and_the_server_process_never_loads_torch(tmp_path: Path) -> None:
    with RawServer(tmp_path) as server:
        assert len(server.request("tools/list", {})["tools"]) > 10
        answer = server.call("patch_activations", **TOY)
        assert not answer.get("isError"), text(answer)
        assert "libtorch" not in libraries(server.process.pid)
        assert "libtorch" in libraries(server.worker().pid)
        worker = server.worker()
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in server.lines)
    assert server.process.returncode == 0
    gone, _ = psutil.wait_procs([worker], timeout=5)
    assert gone == [worker]


def test_a_worker_killed_in_a_sweep_is_an_error_and_the_next_call_loads_the_model_again(tmp_path: Path) -> None:
    with RawServer(tmp_path) as server:
        handle = server.call("load_model", name="toy-induction-soft")["structuredContent"]["handle"]
        long = many_prompts(server, handle)
        call = server.begin_call("patch_activations", **long)
        server.wait_for_progress("sweep")
        server.worker().kill()
        answer = server.answer_to(call)
        assert answer["isError"]
        assert "ended during patch_activations" in text(answer)
        assert "Nothing stored is lost" in text(answer)
        again = server.call("patch_activations", **{**TOY, "model": handle})
        assert not again.get("isError"), text(again)
        assert [r["run"] for r in server.call("list_runs")["structuredContent"]["runs"]] == [
            again["structuredContent"]["about"]["run"]
        ]


def test_a_server_killed_in_the_middle_of_a_write_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    with RawServer(tmp_path) as server:
        first = server.call("patch_activations", **TOY)["structuredContent"]["about"]["run"]
        server.begin_call("patch_activations", **many_prompts(server, "toy-induction"))
        server.wait_for_progress("sweep")
        assert [p.name for p in (tmp_path / "runs").glob(".*.writing")]
        worker = server.worker()
        server.process.kill()
    psutil.wait_procs([worker], timeout=5)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    with RawServer(tmp_path) as server:
        assert [r["run"] for r in server.call("list_runs")["structuredContent"]["runs"]] == [first]
        assert not server.call("get_run", run=first).get("isError")
        second = server.call("patch_activations", **TOY)
        assert not second.get("isError"), text(second)
        assert not list((tmp_path / "runs").glob(".*.writing"))


def test_a_cancelled_sweep_stores_nothing_and_the_next_call_works(tmp_path: Path) -> None:
    with RawServer(tmp_path) as server:
        call = server.begin_call("patch_activations", **many_prompts(server, "toy-induction"))
        server.wait_for_progress("sweep")
        server.send({"method": "notifications/cancelled", "params": {"requestId": call}})
        answer = server.call("generate", model="toy-induction", prompt="t1 t2 t1", max_new_tokens=1)
        assert not answer.get("isError"), text(answer)
        assert server.call("list_runs")["structuredContent"]["total"] == 0


def many_prompts(server: RawServer, model: str) -> dict:
    """A sweep over so many prompts that it takes some seconds."""
    made = server.call("make_prompts", task="induction", model=model, n=1000)
    assert not made.get("isError"), text(made)
    return {"model": model, "prompts": made["structuredContent"]["handle"], "site": "head", "grid": "head_position"}
