"""detect_heads: exactly the heads that were set by hand, nothing in untrained models, one null per configuration."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from anatomist.causal import head_scores
from anatomist.causal.head_scores import copying_scores, repeated_tokens
from anatomist.errors import BadArguments, WouldNotFit
from anatomist.model.backends.toy_circuits import induction, random_toy, tiny
from anatomist.model.loading import random_twin, wrap_model
from anatomist.model.protocol import Model
from anatomist.technique import Context
from anatomist.techniques.detect_heads import Arguments, DetectHeadsResult, KindScores, plot, run

from tests.backends.families import FAMILIES


def detect(model: Model, *, budget: int = 2**31, **more: Any) -> DetectHeadsResult:
    given = {"model": "m", "rows": 4, **more}
    return run(Context(model, budget_bytes=budget, random_twin=partial(random_twin, model)), Arguments(**given))


def kind(result: DetectHeadsResult, name: str) -> KindScores:
    return next(k for k in result.kinds if k.kind == name)


@pytest.mark.positive_control
def test_exactly_the_two_heads_set_by_hand_are_named() -> None:
    """Rules out an induction score that is off by one: L1H2's weight stands one key after the earlier occurrence."""
    found = detect(induction())
    assert found.named == {
        "previous_token": ("L0H1",), "induction": ("L1H2",), "duplicate_token": (), "first_token": (),
        "copying": ("L1H2",),
    }  # fmt: skip
    for name, layer, head in (("previous_token", 0, 1), ("induction", 1, 2), ("copying", 1, 2)):
        assert kind(found, name).mean.at(layer, head) == pytest.approx(1, abs=1e-5)
    assert all(t.passed for t in found.self_tests)


@pytest.mark.hand_worked
def test_even_attention_scores_the_mean_of_one_over_the_keys_seen() -> None:
    """Runs of 5, twice: query p sees p + 1 keys. previous: mean of 1/2 .. 1/10; induction: mean of 1/6 .. 1/10.

    Queries of zero attend evenly.
    """
    model = random_toy(vocabulary=12, n_ctx=16)
    for block in model.weights.blocks:
        block.q.zero_()
    found = detect(model, length=5)
    before, after = sum(1 / n for n in range(2, 11)) / 9, sum(1 / n for n in range(6, 11)) / 5
    expected = {"previous_token": before, "first_token": before, "induction": after, "duplicate_token": after}
    for name, value in expected.items():
        assert kind(found, name).uniform == pytest.approx(value, abs=1e-6)
        assert kind(found, name).mean.values == pytest.approx([value] * 4, abs=1e-6)
    assert not any(found.named[name] for name in expected)  # type: ignore[index]


@pytest.mark.hand_worked
@pytest.mark.parametrize("family", ["toy", "gpt2", "llama", "gemma3"])
def test_copying_is_that_of_the_matrix_written_out(family: str) -> None:
    """V by V through the norms' linear parts. Rules out a transposed matrix, a wrong group, a forgotten norm weight."""
    model = random_toy() if family == "toy" else wrap_model(FAMILIES[family](), None, name=family)
    w, layer, head = model.weights, model.info.n_layers - 1, 1
    norm, post = w.attention_norm(layer), w.post_attention_norm(layer)
    group = head // (model.info.n_heads // model.info.n_kv_heads)
    x = norm(w.embed()) - (0 if norm.bias is None else norm.bias)
    written = x @ w.v(layer)[group] @ w.o(layer)[head]
    for later in (post, w.final_norm()):
        if later is not None and later.kind != "none":
            written = (written - written.mean(-1, keepdim=True)) if later.kind == "layer" else written
            written = written * later.weight
    values = torch.linalg.eigvals((written @ w.unembed()).double())
    expected = float(values.sum().real / values.abs().sum())
    assert copying_scores(model)[layer, head] == pytest.approx(expected, abs=1e-4)


