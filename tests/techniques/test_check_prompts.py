"""check_prompts on the hand-set induction circuit: does it measure, and does it say no when the answer is no?"""

from __future__ import annotations

import math
from typing import Any

import pytest
from anatomist.errors import BadPrompts, Cancelled
from anatomist.model.protocol import Model
from anatomist.prompts.given import inline_set
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context
from anatomist.techniques.check_prompts import Arguments, PromptCheck, plot, run

REPEATED = {"clean": "t1 t2 t3 t1", "corrupted": "t4 t5 t6 t4", "answer": "t2", "wrong": "t5"}


def check(model: Model, prompts: PromptSet | list[dict[str, Any]], **more: Any) -> PromptCheck:
    given = prompts if isinstance(prompts, PromptSet) else inline_set(prompts)
    return run(Context(model, given, **more), Arguments(model="toy-induction", prompts="given"))


@pytest.mark.hand_worked
def test_the_circuit_answers_with_the_logit_it_was_built_to_give(toy: Model) -> None:
    # Hard attention writes t2 to the output with weight 1, the unembedding gives it logit 10, all 19 others 0:
    # logit difference 10, P = e^10 / (e^10 + 19); corrupted writes t5, the wrong answer: -10 and 1 / (e^10 + 19).
    found = check(toy, [REPEATED])
    assert found.clean.logit_diff is not None
    assert found.clean.logit_diff.mean == pytest.approx(10, abs=1e-4)
    assert found.clean.p_answer.mean == pytest.approx(math.exp(10) / (math.exp(10) + 19), abs=1e-6)
    assert found.corrupted is not None
    assert found.corrupted.logit_diff is not None
    assert found.corrupted.logit_diff.mean == pytest.approx(-10, abs=1e-4)
    assert found.corrupted.p_answer.mean == pytest.approx(1 / (math.exp(10) + 19), abs=1e-6)
    assert found.gap is not None
    assert found.gap.mean == pytest.approx(20, abs=1e-4)


@pytest.mark.hand_worked
def test_masses_of_sets_are_compared(toy: Model) -> None:
    # {t2, t7}: log(e^10 + 1); {t5, t6, t8}: log 3.
    found = check(toy, [{**REPEATED, "answer": ("t2", "t7"), "wrong": ("t5", "t6", "t8")}])
    assert found.clean.logit_diff is not None
    assert found.clean.logit_diff.mean == pytest.approx(math.log((math.exp(10) + 1) / 3), abs=1e-4)
    assert found.answer_tokens == (2, 2)


@pytest.mark.positive_control
@pytest.mark.parametrize("split", [0, 1])
def test_a_task_the_model_does_is_worth_going_on_with(toy: Model, split: int) -> None:
    found = check(toy, make_prompts("induction", 48, 0, toy)[split])
    assert found.worth_going_on
    assert found.summary.startswith("Worth going on: ")
    assert (found.clean.top1, found.clean.beats_wrong, found.aligned, found.n) == (1.0, 1.0, True, 48)
    assert found.corrupted is not None
    assert (found.corrupted.top1, found.corrupted.top1_wrong) == (0.0, 1.0)
    assert {g.name for g in found.templates} >= {"half", "three quarters", "all but one"}
    assert sum(g.n for g in found.templates) == 48
    assert found.warnings == ()


@pytest.mark.negative_control
def test_answers_dealt_out_at_random_are_not_worth_going_on_with(toy: Model) -> None:
    prompts, _ = make_prompts("induction", 48, 0, toy)
    others = [*prompts.prompts[1:], prompts.prompts[0]]
    dealt = [
        {"clean": p.clean, "corrupted": p.corrupted, "answer": q.answer, "wrong": p.answer}
        for p, q in zip(prompts.prompts, others, strict=True)
        if q.answer != p.answer
    ]
    found = check(toy, dealt)
    assert not found.worth_going_on
    assert found.summary.startswith("Not worth going on: ")
    assert "the answer beats the wrong one on" in found.summary
    assert "Templates on which the wrong answer wins: inline" in " ".join(found.warnings)


@pytest.mark.negative_control
def test_a_counterfactual_that_changes_nothing_is_said_not_to(toy: Model) -> None:
    texts = (REPEATED["clean"], "t3 t2 t9 t3")
    found = check(toy, [{**REPEATED, "clean": text, "corrupted": text} for text in texts])
    assert not found.worth_going_on
    assert "does not clearly lower the metric" in found.summary
    assert "2 prompts are the same clean and corrupted" in " ".join(found.warnings)


