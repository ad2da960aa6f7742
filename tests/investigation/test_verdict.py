"""What the checks add up to."""

from __future__ import annotations

import pytest
from anatomist.investigation.record import CHECKS, REQUIRED, Check, CheckName, Outcome, VerdictName
from anatomist.investigation.verdict import verdict_of, wording

from .on_toys import finding


def checks(outcomes: dict[CheckName, Outcome] | None = None, **figures: float) -> list[Check]:
    """All seven passed, but for those named."""
    given = outcomes or {}
    return [
        Check(name=name, outcome=given.get(name, "pass"), reason=f"the {name} reason", figures=figures)
        for name in CHECKS
    ]


TOO_SMALL = {"share": 0.1, "low": 0.0, "high": 0.2, "minimum": 0.5}
UNDECIDED = {"share": 0.4, "low": 0.2, "high": 0.6, "minimum": 0.5}


@pytest.mark.positive_control
def test_everything_passed_is_validated() -> None:
    assert verdict_of(checks())[0] == "validated"


def test_checks_that_are_not_required_may_be_out_of_reach() -> None:
    assert verdict_of(checks({"seeds": "not_applicable", "alternatives": "not_applicable"}))[0] == "validated"


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_check_that_could_not_be_made_leaves_it_supported_at_most(name: CheckName) -> None:
    expected = "inconclusive" if name == "baseline" else "supported"
    assert verdict_of(checks({name: "not_applicable"})) == (expected, (f"{name}: the {name} reason",))
    assert verdict_of([c for c in checks() if c.name != name]) == (expected, (f"{name}: was not made",))


@pytest.mark.negative_control
def test_without_a_check_that_shows_an_effect_nothing_is_supported() -> None:
    assert verdict_of([])[0] == "inconclusive"
    assert verdict_of(checks({"causal": "not_applicable", "held_out": "not_applicable"}))[0] == "inconclusive"


@pytest.mark.negative_control
@pytest.mark.parametrize("name", CHECKS)
def test_one_failed_check_of_any_kind_prevents_validation(name: CheckName) -> None:
    verdict, reasons = verdict_of(checks({name: "fail"}, **UNDECIDED))
    assert (verdict, reasons) == ("inconclusive", (f"{name}: the {name} reason",))


@pytest.mark.parametrize("name", ["causal", "held_out"])
def test_an_interval_wholly_below_what_matters_refutes(name: CheckName) -> None:
    assert verdict_of(checks({name: "fail"}, **TOO_SMALL))[0] == "refuted"


@pytest.mark.negative_control
def test_nothing_is_refuted_where_the_model_does_not_do_the_task() -> None:
    assert verdict_of(checks({"baseline": "fail", "causal": "fail"}, **TOO_SMALL))[0] == "inconclusive"


def test_a_failed_check_outweighs_a_missing_one() -> None:
    assert verdict_of(checks({"specific": "fail", "held_out": "not_applicable"}))[0] == "inconclusive"


def test_the_wording_claims_no_more_than_the_verdict() -> None:
    figures = {"share": 0.93}
    verdicts: tuple[VerdictName, ...] = ("validated", "supported", "refuted", "inconclusive")
    said = {v: wording(finding(), v, checks(None, **figures)) for v in verdicts}
    assert said["validated"].startswith("On held-out prompts, L0H1, L1H2 together are needed for the behaviour")
    assert "L1H2 is needed" in wording(finding(("L1H2",)), "validated", checks(None, **figures))
    assert said["validated"].endswith("A circuit, not the circuit.")
    assert "not every required check" in said["supported"]
    assert "does not hold" in said["refuted"]
    assert "do not decide" in said["inconclusive"]
    assert all("(share 0.93)" in text for text in said.values())
