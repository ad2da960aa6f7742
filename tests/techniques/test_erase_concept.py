"""erase_concept: equal class means, the smallest edit, the toy's token by hand, random edits, a real model."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from anatomist.causal.erasure import leace, mean_gap, orthogonal, size_of_edit
from anatomist.errors import BadArguments
from anatomist.measures.linear import Span
from anatomist.model.backends.interventions import apply_edit
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.edits import Edit
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.model.tokens import Tokens
from anatomist.prompts.given import inline_set
from anatomist.technique import Context
from anatomist.techniques.erase_concept import Arguments, EraseResult, plot, run

LIKE = torch.zeros(1)


def texts(a: int, b: int, n: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """t? .. a b t1 a: the toy then says b."""
    draw = random.Random(seed)
    return tuple((*(draw.randrange(12, 18) for _ in range(3)), a, b, 1, a) for _ in range(n))


def look(model: Model, prompts: list[dict[str, Any]] | None = None, **more: Any) -> EraseResult:
    context = Context(model, prompts=None if prompts is None else inline_set(prompts))
    return run(context, Arguments(model="m", prompts=None if prompts is None else "inline", **more))


def cloud(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated examples whose class means differ along a direction that varies much else too."""
    rng = np.random.default_rng(seed)
    y = rng.permutation([0, 1] * (n // 2))
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3 * np.outer(y, rng.standard_normal(d)) + 7
    return x, y


@pytest.fixture(scope="module")
def hand() -> Model:
    return induction()


@pytest.mark.hand_worked
def test_the_smallest_eraser_of_four_points_moves_along_the_widest_way() -> None:
    """Positives (4, 1) and (0, 1), negatives (0, -1), (-4, -1): mean 0, S proportional to (8, 2; 2, 1), s to (2, 1).
    LEACE reads S^-1 s = (0, 1): the second coordinate alone tells the sides apart; and writes s scaled so that the
    projection is idempotent: (2, 1). (4, 1) -> (4, 1) - 1 (2, 1) = (2, 0), (0, 1) -> (-2, 0), and the others alike."""
    x, y = np.array([[4.0, 1], [0, 1], [0, -1], [-4, -1]]), np.array([1, 1, 0, 0])
    found = leace(x, y, shrinkage=False, like=LIKE)
    assert found(x) == pytest.approx(np.array([[2, 0], [-2, 0], [2, 0], [-2, 0]]), abs=1e-6)


@pytest.mark.positive_control
@pytest.mark.parametrize("shrinkage", [True, False])
def test_after_erasure_class_means_are_equal_and_no_linear_probe_beats_a_constant(shrinkage: bool) -> None:
    x, y = cloud(200, 12, 0)
    found = leace(x, y, shrinkage=shrinkage, like=LIKE)
    erased = found(x)
    assert np.linalg.norm(mean_gap(x, y)) > 1
    assert np.linalg.norm(mean_gap(erased, y)) < 1e-6
    assert ((Span.of(x).logistic(y)(x) > 0) == y).mean() > 0.9
    probe = Span.of(erased).logistic(y)
    assert np.abs(probe(erased)).max() < 1e-4
    assert found(erased) == pytest.approx(erased, abs=1e-6)


@pytest.mark.positive_control
def test_it_is_the_least_squares_edit_among_those_that_equalise_the_means() -> None:
    """Every affine map of rank 1 that equalises the means writes along the gap and reads some r with r . gap = 1. LEACE
    takes less than the orthogonal projection (r along the gap), and less than any of 300 other r."""
    x, y = cloud(300, 8, 1)
    gap = mean_gap(x, y)
    own = size_of_edit(x, leace(x, y, shrinkage=False, like=LIKE)(x))
    projection = orthogonal(x, gap)
    assert np.linalg.norm(mean_gap(projection(x), y)) < 1e-9
    assert own < 0.9 * size_of_edit(x, projection(x))
    rng = np.random.default_rng(2)
    best = leace(x, y, shrinkage=False, like=LIKE)
    for _ in range(300):
        r = best.read * (best.write @ gap / (gap @ gap)) + 0.02 * rng.standard_normal(8)
        r = r / (r @ gap)
        other = x - np.outer((x - x.mean(0)) @ r, gap)
        assert np.linalg.norm(mean_gap(other, y)) < 1e-8
        assert own <= size_of_edit(x, other) + 1e-9


def test_the_edit_in_a_model_is_the_eraser_of_the_arithmetic() -> None:
    x, y = cloud(40, 6, 3)
    found = leace(x, y, shrinkage=False, like=LIKE)
    tokens = Tokens(((1,),) * 40, (("a",),) * 40, False)
    edit = Edit(site=Site("resid_post", 0), rule="erase", value=found.value(torch.zeros(6).double()))
    made, fired = apply_edit(torch.tensor(x)[:, None], edit, tokens)
    assert fired == 40
    assert made[:, 0].numpy() == pytest.approx(found(x), abs=1e-9)


@pytest.mark.positive_control
def test_the_toy_cannot_say_which_of_two_tokens_came_once_they_are_erased(hand: Model) -> None:
    """Positive texts continue with t7, negative ones with t9. Erasing that from the last position after the last block
    leaves both with the same logits of t7 and t9: the difference of 10 becomes 0; random edits do nothing like it."""
    prompts = [{"clean": (a, 7, 1, a), "answer": "t7", "wrong": "t9"} for a in (4, 5)]
    found = look(
        hand, prompts, positive=texts(3, 7, 30, 0), negative=texts(3, 9, 30, 1), layers=(1,), shrinkage=False,
    )  # fmt: skip
    (layer,) = found.layers
    assert layer.before.mean == 1
    assert layer.gap_after < 1e-6
    assert layer.size <= layer.size_mean_projection + 1e-9
    assert found.task is not None
    assert found.task.before.mean == pytest.approx(10, abs=1e-3)
    assert abs(found.task.after.mean) < 1
    assert found.task.p == pytest.approx(1 / 21)
    assert all(test.passed for test in found.self_tests)
    assert len(plot(found).panels) == 3


@pytest.mark.negative_control
def test_sets_that_hardly_differ_leave_little_to_erase_and_the_behaviour_alone(hand: Model) -> None:
    """Both sets say the same; only the random first tokens differ, which the last position does not hold."""
    prompts = [{"clean": (4, 7, 1, 4), "answer": "t7", "wrong": "t9"}]
    found = look(hand, prompts, positive=texts(3, 7, 30, 0), negative=texts(3, 7, 30, 1), layers=(1,), position="all")
    assert found.task is not None
    assert abs(found.task.change.mean) < 1
    assert any("little to erase" in w for w in found.warnings)


@pytest.mark.bad_input
def test_what_cannot_be_erased_is_refused(hand: Model) -> None:
    with pytest.raises(BadArguments, match="no place that can be erased"):
        look(hand, positive=texts(3, 7, 4, 0), negative=texts(3, 9, 4, 1), position="mean")
    with pytest.raises(BadArguments, match="nothing to erase"):
        leace(np.array([[0.0, 1], [1, 0]] * 2), np.array([1, 1, 0, 0]), shrinkage=False, like=LIKE)
    edit = Edit(site=Site("resid_post", 0), rule="erase", value=torch.zeros(2, 6))
    with pytest.raises(BadArguments, match="1 \\+ 2 k"):
        apply_edit(torch.zeros(1, 1, 6), edit, Tokens(((1,),), (("a",),), False))


@pytest.mark.positive_control
def test_in_a_real_model_probes_fall_to_the_majority_at_every_layer(smollm2: Model) -> None:
    """Singular against plural subjects, read at the verb's place: found before, gone after, layer after layer."""
    nouns = ["cat", "dog", "boy", "girl", "king", "car", "tree", "house", "bird", "book", "door", "ship", "song"]
    places = ("near the river", "in the old town", "by the gate", "of our friend")
    ends = [f"{noun}{{}} {place}" for noun in nouns for place in places]
    found = look(
        smollm2, positive=tuple(f"The {e.format('s')}" for e in ends), layers=(5, 15, 25),
        negative=tuple(f"The {e.format('')}" for e in ends), paired=True, held_out_share=0.4,
    )  # fmt: skip
    for layer in found.layers:
        assert layer.before.mean > 0.75
        assert layer.random > 0.75
        assert abs(layer.after.mean - found.majority) < 0.05
        assert layer.gap_after < 1e-6
    assert all(test.passed for test in found.self_tests)
