"""Ablation: numbers worked out on paper, what replaces an activation, random sets, and bad input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from anatomist.causal.alignment import Layout, matched
from anatomist.causal.joint import beside_controls, joint_effect
from anatomist.causal.replacements import cross_fitted_means, deranged, halves, resampled
from anatomist.errors import AnatomistError, BadArguments, BadPosition, BadPrompts, BadSite
from anatomist.figures import Bars
from anatomist.measures.statistics import Clusters
from anatomist.model.backends.local import LocalModel
from anatomist.model.sites import Site
from anatomist.prompts.encoding import EncodedPrompts, encode
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.technique import Context
from anatomist.techniques import ablate
from anatomist.techniques.ablate import AblationResult, Arguments

from tests.backends.families import llama

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

ONE = Prompt(clean="t3 t7 t1 t3", answer="t7", wrong="t9")
OTHER = Prompt(clean="t5 t9 t2 t5", answer="t9", wrong="t7")
BUDGET = 2**28


def remove(model: Model, *prompts: Prompt, **more: object) -> AblationResult:
    chosen = PromptSet(handle="inline", task="inline", split="inline", prompts=prompts)
    arguments = Arguments(model="m", prompts=prompts, **more)  # type: ignore[arg-type]
    return ablate.run(Context(model=model, prompts=chosen), arguments)


def changes(result: AblationResult) -> list[float | None]:
    assert result.effects[0].change.values is not None
    return list(result.effects[0].change.values)


def encoded(model: Model, prompts: tuple[Prompt, ...]) -> EncodedPrompts:
    return encode(PromptSet(handle="x", task="x", split="inline", prompts=prompts), model)


@pytest.fixture(scope="module")
def many(toy: Model) -> tuple[Prompt, ...]:
    return make_prompts("induction", 40, 0, toy)[0].prompts


@pytest.fixture(scope="module")
def tiny() -> LocalModel:
    return LocalModel(llama(), None, name="tiny-llama")


IDS = tuple(
    Prompt(clean=(5 + i, 8, 2 * i, 9, 4), answer=11, wrong=12 + i, template="one", cluster=str(i)) for i in range(6)
)


@pytest.mark.hand_worked
def test_zero_ablation_takes_away_what_the_circuit_writes(toy: Model) -> None:
    result = remove(toy, ONE, ablation="zero")
    # L1H2 alone writes the answer: 10 -> 0. Without L0H1 no key matches and it reads tokens 1, 2, 3 evenly: 10/3.
    expected = [0.0] * 8
    expected[1], expected[6] = 10 / 3 - 10, -10.0
    assert changes(result) == pytest.approx(expected, abs=1e-4)
    assert result.effects[0].fraction is not None
    assert result.effects[0].fraction.at(1, 2) == pytest.approx(1.0, abs=1e-5)  # all of the baseline
    assert result.effects[0].fraction.at(0, 1) == pytest.approx(2 / 3, abs=1e-5)


@pytest.mark.hand_worked
@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_with_two_prompts_each_gets_the_other_one(toy: Model, ablation: str) -> None:
    # The mean over the one other prompt is that prompt: L1H2 then writes the wrong token, 10 -> -10. L0H1: as with
    # no match, 10/3; the wrong token stands in no clean prompt.
    result = remove(toy, ONE, OTHER, ablation=ablation)
    expected = [0.0] * 8
    expected[1], expected[6] = 10 / 3 - 10, -20.0
    assert changes(result) == pytest.approx(expected, abs=1e-4)


@pytest.mark.hand_worked
def test_a_set_is_ablated_jointly_and_held_against_random_sets(toy: Model, many: tuple[Prompt, ...]) -> None:
    result = remove(toy, *many, heads=("L0H1", "L1H2"), ablation="zero", controls=10)
    (joint,) = result.joint
    # Together they cost what L1H2 costs alone (10); one by one they add up to more: the parts are in sequence.
    assert joint.change.mean == pytest.approx(-10, abs=1e-4)
    assert joint.fraction == pytest.approx(1.0, abs=1e-5)
    assert joint.sum_of_singles is not None
    assert joint.sum_of_singles < -15
    # Ten random pairs of the six heads that do nothing: none reaches it, p = (1 + 0) / (1 + 10).
    assert joint.control_changes == (0.0,) * 10
    assert joint.p_others == pytest.approx(1 / 11)
    # None of the six does anything in the place of either head, p = (1 + 0) / (1 + 6).
    assert [(t.part, t.as_strong, t.others) for t in joint.each_part] == [("L0H1", 0, 6), ("L1H2", 0, 6)]
    assert joint.p == max(t.p for t in joint.each_part) == pytest.approx(1 / 7)
    assert any("p cannot be below 0.14" in w for w in result.warnings)
    # 8 heads and the chosen pair, 10 random pairs, then 6 others beside each of the two; 6 of the heads in both layers.
    assert result.cost.cells == 2 + 1 + 10 + 6 + 12


@pytest.mark.positive_control
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_exactly_the_two_heads_are_needed(toy: Model, many: tuple[Prompt, ...], ablation: str) -> None:
    result = remove(toy, *many, ablation=ablation)
    assert [s.cell for s in result.stand_out] == ["L1H2", "L0H1"]
    assert all(s.p_holm is not None and s.p_holm < 0.01 for s in result.stand_out)
    others = [v for i, v in enumerate(changes(result)) if i not in (1, 6)]
    assert others == [0.0] * 6


@pytest.mark.negative_control
def test_heads_that_do_nothing_are_not_set_apart_from_random_sets(toy: Model, many: tuple[Prompt, ...]) -> None:
    result = remove(toy, *many, heads=("L0H0", "L1H0"), ablation="mean", controls=8)
    assert result.joint[0].change.mean == 0.0
    assert result.joint[0].p == 1.0
    assert not result.stand_out


def test_heads_of_a_layer_together_are_its_attention(toy: Model, many: tuple[Prompt, ...]) -> None:
    heads = remove(toy, *many, heads=tuple(f"L1H{h}" for h in range(4)), ablation="mean", controls=0)
    whole = remove(toy, *many, site="attn_out", layers=(1,), ablation="mean", controls=0)
    assert heads.joint[0].change.mean == pytest.approx(whole.joint[0].change.mean, abs=1e-4)
    assert whole.effects[0].change.axes[0].labels == ("L1 attn_out",)
    assert whole.joint[0].p is None


def test_a_mean_never_holds_the_prompt_itself_nor_one_that_shares_its_names() -> None:
    from anatomist.model.backends.toy_circuits import random_toy

    model = random_toy(layers=1)
    prompts = tuple(
        Prompt(clean=(i, i + 1, 2) if t == "short" else (i, 3, i + 2, 2), template=t, cluster=f"names {i // 2}")
        for i in range(6)
        for t in ("short", "long")
    )
    found = encoded(model, prompts)
    for a, b in halves(found, seed=3):
        assert {found.clusters[row] for row in a}.isdisjoint(found.clusters[row] for row in b)
        assert len({(found.templates[row], found.clean.lengths[row]) for row in (*a, *b)}) == 1
        assert abs(len(a) - len(b)) <= 2
    site = Site("head", 0)
    means = cross_fitted_means(model, found, [site], 3, BUDGET)
    whole = model.run(found.clean, read=[site]).reads[site]
    for a, b in halves(found, seed=3):
        for row, others in ((a[0], b), (b[0], a)):
            length = found.clean.lengths[row]
            expected = torch.stack([whole[r, :length] for r in others]).mean(0)
            torch.testing.assert_close(means.values[site][means.value_rows[row], :length], expected)


def test_resampling_gives_every_prompt_another_of_its_template(toy: Model, many: tuple[Prompt, ...]) -> None:
    found = encoded(toy, many)
    other = deranged(found, seed=5)
    assert sorted(other) == list(range(found.n))
    for row, taken in enumerate(other):
        assert found.clusters[row] != found.clusters[taken]
        assert found.templates[row] == found.templates[taken]
    assert deranged(found, seed=5) == other
    assert deranged(found, seed=6) != other


def test_fewer_random_sets_than_asked_for_are_told(toy: Model) -> None:
    (joint,) = remove(toy, ONE, heads=("L0H1",), ablation="zero", controls=100).joint
    assert len(joint.control_changes) == 7  # the other heads of the model
    assert "no more than 7" in joint.drawn


@pytest.mark.hand_worked
def test_positions_are_matched_between_roles_from_the_nearer_end() -> None:
    # Roles at 1 and 6 of 8 tokens, and at 1 and 4 of 6: the segment between has 5 and 3 tokens. From the left 1, 2, 3
    # (the middle counts to the left) are 1, 2, 3; from the right 5, 4 are 3, 2.
    short, long = Layout(6, (1, 4)), Layout(8, (1, 6))
    assert matched(long, short) == [0, 1, 2, 3, 2 + 0, 3, 4, 5]
    assert matched(short, long) == [0, 1, 2, 5, 6, 7]
    assert matched(long, long) == list(range(8))
    # A segment that the other prompt lacks falls to where it would begin, and never past the end.
    assert matched(Layout(4, (3,)), Layout(2, (0,))) == [0, 0, 0, 0]


def test_prompts_of_different_lengths_stand_in_for_each_other_at_their_roles() -> None:
    from anatomist.model.backends.toy_circuits import random_toy

    model = random_toy(layers=1)
    long = Prompt(clean=(1, 2, 3, 4, 5), roles={"S": 1, "END": 4}, template="t", cluster="a")
    short = Prompt(clean=(6, 7, 8), roles={"S": 1, "END": 2}, template="t", cluster="b")
    found, site = encoded(model, (long, short)), Site("head", 0)
    a, b = (model.run(found.clean.rows([row]), read=[site]).reads[site][0] for row in (0, 1))
    # With two prompts the mean over the other half and the sample are the other prompt: S to S, END to END, and
    # the two tokens between S and END of the long one fall to S, which alone is there in the short one.
    means = cross_fitted_means(model, found, [site], 0, BUDGET)
    sample = resampled(model, found, [site], deranged(found, 0), BUDGET)
    for values, rows in (means[:2], sample):
        torch.testing.assert_close(values[site][rows[0], :5], b[[0, 1, 1, 1, 2]])
        torch.testing.assert_close(values[site][rows[1], :3], a[[0, 1, 4]])


def test_generated_prompts_of_several_lengths_can_be_resampled(toy: Model, many: tuple[Prompt, ...]) -> None:
    uneven = [p for p in many if p.template == many[0].template]
    result = remove(toy, *uneven, ablation="resample")
    assert {s.cell for s in result.stand_out} == {"L1H2", "L0H1"}


def test_positions_limit_the_ablation(toy: Model) -> None:
    # L1H2 is read at the last position only. L0H1 marks the match at position 1. Ablated there alone, position 0 still
    # counts as a match that is taken back (a score of 0 like the rest): four tokens evenly, 10/4.
    last = remove(toy, ONE, ablation="zero", positions=("last",))
    assert changes(last) == pytest.approx([0, 0, 0, 0, 0, 0, -10, 0], abs=1e-4)
    match = remove(toy, ONE, ablation="zero", positions=(1,))
    assert changes(match)[6] == pytest.approx(0, abs=1e-4)
    assert changes(match)[1] == pytest.approx(10 / 4 - 10, abs=1e-4)


def test_neutral_text_is_scored_with_and_without_the_set(toy: Model) -> None:
    text = "t1 t2 t3 t1 t2"
    result = remove(toy, ONE, heads=("L1H2",), ablation="zero", controls=0, neutral_text=(text,))
    assert result.neutral is not None
    assert result.neutral.tokens == 4
    # Without L1H2 nothing is written to the output: 20 equal logits, log 20 nats a token.
    assert result.neutral.after == pytest.approx(torch.tensor(20.0).log().item(), abs=1e-5)
    logits = toy.run(toy.tokenize([text]), logits_at="all").logits
    assert logits is not None
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], torch.tensor([2, 3, 1, 2]))
    assert result.neutral.before == pytest.approx(float(expected), abs=1e-5)


def test_neurons_and_layers_of_a_language_model(tiny: LocalModel) -> None:
    neurons = remove(tiny, *IDS, site="neuron", heads=("L0N3", "L2N1"), controls=3)
    assert neurons.effects[0].change.axes[0].labels == ("L0N3", "L2N1")
    assert neurons.joint[0].parts == ("L0N3", "L2N1")
    layers = remove(tiny, *IDS, site="mlp_out", ablation="resample")
    assert layers.effects[0].change.axes[0].labels == ("L0 mlp_out", "L1 mlp_out", "L2 mlp_out")
    assert not layers.joint
    for result in (neurons, layers):
        assert result.cost.path == "fast"  # never the shared prefix: an ablation changes it too
        assert all(test.passed for test in result.self_tests), result.self_tests


def test_a_rough_mean_and_a_metric_without_baseline_are_told(toy: Model) -> None:
    result = remove(toy, ONE, OTHER, metric="kl")
    assert any("smallest reference" in w for w in result.warnings)
    assert result.effects[0].fraction is None
    assert any("kl: no fractions" in w for w in result.warnings)


def test_the_picture_shows_parts_and_the_set_beside_random_sets(toy: Model, many: tuple[Prompt, ...]) -> None:
    figure = ablate.plot(remove(toy, *many, heads=("L0H1", "L1H2"), controls=10))
    assert [panel.kind for panel in figure.panels] == ["heatmap", "bars", "bars"]
    _, sets, parts = figure.panels
    assert isinstance(sets, Bars)
    assert isinstance(parts, Bars)
    assert sets.labels == ("the set", *(f"random {i}" for i in range(1, 11)))
    assert parts.labels == ("L0H1: 0 of 6, p = 0.14", "L1H2: 0 of 6, p = 0.14")
    rows = ablate.plot(remove(toy, *many, site="attn_out"))
    assert [panel.kind for panel in rows.panels] == ["bars"]


@pytest.mark.hand_worked
def test_many_random_sets_are_drawn_as_quantiles() -> None:
    # 41 sets from 0 to 40: the 10% quantile is the fifth.
    one = Clusters(["a", "b"], seed=0)
    changes = np.repeat([[50.0], *([float(i)] for i in range(41))], 2, axis=1)
    joint = joint_effect(("x",), "logit_diff", "logits", changes, changes[:1], changes[0], changes[0] * 0, one, "")
    (bars,) = beside_controls(joint)
    assert bars.values == (50, 0, 4, 20, 36, 40)
    assert bars.labels[1:3] == ("lowest random", "10% of random")


@pytest.mark.bad_input
@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_a_single_prompt_has_no_mean_and_no_sample(toy: Model, ablation: str) -> None:
    with pytest.raises(BadPrompts, match=r"Give at least two prompts .* or use ablation='zero'"):
        remove(toy, ONE, ablation=ablation)
    with pytest.raises(BadPrompts, match="at 6 tokens has 1 prompt"):
        remove(toy, ONE, OTHER, Prompt(clean="t1 t2 t3 t4 t5 t1", answer="t2", wrong="t3"), ablation=ablation)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"site": "neuron"}, BadSite, "have no 'neuron'"),
        ({"site": "attn_out", "heads": ("L0H1",)}, BadArguments, "has no heads"),
        ({"heads": ("L5H1",)}, BadSite, "layer"),
        ({"layers": (0, 0)}, BadArguments, "each once"),
        ({"positions": ("S2",)}, BadPosition, "no token 'S2'"),
        ({"neutral_text": ("t1 t2",)}, BadArguments, "joint ablation"),
        ({"heads": ("L0H1",), "neutral_text": ("t1",)}, BadPrompts, "nothing to predict"),
        ({"heads": tuple(f"L{i // 4}H{i % 4}" for i in range(7)), "controls": 5}, BadArguments, "no other set"),
    ],
)
def test_bad_input_is_refused_with_what_is_allowed(
    toy: Model, more: dict, error: type[AnatomistError], told: str
) -> None:
    with pytest.raises(error, match=told):
        remove(toy, ONE, **{"ablation": "zero", "controls": 0, **more})


@pytest.mark.bad_input
def test_all_neurons_of_a_model_must_be_named(tiny: LocalModel) -> None:
    with pytest.raises(BadArguments, match="name the neurons"):
        remove(tiny, *IDS, site="neuron")
