"""measures.linear, measures.labels: fits and areas by hand and by another optimiser; groups that stay together."""

from __future__ import annotations

import numpy as np
import pytest
from anatomist.errors import BadArguments
from anatomist.measures.labels import shuffled, split_by_group
from anatomist.measures.linear import Span, auroc, auroc_estimate
from anatomist.measures.statistics import Clusters
from scipy.optimize import minimize


@pytest.mark.hand_worked
def test_auroc_counts_pairs_and_halves_ties() -> None:
    """Positives 2 and 3, negatives 1 and 2: 2 beats 1, ties 2; 3 beats both: (1 + .5 + 1 + 1) / 4."""
    assert auroc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 1, 0, 1])) == 3.5 / 4


@pytest.mark.hand_worked
def test_the_interval_of_an_auroc_holds_it_and_a_perfect_one_has_no_width() -> None:
    clusters = Clusters([f"g{i}" for i in range(8)], seed=0)
    labels = np.array([0, 1] * 4)
    assert auroc_estimate(labels * 1.0, labels, clusters).low == 1
    mixed = auroc_estimate(np.array([0.0, 1, 2, 1, 0, 3, 1, 1.5]), labels, clusters)
    assert mixed.low is not None
    assert mixed.high is not None
    assert mixed.low < mixed.mean < mixed.high


@pytest.mark.parametrize("n", [12, 60])
def test_the_logistic_fit_is_the_minimum_that_another_optimiser_finds(n: int) -> None:
    """Twenty dimensions, fewer and more examples than that: rules out a wrong basis, scale, penalty or bias."""
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, 20)) * 3 + 5, rng.integers(0, 2, n)
    fitted = Span.of(x).logistic(y, penalty=2.0)
    scale = np.sqrt(((x - x.mean(0)) ** 2).mean())
    z = (x - x.mean(0)) / scale

    def objective(w: np.ndarray) -> float:
        score = z @ w[:-1] + w[-1]
        return float(np.logaddexp(0, score).sum() - y @ score + (w[:-1] ** 2).sum())

    best = minimize(objective, np.zeros(21), method="BFGS", options={"gtol": 1e-7}).x
    assert fitted(x) == pytest.approx(z @ best[:-1] + best[-1], abs=1e-4)


@pytest.mark.bad_input
def test_a_fit_without_two_labels_or_differing_examples_says_so() -> None:
    with pytest.raises(BadArguments, match="both labels"):
        Span.of(np.eye(3)).logistic(np.ones(3))
    with pytest.raises(BadArguments, match="do not differ"):
        Span.of(np.ones((3, 2)))
    with pytest.raises(BadArguments, match="both labels"):
        auroc(np.ones(2), np.ones(2))


def test_a_split_keeps_groups_whole_and_balances_labels() -> None:
    labels, groups = [1] * 10 + [0] * 10, [f"p{i}" for i in range(10)] * 2
    fit, held = split_by_group(labels, groups, 0.3, 0)
    assert {groups[i] for i in fit}.isdisjoint({groups[i] for i in held})
    assert sorted(labels[i] for i in held) == [0] * 3 + [1] * 3
    with pytest.raises(BadArguments, match="cannot be split"):
        split_by_group([1, 0], ["a", "a"], 0.5, 0)


def test_a_shuffle_exchanges_pairs_and_deals_single_groups_anew() -> None:
    pairs = shuffled([1, 0, 1, 0], ["a", "a", "b", "b"], 50, 0)
    assert (pairs[:, 0] + pairs[:, 1] == 1).all()
    assert 0.2 < pairs[:, 0].mean() < 0.8
    single = shuffled([1, 1, 0, 0], ["a", "b", "c", "d"], 50, 0)
    assert (single.sum(1) == 2).all()
    assert 0.2 < single[:, 0].mean() < 0.8
