"""Each check on the hand-set circuit: passes for what is true by construction, fails for what is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from anatomist.investigation.bench import Setting
from anatomist.investigation.checks import run_check
from anatomist.investigation.record import CHECKS, Check, CheckName, ClaimKind
from anatomist.model.protocol import Model

from .on_toys import TRUE_HEADS, MemoryBench, case, finding, hypothesis


@pytest.fixture
def bench(toy: Model) -> MemoryBench:
    return MemoryBench(toy)


def made(bench: MemoryBench, name: CheckName, heads: Sequence[str] = TRUE_HEADS, **more: object) -> Check:
    return run_check(name, case(bench, finding(heads, **more)))


@pytest.mark.positive_control
@pytest.mark.parametrize("name", CHECKS)
def test_the_true_heads_pass_every_check(bench: MemoryBench, name: CheckName) -> None:
    check = made(bench, name)
    assert check.outcome == "pass", check.reason
    assert check.runs


@pytest.mark.positive_control
@pytest.mark.parametrize("kind", ["necessary", "sufficient", "mediating"])
def test_each_kind_of_causal_claim_has_its_own_intervention(bench: MemoryBench, kind: ClaimKind) -> None:
    assert made(bench, "causal", kind=kind).outcome == "pass"
    name, arguments = bench.calls[-1]
    assert (name, arguments.get("direction")) == {
        "necessary": ("ablate", None),
        "sufficient": ("patch_activations", "denoising"),
        "mediating": ("patch_activations", "noising"),
    }[kind]


@pytest.mark.negative_control
@pytest.mark.parametrize("name", ["causal", "specific", "held_out", "seeds", "effect_size", "alternatives"])
def test_heads_whose_writing_nobody_reads_fail_every_check_of_the_effect(bench: MemoryBench, name: CheckName) -> None:
    check = made(bench, name, ("L0H2", "L1H1"))
    assert check.outcome == "fail", check.reason


@pytest.mark.negative_control
@pytest.mark.parametrize("name", ["causal", "held_out", "seeds", "effect_size"])
def test_the_true_heads_with_the_wrong_sign_fail(bench: MemoryBench, name: CheckName) -> None:
    check = made(bench, name, direction="increase")
    assert check.outcome == "fail"
    assert min(v for v in check.figures.values() if v is not None) < -0.5


@pytest.mark.negative_control
def test_a_set_with_an_idle_head_is_not_specific(bench: MemoryBench) -> None:
    """L1H2 alone does all of it; L1H1 comes along for nothing, which the joint effect cannot show."""
    check = made(bench, "specific", ("L1H1", "L1H2"))
    assert check.outcome == "fail"
    assert "L1H1 do nothing alone and add nothing to the rest" in check.reason
    assert len(check.runs) == 2
    assert check.figures["p_each_part"] == 1.0  # each of the six others in the place of L1H1 does as much: nothing


def test_where_few_sets_exist_all_of_them_must_be_weaker(bench: MemoryBench) -> None:
    """Six heads are left to draw pairs from: 15 sets, so that p cannot be below 1 / 16; and six in each one's place."""
    check = made(bench, "specific")
    assert check.figures["p_each_part"] == pytest.approx(1 / 7)
    assert "so do none of the 6 there are near by: met" in check.reason
    assert check.figures["controls"] == 15
    assert check.figures["p"] == pytest.approx(1 / 16)
    assert "all alternatives weaker: met" in check.reason


@pytest.mark.hand_worked
def test_the_levels_of_all_attempts_add_up_to_no_more_than_the_level(bench: MemoryBench) -> None:
    """.05 / 2, .05 / 6, .05 / 12, ...: 1 / (k (k + 1)) adds up to 1 - 1 / (K + 1). p reaches them with 39, 119, 239."""
    cases = [case(bench, finding(), attempt=k) for k in range(1, 100)]
    assert sum(c.alpha for c in cases) == pytest.approx(0.05 * (1 - 1 / 100))
    assert [c.controls for c in cases[:3]] == [39, 119, 239]


@pytest.mark.negative_control
def test_a_model_that_gives_the_swapped_answers_fails_the_baseline(toy: Model) -> None:
    def swap(prompts: Sequence, seed: int) -> tuple:
        return tuple(p.model_copy(update={"answer": p.wrong, "wrong": p.answer}) for p in prompts)

    assert made(MemoryBench(toy, swap), "baseline").outcome == "fail"


def test_what_cannot_be_checked_says_why(bench: MemoryBench) -> None:
    mixed = made(bench, "causal", ("L0H1", "blocks.1.mlp_out"))
    assert (mixed.outcome, mixed.runs) == ("not_applicable", ())
    assert "Split the finding" in mixed.reason
    readable = made(bench, "causal", kind="decodable")
    assert readable.outcome == "not_applicable"
    everything = made(bench, "specific", [f"L{layer}H{head}" for layer in range(2) for head in range(4)])
    assert "no random sets could be drawn" in everything.reason


def test_rivals_stand_in_the_reason_of_the_alternatives(bench: MemoryBench) -> None:
    from dataclasses import replace

    at = replace(case(bench, finding()), hypothesis=hypothesis(rivals=("position alone",)))
    assert "Rivals on the ledger: position alone." in run_check("alternatives", at).reason


def test_seeds_are_drawn_apart(bench: MemoryBench) -> None:
    run_check("seeds", case(bench, finding(), setting=Setting(n=32, seeds=3)))
    assert len({arguments["prompts"] for _, arguments in bench.calls}) == 3
