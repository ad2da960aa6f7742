"""The investigation's operations, by name, through a host."""

from __future__ import annotations

from pathlib import Path

import pytest
from anatomist.errors import BadArguments, UnknownName
from anatomist.host import Host
from anatomist.operations.compare_runs import RunsCompared
from anatomist.operations.investigation_status import Status
from anatomist.operations.reproduce_run import NotReproduced, Reproduced

from tests.investigation.on_toys import MODEL, TRUE_HEADS, ablated, claimed, opened, predicted, prompts


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def investigation(host: Host) -> str:
    return opened(host)


def status(host: Host, investigation: str | None) -> Status:
    result = host.call("investigation_status", {"investigation": investigation}).result
    assert isinstance(result, Status)
    return result


def test_an_investigation_says_what_is_missing_and_what_to_call(host: Host, investigation: str) -> None:
    found = status(host, investigation)
    assert found.phase == 1
    assert "Missing: the model has been run at all (load_model, then make_prompts)" in found.summary
    assert status(host, None).investigations == (f"{investigation}: Which heads continue a repeated run?",)


def test_a_run_made_for_it_is_noted_with_its_label(host: Host, investigation: str) -> None:
    handle = prompts(host)
    ablated(host, investigation, handle, TRUE_HEADS, controls=0)
    predicted(host, investigation, TRUE_HEADS)
    ablated(host, investigation, handle, TRUE_HEADS, controls=0, split="held_out")
    noted = host.ledger.get(investigation).runs
    assert [(r.run, r.label, r.split) for r in noted] == [
        ("r-0001", "exploratory", "discovery"),
        ("r-0002", "confirmatory", "held_out"),
    ]


@pytest.mark.negative_control
def test_held_out_prompts_are_sealed_until_a_prediction_is_written(host: Host, investigation: str) -> None:
    handle = prompts(host)
    with pytest.raises(BadArguments, match=r"sealed until a prediction is written: call add_hypothesis"):
        ablated(host, investigation, handle, TRUE_HEADS, split="held_out")
    assert host.ledger.get(investigation).runs == ()
    with pytest.raises(UnknownName):
        host.store.get("r-0001")


@pytest.mark.bad_input
def test_a_run_of_an_unknown_investigation_is_refused_before_it_is_made(host: Host) -> None:
    with pytest.raises(UnknownName, match="i-0009"):
        ablated(host, "i-0009", prompts(host), TRUE_HEADS)


@pytest.mark.negative_control
def test_a_claim_rests_only_on_runs_of_its_own_investigation(host: Host, investigation: str) -> None:
    hypothesis, handle = predicted(host, investigation, TRUE_HEADS), prompts(host)
    elsewhere = host.call("ablate", {"model": MODEL, "prompts": handle, "heads": TRUE_HEADS, "controls": 0})
    for run in (elsewhere.run_id, "r-0999"):
        with pytest.raises(UnknownName, match="Evidence is a run made in this investigation"):
            claimed(host, investigation, hypothesis, run, TRUE_HEADS)


@pytest.mark.negative_control
def test_a_causal_claim_needs_a_run_that_intervenes(host: Host, investigation: str) -> None:
    hypothesis, handle = predicted(host, investigation, TRUE_HEADS), prompts(host)
    arguments = {"model": MODEL, "prompts": handle, "investigation": investigation}
    run = host.call("direct_logit_attribution", arguments).run_id
    with pytest.raises(BadArguments, match="needs a run that intervenes"):
        claimed(host, investigation, hypothesis, run, TRUE_HEADS)
    assert claimed(host, investigation, hypothesis, run, TRUE_HEADS, "direct") == "f1"


@pytest.mark.negative_control
def test_a_claim_about_other_heads_than_predicted_is_refused(host: Host, investigation: str) -> None:
    hypothesis = predicted(host, investigation, TRUE_HEADS)
    run = ablated(host, investigation, prompts(host), ["L0H2"], controls=0).run_id
    with pytest.raises(BadArguments, match=r"h1 predicts what L0H1, L1H2 do, the claim is about L0H2"):
        claimed(host, investigation, hypothesis, run, ["L0H2"])


@pytest.mark.bad_input
def test_a_claim_without_runs_cannot_be_recorded(host: Host, investigation: str) -> None:
    predicted(host, investigation, TRUE_HEADS)
    arguments = {
        "investigation": investigation, "claim": "needed for it", "hypothesis": "h1", "runs": [],
        "components": TRUE_HEADS, "kind": "necessary", "searched": 8,
    }  # fmt: skip
    with pytest.raises(BadArguments, match="runs"):
        host.call("record_finding", arguments)


def test_the_size_that_matters_comes_from_the_hypothesis(host: Host, investigation: str) -> None:
    hypothesis = predicted(host, investigation, TRUE_HEADS, minimum_effect=0.7, direction="increase")
    run = ablated(host, investigation, prompts(host), TRUE_HEADS, controls=0).run_id
    claimed(host, investigation, hypothesis, run, TRUE_HEADS)
    found = host.ledger.get(investigation).findings[0]
    assert (found.minimum_effect, found.direction) == (0.7, "increase")


def test_decisions_are_kept_with_their_reasons(host: Host, investigation: str) -> None:
    host.call("log_decision", {"investigation": investigation, "text": "resample, not zero", "why": "zero is far off"})
    decision = host.ledger.get(investigation).decisions[0]
    assert (decision.text, decision.why) == ("resample, not zero", "zero is far off")


def test_two_runs_are_compared_by_arguments_and_numbers(host: Host, investigation: str) -> None:
    handle = prompts(host)
    for ablation in ("resample", "resample", "zero"):
        ablated(host, investigation, handle, TRUE_HEADS, controls=0, ablation=ablation)
    same = host.call("compare_runs", {"first": "r-0001", "second": "r-0002"}).result
    other = host.call("compare_runs", {"first": "r-0001", "second": "r-0003"}).result
    assert isinstance(same, RunsCompared)
    assert isinstance(other, RunsCompared)
    assert (same.numbers.same, same.arguments, same.depends) == (True, (), ())
    assert [c.where for c in other.arguments] == ["ablation"]
    assert not other.numbers.same


@pytest.mark.positive_control
def test_a_run_made_again_in_a_fresh_process_gives_the_same_numbers(host: Host, investigation: str) -> None:
    run = ablated(host, investigation, prompts(host), TRUE_HEADS, ablation="resample").run_id
    made = host.call("reproduce_run", {"run": run, "absolute": 1e-6, "relative": 1e-6}).result
    assert isinstance(made, Reproduced)
    assert made.same, made.summary
    assert made.again != run
    assert made.numbers.compared > 20
    assert [c.where for c in made.depends] == []


@pytest.mark.bad_input
def test_a_run_that_cannot_be_made_again_says_what_the_fresh_process_said(host: Host, investigation: str) -> None:
    handle = prompts(host)
    run = ablated(host, investigation, handle, TRUE_HEADS, controls=0).run_id
    (host.shelf.folder / f"{handle}.json").unlink()
    with pytest.raises(NotReproduced, match=handle):
        host.call("reproduce_run", {"run": run})
