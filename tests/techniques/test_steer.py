"""steer: the toy's output worked by hand, both signs, random directions, continuations, and a real model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from anatomist.causal.neutral import total_loss
from anatomist.causal.steering import everywhere, lever_at, losses, steered_values
from anatomist.errors import BadArguments, BadPrompts, BadSite
from anatomist.measures.metrics import Metric
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Backend, Model
from anatomist.prompts.encoding import encode
from anatomist.prompts.given import inline_set
from anatomist.technique import Context, KeptArray
from anatomist.techniques.steer import Arguments, SteerResult, plot, run

from tests.backends.families import FAMILIES

PROMPTS = [
    {"clean": f"t{a} t{b} t1 t{a}", "answer": f"t{b}", "wrong": "t9", "cluster": f"t{a}"}
    for a, b in ((3, 7), (4, 8), (5, 6), (2, 10))
]


def look(model: Model, prompts: list[dict[str, Any]] | None = None, **more: Any) -> SteerResult:
    context = Context(model, prompts=inline_set(prompts or PROMPTS), saved=_no_runs)
    given = {"direction": {"tokens": ["t9"]}, "layers": (1,), "samples": 0} | more
    return run(context, Arguments(model="m", prompts="inline", **given))


def _no_runs(run: str, name: str) -> KeptArray:
    raise AssertionError("no run is read here")


@pytest.fixture(scope="module")
def hand() -> ToyModel:
    return induction()


@pytest.mark.hand_worked
def test_adding_the_unembedding_of_the_wrong_token_lowers_the_difference_by_its_square(hand: ToyModel) -> None:
    """The unembedding of t9 is 10 at one place of the output block and 0 elsewhere; there is no final norm. Adding s of
    it after the last block adds 10 s * 10 to the logit of t9 alone: the difference falls by 100 s, and rises by 100 s
    with the sign turned. A random unit vector r of the same length 10 s moves it by 100 s (r_answer - r_wrong)."""
    found = look(hand, strengths=(0.05, 0.1), unit="absolute", controls=20)
    assert [d.change.mean for d in found.places[0].doses] == pytest.approx([-5, -10], abs=1e-3)
    assert [d.wrong_sign.mean for d in found.places[0].doses] == pytest.approx([5, 10], abs=1e-3)
    assert [d.length for d in found.places[0].doses] == pytest.approx([0.5, 1.0], abs=1e-5)
    assert found.base.mean == pytest.approx(10, abs=1e-3)


@pytest.mark.positive_control
def test_a_direction_that_writes_the_wrong_token_beats_every_random_one_and_says_it(hand: ToyModel) -> None:
    found = look(hand, strengths=(1.0,), samples=2, new_tokens=3, keywords=("t9",), instruction="t11 t12 ")
    place = found.places[0]
    assert place.p == pytest.approx(1 / 21)
    assert place.doses[0].change.mean < -5
    said = {s.how: s for s in found.samples}
    assert said["+1"].text == "t9 t9 t9"
    assert said["+1"].keywords == 1
    assert said["unsteered"].keywords == 0
    assert found.instruction is not None
    assert found.self_tests[0].passed
    assert plot(found).panels[0].kind == "lines"


@pytest.mark.negative_control
def test_a_direction_that_nobody_reads_changes_nothing(hand: ToyModel) -> None:
    """The junk block is read by no head and not by the unembedding: only its length is like that of the others."""
    values = [0.0] * hand.info.d_model
    values[-1] = 1.0
    found = look(hand, direction={"values": values}, strengths=(1.0,))
    assert found.places[0].doses[0].change.mean == 0
    assert found.places[0].p == 1
    assert any("no better than random" in w for w in found.warnings)


@pytest.mark.negative_control
def test_a_random_direction_among_random_ones_is_seldom_called_better(hand: ToyModel) -> None:
    """Drawn as the controls are, over 20 seeds: about one p of .05 is expected, more than three would be too many."""
    below = 0
    for seed in range(20):
        drawn = torch.randn(hand.info.d_model, generator=torch.Generator().manual_seed(seed))
        found = look(hand, direction={"values": drawn.tolist()}, strengths=(0.5, 1.0), controls=20, seed=seed)
        p = found.places[0].p
        assert p is not None
        below += p <= 0.05
    assert below <= 3


@pytest.mark.bad_input
def test_what_cannot_be_steered_with_is_refused(hand: ToyModel) -> None:
    with pytest.raises(BadArguments, match="above 0"):
        look(hand, strengths=(0.5, -1.0))
    with pytest.raises(BadArguments, match="width is"):
        look(hand, direction={"values": [1.0, 2.0]})
    with pytest.raises(BadSite, match="layer 7"):
        look(hand, layers=(7,))
    with pytest.raises(BadArguments, match="exactly one"):
        look(hand, direction={"tokens": ["t1 t2"]})
    with pytest.raises(BadPrompts, match="both be text"):
        look(hand, instruction=(1, 2))
    with pytest.raises(BadArguments, match="leave `metric` out"):
        look(hand, targets=("t3",), metric="prob")


def test_targets_serve_where_prompts_have_no_answer(hand: ToyModel) -> None:
    found = look(hand, [{"clean": "t3 t7 t1 t3"}, {"clean": "t4 t8 t1 t4"}], targets=("t9",), strengths=(1.0,))
    assert found.metric == "logprob of the targets"
    assert found.places[0].doses[0].change.mean > 1


def test_layers_alone_or_together_and_chosen_positions(hand: ToyModel) -> None:
    """Before the last block the output block is only carried along: the effect is that of the layer after it; both
    together double it. Away from the last position nothing is read."""
    alone = look(hand, layers=(0, 1), strengths=(0.1,), unit="absolute", controls=0)
    assert [p.doses[0].change.mean for p in alone.places] == pytest.approx([-10, -10], abs=1e-3)
    both = look(hand, layers=(0, 1), together=True, strengths=(0.1,), unit="absolute", controls=0)
    assert both.places[0].doses[0].change.mean == pytest.approx(-20, abs=1e-3)
    away = look(hand, strengths=(0.1,), unit="absolute", positions=(0,), controls=0)
    assert away.places[0].doses[0].change.mean == 0


@pytest.mark.parametrize("backend", ["local", "nnsight"])
def test_sweeps_and_losses_are_those_of_whole_passes_with_the_vector_added(backend: Backend) -> None:
    """Two layers at once, rows of different lengths, all positions or some. Rules out a vector of another condition, a
    prefix that was edited too, and losses of a padded row."""
    model = wrap_model(FAMILIES["llama"](), None, name=backend, backend=backend)
    rows = [[3, 17, 42, 9, 88], [71, 2, 50]]
    given = [{"clean": r, "answer": 4, "wrong": 9, "roles": {"X": len(r) - 2}} for r in rows]
    prompts = encode(inline_set(given), model)
    metric = Metric("logit_diff", ((4,), (4,)), ((9,), (9,)))
    vectors = list(torch.randn(3, model.info.d_model, generator=torch.Generator().manual_seed(0)))
    for positions in ("all", ("X", "last")):
        lever = lever_at(model, prompts, "resid_post", (0, 1), positions, 2**28)  # type: ignore[arg-type]
        found = steered_values(model, lever, metric, vectors, 2**28)
        for vector, values in zip(vectors, found.values, strict=True):
            edits = [replace(e, positions=lever.positions) for e in everywhere(lever, vector)]
            logits = model.run(prompts.clean, edits=edits, logits_at=prompts.clean.last).logits
            assert logits is not None
            assert values.tolist() == pytest.approx(metric(logits).tolist(), abs=1e-4)
        assert all(test.passed for test in found.tests)
    added = losses(model, lever, prompts.clean, vectors, 2**28)
    for vector, loss in zip(vectors, added, strict=True):
        assert loss.tokens == 4 + 2
        assert loss.mean == pytest.approx(total_loss(model, prompts.clean, everywhere(lever, vector)) / 6, abs=1e-5)


@pytest.mark.positive_control
def test_a_real_model_is_steered_towards_a_name(smollm2: Model) -> None:
    """Towards ' Mary' minus ' John' late in the model: the difference rises, falls with the sign turned, and no random
    direction of the same length does as much."""
    prompts = [
        {"clean": f"{a} and {b} met {c}. Then the one who spoke was", "answer": " Mary", "wrong": " John", "cluster": a}
        for a, b, c in (("Anna", "Paul", "Tom"), ("Kate", "Mark", "Jane"), ("Lucy", "Bill", "Adam"))
    ]
    given = {"tokens": [" Mary"], "minus": [" John"]}
    found = look(smollm2, prompts, direction=given, layers=(25,), strengths=(0.2, 0.5))
    low, high = found.places[0].doses
    assert 0 < low.change.mean < high.change.mean
    assert high.wrong_sign.mean < 0
    assert found.places[0].p == pytest.approx(1 / 21)
    assert high.loss_added > -0.05
