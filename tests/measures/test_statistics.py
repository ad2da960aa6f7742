"""Corrections, sign flips and random controls: by hand, on planted effects and on nothing."""

from __future__ import annotations

import numpy as np
import pytest
from anatomist.errors import BadArguments
from anatomist.measures.statistics import (
    benjamini_hochberg,
    control_p,
    holm,
    max_statistic,
    random_controls,
    sign_flip,
)

P = (0.01, 0.04, 0.03, 0.005)


@pytest.mark.hand_worked
def test_holm_steps_down() -> None:
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04; never below the one before: .02, .03, .06, .06.
    assert holm(P) == pytest.approx((0.03, 0.06, 0.06, 0.02))


@pytest.mark.hand_worked
def test_benjamini_hochberg_steps_up() -> None:
    # Sorted .005, .01, .03, .04 times 4/1, 4/2, 4/3, 4/4: .02, .02, .04, .04.
    assert benjamini_hochberg(P) == pytest.approx((0.02, 0.04, 0.04, 0.02))


@pytest.mark.hand_worked
def test_three_clusters_of_one_sign_have_p_one_quarter() -> None:
    # 8 sign patterns of (1, 2, 3); only +++ and --- reach |6|: 2 / 8, exactly.
    assert sign_flip([1.0, 2.0, 3.0], ["a", "b", "c"], seed=0).tolist() == [0.25]


@pytest.mark.hand_worked
def test_rows_of_one_cluster_flip_together() -> None:
    # Six rows in three clusters are three independent signs, not six (which would give 2 / 64).
    assert sign_flip([1.0] * 6, list("aabbcc"), seed=0).tolist() == [0.25]


@pytest.mark.hand_worked
def test_the_p_of_controls_counts_the_claim_itself() -> None:
    # 2 of 4 controls reach |-2|: (1 + 2) / (1 + 4).
    assert control_p(-2.0, [1.0, 2.0, -3.0, 0.5]) == pytest.approx(0.6)
    assert control_p(9.0, [1.0] * 99) == pytest.approx(0.01)


@pytest.mark.positive_control
def test_planted_effects_are_found_always_and_others_at_the_stated_rate() -> None:
    # One data set may claim a null column: that is what 5% means. 100 of them: standard error of the rate .022.
    labels = [str(i) for i in range(40)]
    extra = {"holm": 0, "maximum": 0}
    for trial in range(100):
        values = np.random.default_rng(trial).normal(size=(40, 60))
        values[:, [3, 17]] += (1.5, -1.5)
        adjusted = {
            "holm": np.array(holm(sign_flip(values, labels, seed=trial).tolist())),
            "maximum": max_statistic(values, labels, seed=trial, flips=2000),
        }
        for way, p in adjusted.items():
            claims = set(np.flatnonzero(p < 0.05))
            assert claims >= {3, 17}, way
            extra[way] += claims != {3, 17}
    assert max(extra.values()) <= 12  # 5 expected; three standard errors above are 11.5


def null(trials: int, columns: int, clusters: int = 12) -> np.ndarray:
    """[clusters, trials, columns] without an effect; columns correlate."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(clusters, trials, 1)) + rng.normal(size=(clusters, trials, columns))


@pytest.mark.negative_control
def test_holm_claims_something_on_nothing_at_most_at_its_rate() -> None:
    rng = np.random.default_rng(0)
    any_claim = [min(holm(rng.uniform(size=20).tolist())) < 0.05 for _ in range(2000)]
    raw = [min(rng.uniform(size=20)) < 0.05 for _ in range(2000)]
    assert np.mean(any_claim) == pytest.approx(0.05, abs=0.015)  # standard error .005
    assert np.mean(raw) > 0.5  # uncorrected: 1 - .95**20 = .64


@pytest.mark.negative_control
def test_sign_flips_and_the_maximum_keep_their_rate_on_nothing() -> None:
    values, labels = null(400, 8), [str(i) for i in range(12)]
    single = sign_flip(values[:, :, 0], labels, seed=0)
    assert (single < 0.05).mean() == pytest.approx(0.05, abs=0.03)  # 400 trials: standard error .011
    family = [max_statistic(values[:, t], labels, seed=0).min() < 0.05 for t in range(400)]
    assert np.mean(family) == pytest.approx(0.05, abs=0.03)


def test_the_maximum_adjusts_upwards_and_keeps_the_order() -> None:
    values, labels = null(1, 8)[:, 0] + np.linspace(0, 1, 8), [str(i) for i in range(12)]
    raw, adjusted = sign_flip(values, labels, seed=0), max_statistic(values, labels, seed=0)
    assert (adjusted >= raw - 0.02).all()
    t = np.abs(values.mean(0) / values.std(0))
    assert (np.diff(adjusted[np.argsort(-t)]) >= 0).all()


def test_columns_of_zeros_are_no_effect() -> None:
    values = np.zeros((10, 2))
    values[:, 1] = 1
    labels = [str(i) for i in range(10)]
    assert sign_flip(values, labels, seed=0).tolist() == [1.0, 2 / 1024]
    assert max_statistic(values, labels, seed=0).tolist() == [1.0, 2 / 1024]


HEADS = {layer: 9 for layer in range(30)}


def test_controls_are_distinct_of_one_size_and_without_the_claim() -> None:
    claimed = [(20, 3), (20, 5), (28, 1)]
    found = random_controls(claimed, HEADS, count=100, seed=0, exclude=[(20, 0)])
    assert len(set(found.sets)) == 100
    assert all(len(set(s)) == 3 for s in found.sets)
    assert not any(place in {*claimed, (20, 0)} for s in found.sets for place in s)


def test_controls_come_from_near_layers_wide_enough_for_twenty_alternatives() -> None:
    # Layer 20 has 8 others; with 19 and 21 there are 26.
    found = random_controls([(20, 3)], HEADS, count=26, seed=0)
    assert {place[0] for s in found.sets for place in s} == {19, 20, 21}
    assert found.note == "drawn from the same layers and up to 1 layers away"
    wide = random_controls([(20, 3)], {20: 64, 21: 64}, count=50, seed=0)
    assert {place[0] for s in wide.sets for place in s} == {20}
    assert wide.note == "drawn from the same layers"


def test_the_same_seed_draws_the_same_controls() -> None:
    draw = lambda seed: random_controls([(5, 0), (6, 0)], HEADS, count=20, seed=seed).sets  # noqa: E731
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


@pytest.mark.hand_worked
def test_where_there_are_fewer_sets_than_asked_for_all_of_them_come_back() -> None:
    # Four places, one claimed: the three others are the only sets of one.
    drawn = random_controls([(0, 0)], {0: 4}, count=10, seed=0)
    assert set(drawn.sets) == {((0, 1),), ((0, 2),), ((0, 3),)}
    assert "no more than 3" in drawn.note


@pytest.mark.bad_input
def test_bad_input_is_refused() -> None:
    with pytest.raises(BadArguments, match=r"1\.2 is not a p-value"):
        holm([0.1, 1.2])
    with pytest.raises(BadArguments, match="at least two clusters"):
        sign_flip([1.0, 2.0], ["a", "a"], seed=0)
    with pytest.raises(BadArguments, match=r"\(30, 0\) does not exist"):
        random_controls([(30, 0)], HEADS, count=5, seed=0)
    with pytest.raises(BadArguments, match="nothing is left to draw"):
        random_controls([(0, 0)], {0: 1}, count=1, seed=0)
    with pytest.raises(BadArguments, match="no controls were given"):
        control_p(1.0, [])
