"""Metrics against numbers worked by hand; sets, leading axes, few columns, half precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from anatomist.errors import BadPrompts, NotFinite, UnknownName
from anatomist.measures.metrics import METRICS, Metric, kl, logit_diff, loss, metric_for, needs_rows, prob

# Masses 2, 3, 1, 4 (of 10): probabilities .2, .3, .1, .4.
LOGITS = torch.tensor([[2.0, 3.0, 1.0, 4.0]]).log()


@pytest.mark.hand_worked
def test_a_logit_difference_of_single_tokens_is_the_difference_of_their_logits() -> None:
    assert logit_diff(torch.tensor([[5.0, 1.5, 0.0]]), [[0]], [[1]]).tolist() == [3.5]


@pytest.mark.hand_worked
def test_sets_are_compared_by_their_masses() -> None:
    # {2, 3} = 5 against {1, 4} = 5: log 5 - log 5; a mean of logits would give log(6) / 2 - log(4) / 2.
    torch.testing.assert_close(logit_diff(LOGITS, [[0, 1]], [[2, 3]]), torch.tensor([0.0]))
    torch.testing.assert_close(prob(LOGITS, [[0, 1]]), torch.tensor([0.5]))
    torch.testing.assert_close(loss(LOGITS, [[0, 1]]), torch.tensor([2.0]).log())


@pytest.mark.hand_worked
def test_sets_of_different_sizes_in_one_batch_do_not_count_a_token_twice() -> None:
    both = LOGITS.repeat(2, 1)
    torch.testing.assert_close(prob(both, [[0], [0, 1, 3]]), torch.tensor([0.2, 0.9]))


@pytest.mark.hand_worked
def test_kl_is_taken_from_the_reference() -> None:
    # reference (1/2, 1/2), found (1/4, 3/4): 1/2 log 2 + 1/2 log(2/3) = .1438; the other way round it is .1308.
    found, reference = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    assert kl(found, reference).item() == pytest.approx(0.14384, abs=1e-5)


@pytest.mark.negative_control
def test_kl_of_a_run_from_itself_is_zero() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert kl(logits, logits).abs().max() < 1e-6


@pytest.mark.positive_control
def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 3000, dtype=torch.bfloat16)
    assert prob(logits, [[2999]]).dtype == torch.float32
    assert prob(logits, [[2999]]).item() == pytest.approx(1 / 3000, rel=1e-5)  # bf16 has no id 2999 and no sum 3000


def test_double_precision_stays() -> None:
    assert logit_diff(LOGITS.double(), [[0]], [[1]]).dtype == torch.float64


def test_leading_axes_are_kept() -> None:
    cells = torch.randn(4, 2, 3, 7, generator=torch.Generator().manual_seed(0))
    answers, wrongs = [[0], [1, 2], [6]], [[3], [4], [5, 0]]
    whole = logit_diff(cells, answers, wrongs)
    assert whole.shape == (4, 2, 3)
    torch.testing.assert_close(whole[3, 1], logit_diff(cells[3, 1], answers, wrongs))


def encoded(answers: object, wrongs: object = None) -> SimpleNamespace:
    return SimpleNamespace(answers=answers, wrongs=wrongs)


@pytest.mark.hand_worked
def test_a_logit_is_that_of_the_answer_whatever_the_others_are() -> None:
    metric = Metric("logit", answers=((2,), (0,)))
    assert metric(torch.tensor([[1.0, 2.0, 5.0], [3.0, 9.0, 0.0]])).tolist() == [5.0, 3.0]
    assert metric.ids == (0, 2)
    assert metric(torch.tensor([[1.0, 5.0], [3.0, 0.0]]), whole=False).tolist() == [5.0, 3.0]


def test_a_logit_difference_needs_only_its_own_columns() -> None:
    prompts = encoded(((5,), (2, 9)), ((7,), (5,)))
    metric = metric_for("logit_diff", prompts)
    assert metric.ids == needs_rows("logit_diff", prompts) == (2, 5, 7, 9)
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(metric(logits), metric(logits[:, [2, 5, 7, 9]], whole=False))


@pytest.mark.parametrize("name", ["logprob", "prob", "loss"])
def test_probabilities_need_the_whole_vocabulary(name: str) -> None:
    assert needs_rows(name, encoded(((0,),), ((1,),))) is None


def test_rows_of_a_metric_are_its_values_at_those_rows() -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    reference = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    prompts = encoded(((0,), (1,), (2,)), ((3,), (4,), (5,)))
    for name in METRICS:
        metric = metric_for(name, prompts, reference=reference)
        torch.testing.assert_close(metric.rows([2, 0, 2])(logits[[2, 0, 2]]), metric(logits)[[2, 0, 2]])


@pytest.mark.bad_input
def test_an_unknown_metric_names_those_that_exist() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'logit_diff'"):
        metric_for("logit_dif", encoded(((0,),)))


@pytest.mark.bad_input
def test_a_metric_says_what_the_prompts_lack() -> None:
    with pytest.raises(BadPrompts, match="needs `wrong` on every prompt"):
        metric_for("logit_diff", encoded(((0,),)))
    with pytest.raises(BadPrompts, match="needs the logits of the unedited run"):
        metric_for("kl", encoded(None))


@pytest.mark.bad_input
def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NotFinite, match="prob is not finite on 1 of 2 values"):
        Metric("prob", ((0,), (0,)))(torch.tensor([[1.0, 2.0], [float("nan"), 2.0]]))


@pytest.mark.bad_input
def test_fewer_answer_sets_than_rows_are_refused() -> None:
    with pytest.raises(BadPrompts, match="2 rows of logits need one answer set each"):
        logit_diff(LOGITS.repeat(2, 1), [[0]], [[1]])
