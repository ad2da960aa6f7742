"""The record's events and the state that they add up to."""

from __future__ import annotations

import pytest
from anatomist.investigation.record import EVENT, Decision, Opened, Verdict, add_up
from pydantic import ValidationError

from .on_toys import AT, TRUE_HEADS, finding, hypothesis

OPENED = Opened(at=AT, question="q", model="m")


def verdict(finding_id: str, name: str, attempt: int) -> Verdict:
    return Verdict.model_validate(
        {"at": AT, "finding": finding_id, "attempt": attempt, "verdict": name, "reasons": (), "wording": "w",
         "checks": (), "seed": 0}
    )  # fmt: skip


def test_events_add_up_to_a_state_in_the_order_they_were_written() -> None:
    events = [OPENED, hypothesis(), finding(), Decision(at=AT, text="left out", why="odd"), hypothesis(id="h2")]
    state = add_up("i-0001", events)
    assert [h.id for h in state.hypotheses] == ["h1", "h2"]
    assert state.finding("f1") == finding()
    assert state.hypothesis("h3") is None
    assert [d.text for d in state.decisions] == ["left out"]


def test_the_last_verdict_counts_and_every_attempt_is_kept() -> None:
    state = add_up("i-0001", [OPENED, finding(), verdict("f1", "inconclusive", 1), verdict("f1", "validated", 2)])
    last = state.last_verdict("f1")
    assert last is not None
    assert (last.verdict, state.attempts(finding()), state.last_verdict("f2")) == ("validated", 2, None)


@pytest.mark.negative_control
def test_the_same_claim_recorded_anew_does_not_start_counting_again() -> None:
    again = finding(id="f2", claim="the same in other words", components=("L1H2", "L0H1"))
    state = add_up("i-0001", [OPENED, finding(), again, verdict("f1", "inconclusive", 1)])
    assert state.attempts(again) == 1
    assert state.attempts(finding(("L1H2",), id="f3")) == 0


def test_every_event_comes_back_from_its_line() -> None:
    for event in (OPENED, hypothesis(), finding(), verdict("f1", "refuted", 1), Decision(at=AT, text="t", why="w")):
        assert EVENT.validate_json(event.model_dump_json()) == event


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [{"runs": ()}, {"components": ()}, {"minimum_effect": 0.0}, {"kind": "causes"}])
def test_a_finding_without_runs_components_or_a_size_that_matters_is_none(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        finding(TRUE_HEADS, **change)
