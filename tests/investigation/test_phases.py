"""Where an investigation stands, and how its runs are labelled."""

from __future__ import annotations

from anatomist.investigation.phases import current_phase, label_of, steps
from anatomist.investigation.record import AnyEvent, Decision, Investigation, NotedRun, Opened, add_up

from .on_toys import AT, finding, hypothesis
from .test_record import verdict


def noted(technique: str) -> NotedRun:
    return NotedRun(at=AT, run="r-0001", technique=technique, label="exploratory", summary="s")


def after(*events: AnyEvent) -> Investigation:
    return add_up("i-0001", [Opened(at=AT, question="q", model="m"), *events])


def test_each_phase_begins_when_the_one_before_lacks_nothing() -> None:
    done: list[AnyEvent] = []
    stages: list[tuple[list[AnyEvent], int]] = [
        ([], 1),
        ([noted("check_prompts")], 2),
        ([hypothesis(rivals=("another head",))], 3),
        ([noted("ablate")], 4),
        ([finding(), Decision(at=AT, text="t", why="w")], 5),
    ]
    for events, phase in stages:
        done += events
        assert current_phase(steps(after(*done))) == phase


def test_a_finding_that_was_not_checked_is_named_as_missing() -> None:
    lacking = [s.next_call for s in steps(after(finding())) if not s.done]
    assert "validate_finding" in lacking
    checked = [s.next_call for s in steps(after(finding(), verdict("f1", "refuted", 1))) if not s.done]
    assert "validate_finding" not in checked


def test_attribution_alone_is_no_causal_run() -> None:
    lacking = [s.need for s in steps(after(noted("direct_logit_attribution"))) if not s.done]
    assert "a causal run, not attribution alone" in lacking


def test_a_run_is_confirmatory_only_on_held_out_prompts_after_a_prediction() -> None:
    assert label_of(after(hypothesis()), "held_out") == "confirmatory"
    assert label_of(after(hypothesis()), "discovery") == "exploratory"
    assert label_of(after(hypothesis()), None) == "exploratory"
    assert label_of(after(), "held_out") == "exploratory"