@pytest.mark.negative_control
def test_no_head_of_an_untrained_model_is_named_beside_other_untrained_models() -> None:
    untrained = random_twin(wrap_model(FAMILIES["llama"](), None, name="llama"), 7)
    found = detect(untrained, length=20, null_models=3)
    assert not any(names for name, names in found.named.items() if name != "copying")
    for k in found.kinds:
        assert k.null is not None
        assert k.null.heads == 3 * 12
        if k.uniform is not None:
            assert k.null.mean == pytest.approx(k.uniform, abs=0.02)


def test_the_null_is_computed_once_for_models_that_differ_in_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_scores, "_scored", {})
    model = wrap_model(FAMILIES["llama"](), None, name="a")
    sister = random_twin(model, 5)
    made: list[int] = []

    def counted(seed: int) -> Model:
        made.append(seed)
        return random_twin(model, seed)

    arguments = Arguments(model="m", rows=2, length=10)
    first, again, other = (run(Context(m, random_twin=counted), arguments) for m in (model, model, sister))
    assert made == [1]
    assert kind(first, "induction").null == kind(again, "induction").null == kind(other, "induction").null
    assert kind(first, "induction").mean != kind(other, "induction").mean
    wider = wrap_model(FAMILIES["qwen2"](), None, name="b")
    run(Context(wider, random_twin=lambda seed: counted(seed)), arguments)
    assert made == [1, 1]


def test_both_backends_give_the_same_scores() -> None:
    local, nnsight = (wrap_model(FAMILIES["llama"](), None, name="m", backend=b) for b in ("local", "nnsight"))
    a, b = (detect(m, length=10, null_models=0) for m in (local, nnsight))
    for x, y in zip(a.kinds, b.kinds, strict=True):
        assert x.mean.values == pytest.approx(y.mean.values, abs=1e-5)


def test_batches_do_not_change_the_scores() -> None:
    model = wrap_model(FAMILIES["llama"](), None, name="m")
    one_by_one = detect(model, length=10, null_models=0, budget=200_000)
    assert kind(one_by_one, "induction").mean.values == pytest.approx(
        kind(detect(model, length=10, null_models=0), "induction").mean.values, abs=1e-6
    )


def test_it_says_what_is_missing_and_what_was_cut() -> None:
    text = " ".join(detect(induction()).warnings)
    assert "no configuration to draw an untrained model from" in text
    assert "cut to 20 tokens" in text
    assert "only uniform attention" in " ".join(detect(induction(), null_models=0).warnings)


def test_the_picture_has_a_map_for_each_kind() -> None:
    figure = plot(detect(induction()))
    assert len(figure.panels) == 5
    assert "not effects" in figure.caption


def test_runs_repeat_after_bos_and_hold_no_special_tokens() -> None:
    (tokens,) = repeated_tokens(induction(), [3], rows=2, length=10, bos=None)
    assert all(row[:10] == row[10:] and len(set(row)) == 10 for row in tokens.ids)
    assert tokens.ids[0] != tokens.ids[1]


@pytest.mark.bad_input
def test_a_vocabulary_of_three_has_no_room_for_a_run() -> None:
    with pytest.raises(BadArguments, match="a run of 3 tokens, twice, is all that toy-tiny has room for"):
        detect(tiny())


@pytest.mark.bad_input
def test_an_untrained_model_that_does_not_fit_is_refused_before_anything_runs() -> None:
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    with pytest.raises(WouldNotFit, match=r"needs .* MiB beside it.*null_models=0"):
        detect(model, budget=50_000)


@pytest.mark.slow
def test_smollm2_has_induction_heads_that_seeds_agree_on_and_its_untrained_twin_has_none(smollm2: Model) -> None:
    """Ground truth: standard deviation over seeds under .02; no head of the random model over .02."""
    found = detect(smollm2, rows=24)
    induction_heads = kind(found, "induction")
    assert induction_heads.largest_sd < 0.02
    assert induction_heads.null is not None
    assert induction_heads.null.largest < 0.02
    assert induction_heads.null.heads == 270
    assert found.named["induction"][0] == "L18H6"
    assert found.named["previous_token"][0] == "L16H0"
    assert np.isfinite([v for v in kind(found, "copying").mean.values or () if v is not None]).all()
