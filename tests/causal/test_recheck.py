"""Estimates beside exact values: what counts as agreement, and what must be named."""

from __future__ import annotations

import numpy as np
import pytest
from anatomist.causal.recheck import auroc, compared, doubts, pearson, to_recheck
from anatomist.measures.statistics import Clusters

CLUSTERS = Clusters([str(i) for i in range(8)], seed=0)


def exact(*means: float) -> np.ndarray:
    """[cells, prompts] with a little spread and these means."""
    return np.array([m + np.linspace(-0.01, 0.01, 8) for m in means])


@pytest.mark.hand_worked
def test_wrong_signs_and_misses_are_named() -> None:
    """Largest 10: of size from 1 on. a agrees; b has the wrong sign; c is scored .05 < 10/100, so missed; d is small
    but sure (interval without 0, over .1) and of the wrong sign; e is under a hundredth. Agreement: 1 of a, b, c."""
    names = ["a", "b", "c", "d", "e"]
    estimates = [9, -2, 0.05, -0.2, -0.04]
    found = compared(names, dict.fromkeys(range(5), "top"), estimates, exact(10, 3, 4, 0.5, 0.05), CLUSTERS)
    assert found.wrong_sign == ("b", "d")
    assert found.missed == ("c",)
    assert found.sign_agreement == pytest.approx(1 / 3)
    assert [c.name for c in found.cells] == ["a", "c", "b", "d", "e"]
    assert "b (exact +3, estimated -2)" in doubts(found)[0]


@pytest.mark.hand_worked
def test_auroc_counts_pairs_with_ties_half() -> None:
    # Real .9 and .1 against .1 and 0: .9 beats both, .1 ties one and beats one: (2 + 1.5) / 4.
    assert auroc([0.9, 0.1, 0.1, 0.0], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert auroc([1.0], [True]) is None


def test_a_perfect_rank_of_tiny_numbers_is_warned_of() -> None:
    real = exact(5, 4, 0) - exact(0, 0, 0)
    found = compared(["a", "b", "c"], dict.fromkeys(range(3), "top"), [5, 1e-9, 0], real, CLUSTERS)
    assert found.auroc == 1
    assert any("AUROC is 1.000" in w for w in doubts(found))


def test_the_largest_the_doubted_and_a_random_sample_are_chosen() -> None:
    chosen = to_recheck([5, 1, 4, 0, 0, 0, 0], top=2, sample=2, doubted=(0, 6), seed=1)
    assert chosen[0] == chosen[2] == "top"
    assert chosen[6] == "saturated"
    assert sorted(chosen.values()).count("random") == 2
    assert to_recheck([1, 2], top=5, sample=5, seed=0) == {0: "top", 1: "top"}


def test_a_correlation_needs_points_that_vary() -> None:
    assert pearson([1, 2], [1, 2]) is None
    assert pearson([1, 1, 1], [1, 2, 3]) is None
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
