"""How often the verdict is wrong: claims that are false by construction, on models that do the task.

The models are hand-set induction circuits whose six other heads are drawn by a seed, with attention from hard to soft.
Null claims: heads drawn at random among those that take no part (one to three of them), the true heads with the wrong
sign, one true head beside an idle one, and the true heads on prompts whose answers are swapped at random. 95% bounds
are Clopper and Pearson's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
from anatomist.investigation.bench import Setting
from anatomist.investigation.checks import run_check
from anatomist.investigation.record import CHECKS, CheckName, Finding
from anatomist.investigation.verdict import verdict_of
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.protocol import Model
from anatomist.prompts.prompt_set import Prompt

from .on_toys import IDLE_HEADS, TRUE_HEADS, MemoryBench, Spoil, case, finding

SETTING = Setting(n=32, controls=39, seeds=2)
SHARPNESS = (40.0, 12.0, 8.0, 6.0)  # hard attention to one that is right nine times in ten
ORDER: tuple[CheckName, ...] = ("baseline", "causal", "held_out", "effect_size", "specific", "seeds", "alternatives")


class Trial(NamedTuple):
    """One investigation: a claim about a model, and prompts as they are or spoilt."""

    kind: str
    model: Model
    claim: Finding
    spoil: Spoil
    seed: int


@cache
def variant(seed: int) -> Model:
    return induction(sharpness=SHARPNESS[seed % len(SHARPNESS)], seed=seed, name=f"toy-{seed}")


def as_drawn(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    return tuple(prompts)


def swapped(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    """Answer and wrong answer change places at random: no head can be needed for a coin's fall."""
    rng = random.Random(seed)
    flips = [rng.random() < 0.5 for _ in prompts]
    return tuple(
        p.model_copy(update={"answer": p.wrong, "wrong": p.answer}) if flip else p
        for p, flip in zip(prompts, flips, strict=True)
    )


def null(i: int) -> Trial:
    """The i-th false claim."""
    rng, model = random.Random(i), variant(i % 12)
    kind = ("idle heads", "idle heads", "swapped answers", "wrong sign", "an idle passenger")[i % 5]
    if kind == "idle heads":
        return Trial(kind, model, finding(rng.sample(IDLE_HEADS, rng.randint(1, 3))), as_drawn, i)
    if kind == "swapped answers":
        return Trial(kind, model, finding(), swapped, i)
    if kind == "wrong sign":
        return Trial(kind, model, finding(direction="increase"), as_drawn, i)
    return Trial(kind, model, finding((rng.choice(TRUE_HEADS), rng.choice(IDLE_HEADS))), as_drawn, i)


def true(i: int) -> Trial:
    return Trial("true", variant(i % 12), finding(), as_drawn, i)


def verdict(trial: Trial, without: Sequence[CheckName] = ()) -> str:
    """As `validate` comes to it; it stops at the first failure, after which nothing can be validated any more."""
    at = case(MemoryBench(trial.model, trial.spoil), trial.claim, setting=replace(SETTING, seed=1000 + trial.seed))
    made = []
    for name in ORDER:
        if name not in without:
            made.append(run_check(name, at))
        if made and made[-1].outcome == "fail":
            break
    if without:  # a rule that does not ask for these checks
        return "validated" if all(c.outcome == "pass" for c in made) else "not"
    return verdict_of(made)[0]


def upper_bound(wrong: int, of: int) -> float:
    """Clopper and Pearson's upper 95% end (one-sided 97.5%)."""
    from scipy.stats import beta

    return 1.0 if wrong == of else float(beta.ppf(0.975, wrong + 1, of - wrong))


def test_the_study_makes_every_check() -> None:
    assert set(ORDER) == set(CHECKS)


@pytest.mark.hand_worked
def test_no_error_in_two_hundred_bounds_the_rate_below_two_percent() -> None:
    """1 - .025 ** (1 / 200) = .0183."""
    assert upper_bound(0, 200) == pytest.approx(1 - 0.025 ** (1 / 200))


@pytest.mark.negative_control
def test_of_twenty_false_claims_none_is_validated() -> None:
    assert [t.kind for t in map(null, range(20)) if verdict(t) == "validated"] == []


@pytest.mark.positive_control
def test_of_ten_true_claims_nine_or_more_are_validated() -> None:
    assert sum(verdict(true(i)) == "validated" for i in range(10)) >= 9


def swapped_throughout(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    """A task that the model never does: its heads are needed for the opposite."""
    return tuple(p.model_copy(update={"answer": p.wrong, "wrong": p.answer}) for p in prompts)


def swapped_in_discovery(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    """An effect that is not there on the templates of discovery; only the held-out part has 'a quarter'."""
    held_out = any(p.template == "a quarter" for p in prompts)
    return tuple(prompts) if held_out else swapped(prompts, seed)


def not_on_the_kept_back_template(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    """L0H1 is needed on the templates of discovery; on the other one nothing repeats, and L1H2 copies from anywhere."""

    def unrepeated(p: Prompt) -> Prompt:
        clean, corrupted = list(p.clean), list(p.corrupted or p.clean)
        half = p.roles["END"] + 1 - len(set(clean))  # tokens of the second copy
        first = clean[: len(clean) - half]
        spare = [t for t in range(20) if t not in (*first, p.wrong)][:half]
        return p.model_copy(update={"clean": (*first, *spare), "corrupted": (*corrupted[: len(first)], *spare)})

    return tuple(unrepeated(p) if p.template == "a quarter" else p for p in prompts)


def swapped_here_and_there(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    """An effect whose size is anybody's guess: of the templates of discovery each fifth prompt has the opposite one."""
    flipped = (p.template != "a quarter" and i % 5 == 4 for i, p in enumerate(prompts))
    return tuple(
        p.model_copy(update={"answer": p.wrong, "wrong": p.answer}) if flip else p
        for p, flip in zip(prompts, flipped, strict=True)
    )


@pytest.mark.negative_control
@pytest.mark.parametrize(
    ("off", "claim", "spoil"),
    [
        (["baseline", "alternatives"], finding(), swapped_throughout),  # the second metric guards against it too
        (["causal"], finding(), swapped_in_discovery),
        (["specific"], finding(("L1H2", "L1H1")), as_drawn),
        # one of two serial heads is not specific: the other weighs more
        (["held_out", "specific"], finding(("L0H1",), minimum_effect=0.3), not_on_the_kept_back_template),
        (["effect_size"], finding(minimum_effect=0.8), swapped_here_and_there),
    ],
)
def test_without_a_check_a_null_made_for_it_is_validated(off: list[CheckName], claim: Finding, spoil: Spoil) -> None:
    trials = [Trial("made for it", variant(i), claim, spoil, i) for i in range(3)]
    assert [verdict(t) == "validated" for t in trials] == [False] * 3
    assert sum(verdict(t, without=off) == "validated" for t in trials) >= 2


@pytest.mark.slow
@pytest.mark.negative_control
def test_of_two_hundred_and_fifty_false_claims_at_most_one_in_twenty_is_validated() -> None:
    kinds = [t.kind for t in map(null, range(250)) if verdict(t) == "validated"]
    bound = upper_bound(len(kinds), 250)
    assert bound <= 0.05, f"{len(kinds)} of 250 validated, upper 95% bound {bound:.3f}: {sorted(kinds)}"


@pytest.mark.slow
@pytest.mark.positive_control
def test_of_a_hundred_true_claims_at_least_nine_in_ten_are_validated() -> None:
    assert sum(verdict(true(i)) == "validated" for i in range(100)) >= 90
