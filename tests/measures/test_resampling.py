"""Cluster bootstrap: worked by hand where it can be, and by simulation where its promise is a rate."""

from __future__ import annotations

import numpy as np
import pytest
from anatomist.errors import BadArguments, NotFinite
from anatomist.measures.resampling import Clusters, difference, estimate, normalised, paired_difference, tail_of


@pytest.mark.hand_worked
def test_the_mean_is_over_prompts_not_over_clusters() -> None:
    # Clusters {1, 1} and {4}: prompts' mean 2; the mean of cluster means would be 2.5.
    # Draws are aa (mean 1), ab (2), bb (4); with two clusters the widened tail is 0, so the ends are 1 and 4.
    found = estimate([1, 1, 4], ["a", "a", "b"], seed=0)
    assert (found.mean, found.low, found.high, found.n, found.clusters) == (2, 1, 4, 3, 2)


@pytest.mark.hand_worked
def test_few_clusters_widen_the_tail() -> None:
    # t(.975, 9) = 2.26216, times sqrt(10 / 9) = 2.38452; Phi(-2.38452) = .00855 instead of .025.
    assert tail_of(0.95, 10) == pytest.approx(0.00855, abs=2e-5)
    assert tail_of(0.95, 100_000) == pytest.approx(0.025, abs=1e-5)


@pytest.mark.hand_worked
def test_a_ratio_is_one_of_means_not_a_mean_of_ratios() -> None:
    # (1 + 9) / (1 + 3) = 2.5; the mean of 1/1 and 9/3 is 2.
    found = Clusters(["a", "b"], seed=0).ratios(np.array([1.0, 9.0]), np.array([1.0, 3.0])).estimate()
    assert found.mean == 2.5
    assert (found.low, found.high) == (1.0, 3.0)


@pytest.mark.hand_worked
def test_a_normalised_effect_is_a_fraction_of_the_gap() -> None:
    # base 1 and 3, other 5 and 11: gap (4 + 8) / 2 = 6; x moves by 1 and 5, mean 3: 3 / 6.
    base, other, x = np.array([1.0, 3.0]), np.array([5.0, 11.0]), np.array([2.0, 8.0])
    found = normalised(x, base, other, Clusters(["a", "b"], seed=0))
    assert found.withheld is None
    assert found.intervals is not None
    assert found.intervals.estimate().mean == 0.5


def test_patching_the_whole_run_gives_one_in_every_replicate() -> None:
    rng = np.random.default_rng(0)
    base, other = rng.normal(0, 1, 40), rng.normal(5, 1, 40)
    grid = normalised(
        np.stack([base, other], axis=1), base, other, Clusters([str(i // 2) for i in range(40)], seed=0)
    ).intervals
    assert grid is not None
    assert grid.low is not None
    np.testing.assert_allclose(grid.mean, [0, 1], atol=1e-12)
    np.testing.assert_allclose(grid.low, [0, 1], atol=1e-12)


@pytest.mark.negative_control
def test_a_normalised_effect_is_withheld_where_there_is_no_gap() -> None:
    rng = np.random.default_rng(0)
    base, other = rng.normal(0, 1, 60), rng.normal(0, 1, 60)
    found = normalised(base + 1, base, other, Clusters([str(i) for i in range(60)], seed=0))
    assert found.intervals is None
    assert found.withheld is not None
    assert "has 0 in its interval" in found.withheld


def test_many_cells_give_what_each_gives_alone() -> None:
    values = np.random.default_rng(0).normal(size=(30, 4, 5))
    labels = [str(i % 11) for i in range(30)]
    grid = Clusters(labels, seed=7).means(values)
    alone = estimate(values[:, 2, 3], labels, seed=7)
    assert grid.estimate(2, 3).mean == pytest.approx(alone.mean)
    assert grid.estimate(2, 3).low == pytest.approx(alone.low)
    assert grid.estimate(2, 3).high == pytest.approx(alone.high)


def test_a_single_cluster_has_no_interval() -> None:
    found = estimate([1.0, 2.0], ["a", "a"], seed=0)
    assert (found.mean, found.low, found.high) == (1.5, None, None)
    assert found.method == "single cluster: no interval"


def test_the_same_seed_gives_the_same_interval() -> None:
    values, labels = np.random.default_rng(0).normal(size=20), [str(i) for i in range(20)]
    assert estimate(values, labels, seed=1) == estimate(values, labels, seed=1)
    assert estimate(values, labels, seed=1) != estimate(values, labels, seed=2)


def coverage(clusters: int, per_cluster: int, *, by_row: bool = False, trials: int = 2000) -> float:
    """Share of intervals that hold the true mean 0, cluster effects as large as the noise."""
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.normal(size=(clusters, trials)), per_cluster, axis=0)
    values = shared + rng.normal(size=shared.shape)
    labels = [str(i if by_row else i // per_cluster) for i in range(len(values))]
    found = Clusters(labels, seed=0, replicates=1000).means(values)
    assert found.low is not None
    assert found.high is not None
    return float(((found.low <= 0) & (found.high >= 0)).mean())


@pytest.mark.positive_control
@pytest.mark.parametrize("clusters", [10, 40])
def test_intervals_hold_the_truth_at_their_level(clusters: int) -> None:
    # 2,000 trials: the standard error of the rate is .005.
    assert coverage(clusters, 4) == pytest.approx(0.95, abs=0.02)


@pytest.mark.negative_control
def test_intervals_that_take_rows_for_independent_are_too_short() -> None:
    # 4 rows a cluster, half the variance shared: the naive interval is sqrt(2.5) too short and holds the truth in 79%.
    assert coverage(40, 4, by_row=True) < 0.85


def test_intervals_of_ratios_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    below = rng.normal(4, 1, size=(60, 1000))
    above = 0.5 * below + rng.normal(0, 1, size=below.shape)
    found = Clusters([str(i) for i in range(60)], seed=0, replicates=1000).ratios(above, below)
    assert found.low is not None
    assert found.high is not None
    assert ((found.low <= 0.5) & (found.high >= 0.5)).mean() == pytest.approx(0.95, abs=0.025)


@pytest.mark.hand_worked
def test_differences() -> None:
    labels = ["a", "b"]
    assert paired_difference([3, 5], [1, 2], labels, seed=0).mean == 2.5
    apart = difference([3.0, 5.0, 7.0], ["a", "b", "c"], [1.0, 2.0], labels, seed=0)
    assert apart.mean == 3.5
    assert (apart.n, apart.clusters) == (5, 5)


def test_a_difference_of_different_prompts_is_wider_than_of_the_same() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0, 3, 50)
    b, labels = a + 1 + rng.normal(0, 0.1, 50), [str(i) for i in range(50)]
    paired, apart = paired_difference(b, a, labels, seed=0), difference(b, labels, a, labels, seed=0)
    assert paired.low is not None
    assert paired.high is not None
    assert apart.low is not None
    assert apart.high is not None
    assert apart.high - apart.low > 10 * (paired.high - paired.low)


@pytest.mark.bad_input
def test_bad_input_is_refused() -> None:
    with pytest.raises(BadArguments, match="no prompts were given"):
        estimate([], [], seed=0)
    with pytest.raises(BadArguments, match="2 values were given for 3 prompts"):
        estimate([1, 2], ["a", "b", "c"], seed=0)
    with pytest.raises(NotFinite, match="1 of 2 values are NaN"):
        estimate([1, float("nan")], ["a", "b"], seed=0)
    with pytest.raises(BadArguments, match="needs the same prompts on both sides"):
        paired_difference([1, 2], [1], ["a", "b"], seed=0)
