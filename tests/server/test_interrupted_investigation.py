"""A server killed at random moments: all that was acknowledged is in the record, and nothing is half there."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from anatomist.host import Host
from anatomist.investigation.record import Investigation
from anatomist.store import Store

from .raw import RawServer

MODEL = "toy-induction"
MOMENTS = 10
LONGEST = 4.0  # seconds of work before a kill; a round of calls takes about one


def work(server: RawServer, investigation: str, prompts: str, acknowledged: list[tuple[str, str]]) -> None:
    """Rounds of hypothesis, decision and run, until the server is gone; what it acknowledged is noted."""
    words = {
        "statement": "These two heads copy.", "prediction": "Without them the logit difference falls by half.",
        "falsified_by": "It stays as it is.", "components": ["L0H1", "L1H2"],
    }  # fmt: skip
    number = 0
    while True:
        number += 1
        made = server.call("add_hypothesis", investigation=investigation, **words)
        acknowledged.append(("hypothesis", made["structuredContent"]["hypothesis"]["id"]))
        text = f"decision number {number} of this round"
        given = {"investigation": investigation, "text": text, "why": "to have many lines"}
        server.call("run_technique", name="log_decision", arguments=given)
        acknowledged.append(("decision", text))
        on = {"model": MODEL, "prompts": prompts, "investigation": investigation, "heads": ["L0H1", "L1H2"]}
        done = server.call("ablate", **on, together=True, controls=0)
        acknowledged.append(("run", done["structuredContent"]["about"]["run"]))


def until_killed(workspace: Path, investigation: str, prompts: str, after: float) -> list[tuple[str, str]]:
    acknowledged: list[tuple[str, str]] = []
    with RawServer(workspace) as server:
        server.call("ablate", model=MODEL, prompts=prompts, heads=["L0H1"])  # the worker is there, the model loaded
        timer = threading.Timer(after, server.process.kill)
        timer.start()
        with pytest.raises((AssertionError, BrokenPipeError, KeyError, ValueError)):
            work(server, investigation, prompts, acknowledged)
        timer.join()
        server.process.wait(20)
    return acknowledged


def lost(state: Investigation, acknowledged: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a client was told had been written and is not in the record."""
    there = {("hypothesis", h.id) for h in state.hypotheses} | {("decision", d.text) for d in state.decisions}
    there |= {("run", r.run) for r in state.runs}
    return [one for one in acknowledged if one not in there]


@pytest.mark.slow
def test_an_investigation_survives_ten_kills_at_random_moments(tmp_path: Path) -> None:
    rng, host = random.Random(7), Host(tmp_path)
    question = {"question": "Which heads copy?", "model": MODEL, "task": "induction"}
    investigation = str(host.call("open_investigation", question).result.model_dump()["investigation"])
    made = host.call("make_prompts", {"task": "induction", "model": MODEL, "n": 256})
    prompts = str(made.result.model_dump()["handle"])
    all_acknowledged: list[tuple[str, str]] = []
    for _ in range(MOMENTS):
        all_acknowledged += until_killed(tmp_path, investigation, prompts, rng.uniform(0.05, LONGEST))
        state, store = host.ledger.get(investigation), Store(tmp_path)
        assert not lost(state, all_acknowledged)
        assert [h.id for h in state.hypotheses] == [f"h{i + 1}" for i in range(len(state.hypotheses))]
        for run in state.runs:  # every run of the record is whole
            assert store.get(run.run).about().technique == "ablate"
            assert store.get(run.run).json("result.json")["summary"]
    assert len(all_acknowledged) >= 2 * MOMENTS, "the kills came before any work was done"
    status = host.call("investigation_status", {"investigation": investigation}).result.model_dump()
    assert status["summary"].startswith(investigation)
    again = host.call("ablate", {"model": MODEL, "prompts": prompts, "heads": ["L0H1"], "investigation": investigation})
    assert host.ledger.get(investigation).runs[-1].run == again.run_id
