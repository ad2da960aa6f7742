"""The logit lens: its formula, what it finds on a known circuit, and where it finds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from anatomist.errors import BadPrompts, ParityError
from anatomist.measures.metrics import widened
from anatomist.model.backends.toy_circuits import tiny
from anatomist.model.loading import wrap_model
from anatomist.model.sites import Site
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.technique import Context
from anatomist.techniques import logit_lens
from anatomist.techniques.logit_lens import Arguments

from tests.backends.families import FAMILIES

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

PROMPT = Prompt(clean="t3 t7 t1 t3", answer="t7", wrong="t1")


def read(model: Model, *prompts: Prompt, **more: object) -> logit_lens.LogitLensResult:
    chosen = PromptSet(handle="inline", task="inline", split="inline", prompts=prompts)
    arguments = Arguments(model="m", prompts=prompts, **more)  # type: ignore[arg-type]
    return logit_lens.run(Context(model=model, prompts=chosen), arguments)


@pytest.mark.hand_worked
def test_without_a_norm_the_lens_is_the_residual_times_the_unembedding(toy: Model) -> None:
    # The hand-set circuit has no norm and no soft-cap: what reads at a layer is resid @ W_U, and softmax of it.
    result = read(toy, PROMPT)
    tokens = toy.tokenize([PROMPT.clean])
    residual = toy.run(tokens, read=[Site("resid_post", 1)]).reads[Site("resid_post", 1)][0, -1]
    expected = (residual @ toy.weights.unembed()).softmax(-1)[7]
    assert result.layers[-1].probability.mean == pytest.approx(float(expected), abs=1e-6)
    # Unembedding 10 on the attended token: e^10 / (e^10 + 19) = 0.99914.
    assert result.layers[-1].probability.mean == pytest.approx(0.99914, abs=1e-4)
    assert result.layers[-1].logit_diff is not None
    assert result.layers[-1].logit_diff.mean == pytest.approx(10.0, abs=1e-3)


@pytest.mark.hand_worked
def test_ties_do_not_put_the_answer_on_top(toy: Model) -> None:
    # Before layer 1 nothing was written to the output: 20 equal logits, the answer's rank is 19 / 2.
    result = read(toy, PROMPT)
    assert result.layers[0].rank.mean == pytest.approx(9.5)
    assert result.layers[0].probability.mean == pytest.approx(1 / 20)


@pytest.mark.positive_control
def test_the_induction_answer_appears_after_the_layer_that_writes_it(toy: Model) -> None:
    result = read(toy, PROMPT)
    assert [r.layer for r in result.layers] == ["embed", "0", "1"]
    assert result.readable_from == "1"
    assert result.layers[-1].top[0] == "t7"
    assert result.table.shape == (3, 4)


@pytest.mark.negative_control
def test_an_answer_that_the_model_does_not_give_is_readable_nowhere(toy: Model) -> None:
    result = read(toy, Prompt(clean="t3 t7 t1 t3", answer="t5", wrong="t7"))
    assert result.readable_from is None
    assert "at no layer" in result.summary


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_last_layer_is_the_models_own_prediction_on_every_family(family: str) -> None:
    # Rules out a forgotten norm weight, a missing bias or soft-cap: each would move the last layer.
    model = wrap_model(FAMILIES[family](), None, name=family)
    prompts = [Prompt(clean=(1, 2, 3, 4), answer=5, wrong=6), Prompt(clean=(7, 8, 9), answer=1, wrong=2)]
    result = read(model, *prompts, positions=("last",))
    own = model.run(model.tokenize([p.clean for p in prompts]), logits_at=(3, 2)).logits
    assert own is not None
    expected = widened(own).softmax(-1)[[0, 1], [5, 1]].mean()
    assert result.layers[-1].probability.mean == pytest.approx(float(expected), abs=1e-6)
    assert result.self_tests[0].passed


def test_the_lens_of_a_middle_layer_is_the_norm_of_that_residual() -> None:
    # The wrong implementation this rules out: the final residual's scale used for every layer.
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    tokens = model.tokenize([(1, 2, 3, 4)])
    residual = model.run(tokens, read=[Site("resid_post", 0)]).reads[Site("resid_post", 0)][0, -1]
    weights = model.weights
    scaled = residual / (residual.pow(2).mean() + weights.final_norm().eps).sqrt() * weights.final_norm().weight
    expected = (scaled @ weights.unembed()).softmax(-1)[5]
    result = read(model, Prompt(clean=(1, 2, 3, 4), answer=5, wrong=6))
    assert result.layers[1].probability.mean == pytest.approx(float(expected), rel=1e-4)


def test_a_model_in_half_precision_is_read_and_says_so() -> None:
    model = wrap_model(FAMILIES["llama"]().to(torch.bfloat16), None, name="llama-half")
    result = read(model, Prompt(clean=(1, 2, 3, 4), answer=5, wrong=6))
    assert result.self_tests[0].passed
    assert result.self_tests[0].found > 1e-4  # float32's exactness is not claimed
    assert any("bfloat16" in w for w in result.warnings)


def test_a_lens_that_is_not_the_models_own_is_withheld(monkeypatch: pytest.MonkeyPatch, toy: Model) -> None:
    given = logit_lens.lens
    monkeypatch.setattr(logit_lens, "lens", lambda model, residual: 1.01 * given(model, residual))
    with pytest.raises(ParityError, match="differs from the model's own log-probabilities"):
        read(toy, PROMPT)


@pytest.mark.bad_input
def test_an_answer_is_needed(toy: Model) -> None:
    with pytest.raises(BadPrompts, match="no `answer`"):
        read(toy, Prompt(clean="t3 t7"))


@pytest.mark.bad_input
def test_the_shown_prompt_must_exist(toy: Model) -> None:
    with pytest.raises(BadPrompts, match=r"prompt 3 does not exist: there are 1 \(0 to 0\)"):
        read(toy, PROMPT, prompt=3)


def test_the_picture_shows_the_answer_and_the_table(toy: Model) -> None:
    figure = logit_lens.plot(read(toy, PROMPT))
    assert [p.kind for p in figure.panels] == ["lines", "lines", "heatmap"]
    assert torch.is_grad_enabled()


def test_smollm2_reads_the_name_late(smollm2: Model) -> None:
    prompts, _ = make_prompts("ioi", 8, 0, smollm2)
    arguments = Arguments(model="m", prompts=prompts.prompts, positions=("last",))
    result = logit_lens.run(Context(model=smollm2, prompts=prompts), arguments)
    half, last = result.layers[15], result.layers[-1]
    assert half.probability.mean < 0.05 < last.probability.mean
    assert result.self_tests[0].found < 1e-4


def test_tiny_is_a_model_like_any_other() -> None:
    assert read(tiny(), Prompt(clean=(0, 1), answer=1, wrong=0)).layers
