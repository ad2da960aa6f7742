"""A finding from end to end, through a host: what is true is validated, what is not never is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from anatomist.errors import UnknownName
from anatomist.host import Host

from .on_toys import TRUE_HEADS, ablated, claimed, opened, predicted, prompts, validated, whole


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.positive_control
def test_the_true_heads_are_validated_as_necessary_and_every_check_has_its_runs(host: Host) -> None:
    verdict = whole(host, TRUE_HEADS)
    assert verdict.verdict == "validated", verdict.reasons
    assert {c.outcome for c in verdict.checks} == {"pass"}
    noted = {r.run: r for r in host.ledger.get("i-0001").runs}
    for check in verdict.checks:
        assert check.runs
        for run in check.runs:
            assert noted[run].purpose == "check of f1"
            assert host.store.get(run).about().run == run


@pytest.mark.negative_control
@pytest.mark.parametrize(
    ("heads", "prediction", "verdict"),
    [
        (("L0H2", "L1H1"), {}, "refuted"),  # random heads
        (("L1H3",), {}, "refuted"),  # a wrong head
        (("L0H1", "L1H1"), {}, "inconclusive"),  # one right and one wrong
        (TRUE_HEADS, {"direction": "increase"}, "refuted"),  # the wrong sign
    ],
)
def test_what_is_not_so_is_never_validated(
    host: Host, heads: Sequence[str], prediction: dict[str, object], verdict: str
) -> None:
    found = whole(host, heads, "necessary", **prediction)
    assert found.verdict == verdict, found.summary
    assert found.reasons


@pytest.mark.negative_control
def test_a_finding_on_one_chosen_prompt_is_not_validated(host: Host) -> None:
    """Prompts of one's own cannot be drawn afresh: no check can be made, nothing is said to hold."""
    investigation = opened(host, task=None)
    picked = [{"clean": [1, 2, 3, 1], "answer": 2, "wrong": 5}, {"clean": [4, 5, 6, 4], "answer": 5, "wrong": 2}]
    hypothesis = predicted(host, investigation, TRUE_HEADS)
    run = ablated(host, investigation, picked, TRUE_HEADS, controls=0).run_id
    verdict = validated(host, investigation, claimed(host, investigation, hypothesis, run, TRUE_HEADS))
    assert verdict.verdict == "inconclusive"
    assert {c.outcome for c in verdict.checks} == {"not_applicable"}


def test_leaving_out_a_required_check_leaves_it_supported(host: Host) -> None:
    investigation, handle = opened(host), prompts(host)
    hypothesis = predicted(host, investigation, TRUE_HEADS)
    run = ablated(host, investigation, handle, TRUE_HEADS, controls=0).run_id
    finding = claimed(host, investigation, hypothesis, run, TRUE_HEADS)
    verdict = validated(host, investigation, finding, checks=["baseline", "causal"])
    assert verdict.verdict == "supported"
    assert any(reason.startswith("specific: was not made") for reason in verdict.reasons)


def test_a_second_attempt_draws_other_prompts_and_is_counted_under_any_name(host: Host) -> None:
    investigation, handle = opened(host), prompts(host)
    hypothesis = predicted(host, investigation, TRUE_HEADS)
    run = ablated(host, investigation, handle, TRUE_HEADS, controls=0).run_id
    first, again = (claimed(host, investigation, hypothesis, run, TRUE_HEADS) for _ in range(2))
    tried = [validated(host, investigation, f, checks=["causal"]) for f in (first, first, again)]
    assert [t.attempt for t in tried] == [1, 2, 3]
    sets = {host.store.get(t.checks[0].runs[0]).json("arguments.json")["prompts"] for t in tried}
    assert len(sets) == 3


@pytest.mark.bad_input
def test_an_unknown_finding_is_refused(host: Host) -> None:
    investigation = opened(host)
    with pytest.raises(UnknownName, match="Call record_finding first"):
        validated(host, investigation, "f1")
