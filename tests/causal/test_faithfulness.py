"""Faithfulness over sizes: numbers worked by hand, and what the areas and overlaps must not hide."""

from __future__ import annotations

import numpy as np
import pytest
from anatomist.causal.faithfulness import FRACTIONS, Scale, ranked, rediscovered, sizes_of, weights_of
from anatomist.errors import BadPrompts
from anatomist.measures.statistics import Clusters

LABELS = [str(i) for i in range(6)]


def scale(empty: float = -1.0, whole: float = 3.0) -> Scale:
    spread = np.linspace(-0.1, 0.1, 6)
    return Scale(empty + 0 * spread, whole + spread, Clusters(LABELS, seed=0))


def at(*fs: float) -> np.ndarray:
    """Metric values of circuits with these faithfulnesses: [circuits, prompts]; the ends are -1 and 3."""
    return np.array([np.full(6, -1 + 4 * f) for f in fs])


@pytest.mark.hand_worked
def test_faithfulness_is_the_share_of_the_way_from_the_empty_circuit_to_the_model() -> None:
    """(2 - -1) / (3 - -1) = 3/4 on data-set means; 5 is beyond the model: 1.5, not clipped; -2 is below nothing."""
    found = [scale().mean(np.full(6, m)) for m in (2.0, 5.0, -2.0)]
    assert found == pytest.approx([0.75, 1.5, -0.25])
    estimate = scale().f(np.full(6, 2.0))
    assert estimate.mean == pytest.approx(0.75)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 0.75 < estimate.high


@pytest.mark.hand_worked
def test_it_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    """Two prompts with gaps 1 and 3 of which 1 and 0 are kept: 1/4. The mean of the ratios would be 1/2."""
    s = Scale(np.zeros(2), np.array([1.0, 3.0]), Clusters(["a", "b"], seed=0))
    assert s.mean(np.array([1.0, 0.0])) == pytest.approx(0.25)


@pytest.mark.hand_worked
def test_areas_are_trapezoids_over_the_fractions() -> None:
    """f: 0 up to .02, 2/3 at .05, 1 from .1. CPR = .03/3 + .05 * 5/6 + .9 = .951667; CMD = .999 - CPR, for f <= 1."""
    curve = scale().curve("x", sizes_of(81), at(0, 0, 0, 0, 0, 2 / 3, 1, 1, 1, 1))
    assert curve.cpr.mean == pytest.approx(0.951667, abs=1e-6)
    assert curve.cmd.mean == pytest.approx(0.999 - 0.951667, abs=1e-6)
    assert [p.size for p in curve.points] == [0, 0, 0, 0, 1, 4, 8, 16, 40, 81]
    assert [p.fraction for p in curve.points] == list(FRACTIONS)
    assert sum(weights_of(FRACTIONS)) == pytest.approx(0.999)


def test_overshooting_raises_cpr_and_is_held_against_cmd() -> None:
    """f = 2 at half the parts: CPR gains what CMD loses."""
    flat, over = (scale().curve("x", sizes_of(10), at(*[1.0] * 8, f, 1.0)) for f in (1.0, 2.0))
    assert flat.cmd.mean == pytest.approx(0)
    assert over.cpr.mean - flat.cpr.mean == pytest.approx((0.3 + 0.5) / 2)
    assert over.cmd.mean == pytest.approx((0.3 + 0.5) / 2)


def test_intervals_of_areas_hold_the_mean() -> None:
    noisy = at(*[0.0] * 9, 1.0) + np.linspace(-1, 1, 6)
    curve = scale().curve("x", sizes_of(10), noisy)
    for area in (curve.cpr, curve.cmd):
        assert area.low is not None
        assert area.high is not None
        assert area.low <= area.mean <= area.high
        assert area.low < area.high


@pytest.mark.hand_worked
def test_rankings_are_by_contribution_or_by_its_magnitude() -> None:
    assert ranked([1, -3, 2, 0], "signed") == [2, 0, 3, 1]
    assert ranked([1, -3, 2, 0], "absolute") == [1, 2, 0, 3]


@pytest.mark.negative_control
def test_a_model_that_does_no_more_than_nothing_is_refused() -> None:
    noise = np.array([1.0, -1.2, 0.8, -0.9, 1.1, -0.7])
    with pytest.raises(BadPrompts, match="nothing to be faithful to"):
        Scale(np.zeros(6), noise, Clusters(LABELS, seed=0))


@pytest.mark.positive_control
def test_circuits_that_every_prompt_agrees_on_are_found_again() -> None:
    scores = np.tile([5.0, 4.0, 0.1, 0.2], (6, 1))
    assert rediscovered(scores, LABELS, [0, 1], "absolute", draws=10, seed=0) == [1.0] * 10


@pytest.mark.negative_control
def test_circuits_of_noise_are_not_found_again() -> None:
    """Of 100 parts of pure noise ten are claimed: resampled prompts share less than half with them on average."""
    scores = np.random.default_rng(0).standard_normal((6, 100))
    claimed = ranked(scores.mean(0), "absolute")[:10]
    assert np.mean(rediscovered(scores, LABELS, claimed, "absolute", draws=50, seed=0)) < 0.8
