"""Generated prompts on a real tokenizer and a real model."""

from __future__ import annotations

import pytest
from anatomist.model.protocol import Model
from anatomist.prompts.encoding import encode
from anatomist.prompts.given import inline_set
from anatomist.prompts.make import TASKS, make_prompts
from anatomist.technique import Context
from anatomist.techniques import check_prompts

EXAMPLE = {
    "clean": "When John and Mary went to the shops, John gave the bag to", "answer": " Mary", "wrong": " John",
}  # fmt: skip


def checked(model: Model, prompts: object, *, bos: bool | None = None) -> check_prompts.PromptCheck:
    arguments = check_prompts.Arguments(model="smollm2-135m", prompts="given", bos=bos)
    return check_prompts.run(Context(model, prompts), arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_made(task: str, smollm2: Model) -> None:
    for part in make_prompts(task, 32, 0, smollm2):
        e = encode(part, smollm2, need=("corrupted", "answer", "wrong"))
        assert e.n == 32
        assert e.warnings == ()


def test_digits_are_asked_one_by_one(smollm2: Model) -> None:
    discovery, _ = make_prompts("greater_than", 16, 0, smollm2)
    e = encode(discovery, smollm2)
    for row, prompt in enumerate(discovery.prompts):
        tens = int(e.clean.strings[row][e.roles["TENS"][row]])
        assert prompt.answer == tuple("0123456789"[tens + 1 :])
        assert prompt.wrong == tuple("0123456789"[:tens])


@pytest.mark.hand_worked
@pytest.mark.parametrize(("bos", "logit_diff", "p"), [(None, 3.121, 0.842), (True, 4.616, 0.889)])
def test_the_known_sentence_gives_its_known_numbers(
    bos: bool | None, logit_diff: float, p: float, smollm2: Model
) -> None:
    found = checked(smollm2, inline_set([EXAMPLE]), bos=bos)
    assert found.bos == bool(bos)
    assert found.clean.logit_diff is not None
    assert found.clean.logit_diff.mean == pytest.approx(logit_diff, abs=2e-3)
    assert found.clean.p_answer.mean == pytest.approx(p, abs=1e-3)


@pytest.mark.slow
@pytest.mark.positive_control
def test_the_model_identifies_indirect_objects(smollm2: Model) -> None:
    """200 prompts; each assertion rules out another mistake: answers swapped, ABBA and BABA confused, no flip."""
    discovery, _ = make_prompts("ioi", 200, 0, smollm2)
    found = checked(smollm2, discovery)
    assert found.worth_going_on
    assert found.clean.logit_diff is not None
    assert found.clean.logit_diff.mean == pytest.approx(3.8, abs=0.5)
    assert found.clean.beats_wrong is not None
    assert found.clean.beats_wrong > 0.97
    assert found.clean.top1 == pytest.approx(0.81, abs=0.08)
    abba, baba = (next(v for v in found.variants if v.name == name).clean.logit_diff for name in ("ABBA", "BABA"))
    assert abba is not None
    assert baba is not None
    assert abba.mean < baba.mean
    assert found.corrupted is not None
    assert found.corrupted.logit_diff is not None
    assert found.corrupted.logit_diff.mean == pytest.approx(-found.clean.logit_diff.mean, abs=0.6)