@pytest.mark.negative_control
def test_a_prompt_with_nothing_to_repeat_gives_no_preference(toy: Model) -> None:
    found = check(toy, [{"clean": "t1 t2 t3 t4", "answer": "t7", "wrong": "t8"}])
    assert found.clean.logit_diff is not None
    assert found.clean.logit_diff.mean == pytest.approx(0, abs=1e-4)
    assert not found.worth_going_on


def test_without_a_wrong_answer_the_most_likely_token_decides(toy: Model) -> None:
    found = check(toy, [{"clean": "t1 t2 t3 t1", "answer": "t2"}, {"clean": "t4 t2 t4", "answer": "t9"}])
    assert found.clean.logit_diff is None
    assert found.corrupted is None
    assert found.aligned is None
    assert found.clean.top1 == 0.5
    assert found.worth_going_on
    assert "most likely token on 50% of prompts or more" in found.rule
    assert found.weakest[0].answer == "'t9'"
    assert found.weakest[0].top == "t2"


def test_where_the_sides_differ_is_named_by_role_and_token(toy: Model) -> None:
    found = check(toy, [{**REPEATED, "corrupted": "t1 t2 t3 t2", "wrong": "t3", "roles": {"END": 3}}])
    assert found.templates[0].first_difference == "END (3:t1 -> t2)"
    assert found.templates[0].example == "0:t1 1:t2 2:t3 3:t1"
    assert found.roles == ("END",)


def test_numbers_do_not_depend_on_how_prompts_are_batched(toy: Model) -> None:
    prompts, _ = make_prompts("induction", 40, 0, toy)
    wide, narrow = Context(toy, prompts), Context(toy, prompts, budget_bytes=1)
    arguments = Arguments(model="toy-induction", prompts="given")
    assert run(wide, arguments) == run(narrow, arguments)
    assert wide.arrays["logit_diff"].tensor.shape == (2, 40)
    assert (wide.arrays["logit_diff"].tensor == narrow.arrays["logit_diff"].tensor).all()


def test_per_prompt_numbers_are_kept_in_the_prompts_order(toy: Model) -> None:
    short, long = {"clean": "t1 t2 t1", "answer": "t2"}, {"clean": "t1 t2 t3 t4 t1", "answer": "t9"}
    context = Context(toy, inline_set([long, short, long]))
    run(context, Arguments(model="toy-induction", prompts="given"))
    assert (context.arrays["p_answer"].tensor[0] > 0.5).tolist() == [False, True, False]


def test_progress_counts_both_sides_and_can_stop_the_run(toy: Model) -> None:
    seen: list[tuple[float, float]] = []
    check(toy, [REPEATED], progress=lambda done, total, what: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]

    def stop(done: float, total: float, what: str) -> None:
        raise Cancelled("asked to stop")

    with pytest.raises(Cancelled):
        check(toy, [REPEATED], progress=stop)


def test_the_picture_has_a_bar_for_each_template_with_its_interval(toy: Model) -> None:
    found = check(toy, make_prompts("induction", 48, 0, toy)[0])
    figure = plot(found)
    assert [p.title for p in figure.panels] == ["Clean", "Corrupted, towards the clean answer"]
    for panel in figure.panels:
        assert panel.kind == "bars"
        assert panel.labels == ("half", "three quarters", "all but one")
        assert panel.low is not None
        assert None not in panel.low


def test_few_prompts_are_exploratory(toy: Model) -> None:
    assert "exploratory" in check(toy, [REPEATED]).warnings[0]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"answer": None}, "1 of 1 prompts have no `answer`"),
        ({"answer": "t2 t3"}, r"is 2 tokens \('t2' 't3'\)"),
        ({"corrupted": "t4 t5 t4"}, r"Prompt 0 diverges at position 0: clean \(4\).*corrupted \(3\)"),
    ],
)
def test_prompts_that_cannot_be_used_say_why(toy: Model, change: dict[str, Any], text: str) -> None:
    with pytest.raises(BadPrompts, match=text):
        check(toy, [{**REPEATED, **change}])


@pytest.mark.bad_input
def test_no_prompts_is_an_error(toy: Model) -> None:
    with pytest.raises(BadPrompts, match="needs prompts"):
        run(Context(toy), Arguments(model="toy-induction", prompts="given"))
