"""sae_attribution: features of a known circuit, exact removal, random sets, and the error's own share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from anatomist.causal.feature_ablation import feature_parts
from anatomist.causal.features import ablation_cells, contribution, feature_values
from anatomist.dictionaries.saelens import load_dictionary, wrap_sae
from anatomist.errors import BadArguments
from anatomist.measures.metrics import Metric
from anatomist.model.edits import Edit
from anatomist.model.loading import wrap_model
from anatomist.model.sweep import sweep
from anatomist.model.sweep_plan import SweepPlan
from anatomist.prompts.encoding import encode
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.technique import Context
from anatomist.techniques import sae_attribution
from anatomist.techniques.sae_attribution import Arguments

from tests.backends.families import FAMILIES
from tests.dictionaries import small
from tests.dictionaries.words import Both, reader

if TYPE_CHECKING:
    from anatomist.dictionaries.protocol import Dictionary
    from anatomist.model.protocol import Model

PROMPTS = (
    Prompt(clean="t3 t7 t1 t3", answer="t7", wrong="t1"), Prompt(clean="t5 t6 t2 t5", answer="t6", wrong="t2"),
)  # fmt: skip
RANDOM = tuple(Prompt(clean=tuple((7 * i + j * j) % 97 for j in range(6)), answer=3, wrong=9) for i in range(8))


def attributed(model: Model, dictionary: Dictionary | None, *prompts: Prompt, **more: object):
    chosen = PromptSet(handle="inline", task="inline", split="inline", prompts=prompts)
    context = Context(model=model, prompts=chosen, dictionary=dictionary)
    return sae_attribution.run(context, Arguments(model="m", sae="d", prompts=prompts, **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama() -> Model:
    return wrap_model(FAMILIES["llama"](), None, name="llama")


@pytest.mark.hand_worked
def test_the_output_feature_is_the_whole_logit_difference(toy: Model) -> None:
    # Prompt 0: 'output t7' (47) is 1 at the last token and the unembedding is 10: without it the difference falls from
    # 10 to 0. Prompt 1: 'output t6' (46). Each is active in one prompt of two at the last token: mean change -5.
    result = attributed(toy, load_dictionary("toy-induction-l1"), *PROMPTS, positions=("last",))
    effects = {f.index: (f.estimate, f.exact.mean if f.exact else None) for f in result.features}
    assert effects[47] == pytest.approx((-5.0, -5.0), abs=1e-3)
    assert effects[46] == pytest.approx((-5.0, -5.0), abs=1e-3)
    # The error holds position and junk, which the unembedding does not read.
    assert result.error.exact.mean == pytest.approx(0.0, abs=1e-4)
    assert all(t.passed for t in result.self_tests)


def test_a_caller_who_turned_gradients_off_gets_the_same_numbers(toy: Model) -> None:
    import torch

    dictionary = load_dictionary("toy-induction-l1")
    with torch.no_grad():
        found = attributed(toy, dictionary, *PROMPTS, positions=("last",))
        assert not torch.is_grad_enabled()
    assert found.features == attributed(toy, dictionary, *PROMPTS, positions=("last",)).features


@pytest.mark.positive_control
def test_features_of_the_circuit_are_found_though_the_gradient_misses_them(toy: Model) -> None:
    # At layer 0 induction needs 'buffer t3' (23), by which the place is found, and 'token t7' (7), which is copied.
    # Attention is hard: the gradient through it is 0, so 23 is missed by the estimate and seen by exact removal.
    result = attributed(toy, load_dictionary("toy-induction-l0"), PROMPTS[0], top=10, sample=10)
    exact = {f.index: f.exact.mean for f in result.features if f.exact}
    assert exact[23] < -5
    assert exact[7] == pytest.approx(-10, abs=1e-3)
    assert "L0F23" in result.recheck.missed
    assert any("estimate is about 0" in w for w in result.warnings)


@pytest.mark.negative_control
def test_features_nobody_reads_have_no_effect(toy: Model) -> None:
    # Buffers are not read after layer 1: taking 'buffer t1' (21) away changes nothing.
    result = attributed(toy, load_dictionary("toy-induction-l1"), PROMPTS[0])
    effects = {f.index: f for f in result.features}
    assert effects[21].estimate == pytest.approx(0, abs=1e-5)
    assert effects[21].exact is not None
    assert effects[21].exact.mean == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["standard", "topk", "standard_layer_norm", "transcoder"])
def test_a_feature_taken_away_by_the_sweep_is_the_one_taken_away_by_hand(kind: str, llama: Model) -> None:
    # Rules out a wrong row, sign, scale or direction: y - scale f_i d_i by one forward pass a prompt.
    dictionary = wrap_sae(small.KINDS[kind](), name=kind, model=llama)
    tokens = llama.tokenize([p.clean for p in RANDOM])
    metric = Metric("logit_diff", [(3,)] * 8, [(9,)] * 8)
    sets = [(1,), (2, 7), (11,)]
    values = feature_values(llama, dictionary, tokens, [1, 2, 7, 11], 2**30)
    assert float(values.values.abs().sum()) > 0
    cells, written = ablation_cells(llama, dictionary, values, sets, None, 2**30)
    plan = SweepPlan(base=tokens, values=written, cells=cells, metrics=(metric,), read_at=tokens.last, rule="add")
    found, plain = sweep(llama, plan), sweep(llama, plan, path="generic")
    assert found.path.startswith("fast")
    torch.testing.assert_close(found.values, plain.values, atol=1e-4, rtol=0)
    site = dictionary.info.writes
    for c, one in enumerate(sets):
        away = contribution(dictionary, values, one, -1.0)
        logits = llama.run(tokens, edits=[Edit(site=site, rule="add", value=away)], logits_at=tokens.last).logits
        assert logits is not None
        torch.testing.assert_close(found.values[0, c], logits[:, 3] - logits[:, 9], atol=1e-4, rtol=0)


@pytest.mark.positive_control
def test_the_estimate_is_the_derivative(llama: Model) -> None:
    # A thousandth of the feature is taken away instead of all of it: the change is a thousandth of the estimate.
    dictionary = wrap_sae(small.standard(), name="s", model=llama)
    result = attributed(llama, dictionary, *RANDOM, top=3, sample=0, controls=0)
    tokens = llama.tokenize([p.clean for p in RANDOM])
    for one in result.features[:3]:
        values = feature_values(llama, dictionary, tokens, [one.index], 2**30)
        step = contribution(dictionary, values, [one.index], -1e-2)
        edit = Edit(site=dictionary.info.writes, rule="add", value=step)
        before, after = (llama.run(tokens, edits=e, logits_at=tokens.last).logits for e in ((), (edit,)))
        assert before is not None
        assert after is not None
        slope = ((after - before)[:, 3] - (after - before)[:, 9]).mean() * 100
        assert float(slope) == pytest.approx(one.estimate, rel=0.05, abs=2e-3)


@pytest.mark.negative_control
def test_a_random_dictionary_leaves_the_behaviour_in_its_error_and_says_so(llama: Model) -> None:
    result = attributed(llama, wrap_sae(small.standard(), name="r", model=llama), *RANDOM, top=3, sample=3, controls=4)
    assert any("error away" in w for w in result.warnings)
    assert len(result.joint[0].control_changes) == 4
    assert result.joint[0].parts[0].startswith("L1F")


@pytest.mark.positive_control
def test_features_taken_away_at_massive_tokens_are_told_and_positions_leave_them_out() -> None:
    # Word 3 is a hundred times as long as the others: it stands first in every prompt.
    model = reader(heavy_word=3)
    prompts = tuple(Prompt(clean=(3, 5 + i, 7, 9 + i), answer=11, wrong=13) for i in range(4))
    sae = Both(32, "blocks.0.resid_pre", torch.zeros(1))
    everywhere = attributed(model, sae, *prompts, top=2, sample=2, controls=2)
    assert any("4 massive-norm tokens too (the first of a row)" in w for w in everywhere.warnings)
    later = attributed(model, sae, *prompts, top=2, sample=2, controls=2, positions=("last",))
    assert not any("massive" in w for w in later.warnings)
    given = encode(PromptSet(handle="inline", task="inline", split="inline", prompts=prompts), model)
    parts = feature_parts(
        model, sae, given, (later.features[0].index,), None, ablation="zero", together=False, controls=0, seed=0,
        budget_bytes=2**30,
    )  # fmt: skip
    assert "massive-norm" in parts.warnings[0]


@pytest.mark.bad_input
def test_what_cannot_be_used_is_told(toy: Model) -> None:
    with pytest.raises(BadArguments, match="no dictionary was named"):
        attributed(toy, None, *PROMPTS)
    with pytest.raises(BadArguments, match="kl has no gradient"):
        attributed(toy, load_dictionary("toy-induction-l1"), *PROMPTS, metric="kl")


def test_the_picture_draws(toy: Model) -> None:
    from anatomist.drawing import png

    result = attributed(toy, load_dictionary("toy-induction-l1"), *PROMPTS)
    assert png(sae_attribution.plot(result))[:4] == b"\x89PNG"


def ablated(model: Model, dictionary: Dictionary | None, **more: object):
    from anatomist.techniques import ablate

    chosen = PromptSet(handle="inline", task="inline", split="inline", prompts=PROMPTS)
    context = Context(model=model, prompts=chosen, dictionary=dictionary)
    arguments = ablate.Arguments(model="m", sae="d", prompts=PROMPTS, site="feature", **more)  # type: ignore[arg-type]
    return ablate.run(context, arguments), ablate


@pytest.mark.hand_worked
def test_ablate_takes_features_as_parts_and_keeps_the_error(toy: Model) -> None:
    # 'output t7' (47) carries prompt 0's difference of 10, 'output t6' (46) prompt 1's: -5 each over both prompts,
    # -10 together. The positions, which are in the error, stay: induction works until the output is taken away.
    heads = ("L1F47", "L1F46")
    result, ablate = ablated(toy, load_dictionary("toy-induction-l1"), heads=heads, controls=3, ablation="zero")
    assert result.effects[0].change.values == pytest.approx((-5.0, -5.0), abs=1e-3)
    assert result.joint[0].parts == ("L1F47", "L1F46")
    assert result.joint[0].change.mean == pytest.approx(-10, abs=1e-3)
    assert len(result.joint[0].control_changes) == 3
    # Features that are active here but not the output stand in the place of each: none carries 5 of the difference.
    assert [(t.carries, t.as_strong, t.others) for t in result.joint[0].each_part] == [(pytest.approx(5), 0, 3)] * 2
    assert result.ablation == "zero"
    assert "its error stay" in result.written
    assert all(t.passed for t in result.self_tests)
    ablate.plot(result)


@pytest.mark.hand_worked
@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_ablate_sets_features_to_what_they_are_elsewhere(toy: Model, ablation: str) -> None:
    # Two prompts of one template and length, different names: each gets the other's activation, whether as a mean over
    # one or as a sample. 'output t7' is 1 in prompt 0 and 0 in prompt 1: it becomes 0 there (10 - 10 = 0), and 1 in
    # prompt 1, where t7 is neither the answer nor the wrong one: -5 on average.
    result, _ = ablated(toy, load_dictionary("toy-induction-l1"), heads=("L1F47",), controls=1, ablation=ablation)
    assert result.effects[0].change.values == pytest.approx((-5.0,), abs=1e-3)
    assert "f d of each feature" in result.written


@pytest.mark.bad_input
def test_ablate_tells_what_it_cannot_do_with_features(toy: Model) -> None:
    dictionary = load_dictionary("toy-induction-l1")
    with pytest.raises(BadArguments, match="name the features in `heads`"):
        ablated(toy, dictionary)
    with pytest.raises(BadArguments, match="none of L1F59 is active"):
        ablated(toy, dictionary, heads=("L1F59",))
    with pytest.raises(BadArguments, match="no dictionary was named"):
        ablated(toy, None, heads=("L1F47",))
