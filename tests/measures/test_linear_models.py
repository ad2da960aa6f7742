"""Linear models against scikit-learn, by hand, and on data whose direction is known."""

from __future__ import annotations

import numpy as np
import pytest
from anatomist.errors import BadArguments, NotFinite
from anatomist.measures.linear_models import (
    Axes,
    constant,
    logistic,
    nearest_mean,
    ridge,
)
from sklearn.linear_model import LogisticRegression, Ridge


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows whose columns differ in size a hundredfold, away from zero, as activations are."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) * np.geomspace(10, 0.1, d) + generator.normal(size=d)


def labels(x: np.ndarray, classes: int, seed: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scores = x @ generator.normal(size=(x.shape[1], classes)) / 5 + generator.gumbel(size=(len(x), classes))
    return scores.argmax(1)


@pytest.mark.hand_worked
def test_ridge_on_one_column_is_the_division_worked_by_hand() -> None:
    # x = 0, 2 and y = 1, 5: centred x is -1, 1 (root mean square 1), centred y -2, 2; z.y / n = 2, variance 1.
    # l2 = 1: w = 2 / (1 + 1) = 1, b = 3 - 1 * 1 = 2. l2 = 0: w = 2, b = 1.
    x, y = np.array([[0.0], [2.0]]), np.array([1.0, 5.0])
    fit = ridge(Axes.of(x), y, 1.0)
    assert fit.weight[0, 0] == pytest.approx(1.0)
    assert fit.bias[0] == pytest.approx(2.0)
    assert ridge(Axes.of(x), y, 0.0).scores(x)[:, 0] == pytest.approx(y)


@pytest.mark.hand_worked
def test_the_nearest_mean_is_parted_half_way() -> None:
    # Means (0, 1) and (4, 1): direction (4, 0), threshold at x = 2: bias -8.
    x = np.array([[0.0, 0.0], [0.0, 2.0], [4.0, 1.0]])
    fit = nearest_mean(x, np.array([0, 0, 1]), 2)
    assert fit.weight[1].tolist() == [4.0, 0.0]
    assert fit.bias[1] == pytest.approx(-8.0)
    assert fit.weight[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("n", "d"), [(60, 7), (20, 50)])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_logistic_is_that_of_scikit_learn(n: int, d: int, classes: int, l2: float) -> None:
    # Rules out a penalised bias, a penalty that grows with n, and solutions outside the span of the rows (d > n).
    x = rows(n, d)
    y = labels(x, classes)
    axes = Axes.of(x)
    own = logistic(axes, y, classes, l2)
    scaled = (x - axes.mean) / axes.scale
    other = LogisticRegression(C=1 / (n * l2), tol=1e-10, max_iter=20000).fit(scaled, y)
    shift = own.weight.mean(0) if classes > 2 else own.weight[0]
    weight = (own.weight - shift)[-other.coef_.shape[0] :] * axes.scale
    assert weight == pytest.approx(other.coef_, abs=2e-4 * abs(other.coef_).max())
    from scipy.special import softmax

    assert softmax(own.scores(x), axis=1) == pytest.approx(other.predict_proba(scaled), abs=1e-4)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (20, 50)])
def test_ridge_is_that_of_scikit_learn(n: int, d: int) -> None:
    x = rows(n, d)
    y = x @ np.linspace(-1, 1, d) + 3
    axes = Axes.of(x)
    own = ridge(axes, y, 0.1)
    other = Ridge(alpha=0.1 * n).fit((x - axes.mean) / axes.scale, y)
    assert own.weight[0] * axes.scale == pytest.approx(other.coef_, rel=1e-6, abs=1e-8)
    assert own.scores(x)[:, 0] == pytest.approx(other.predict((x - axes.mean) / axes.scale), rel=1e-6)


@pytest.mark.positive_control
def test_three_separate_classes_are_told_apart_on_new_rows() -> None:
    generator = np.random.default_rng(0)
    means = 6 * np.eye(3, 10)
    y = np.arange(300) % 3
    x = means[y] + generator.normal(size=(300, 10))
    for fit in (logistic(Axes.of(x[:150]), y[:150], 3, 1e-2), nearest_mean(x[:150], y[:150], 3)):
        assert (fit.scores(x[150:]).argmax(1) == y[150:]).mean() > 0.97


@pytest.mark.negative_control
def test_a_strong_penalty_leaves_the_frequencies() -> None:
    x, y = rows(40, 5), np.array([0] * 30 + [1] * 10)
    fit = logistic(Axes.of(x), y, 2, 1e6)
    assert fit.scores(x)[:, 1] == pytest.approx(np.log(10 / 30), abs=1e-3)
    assert constant(y, 2, 5).scores(x)[0] == pytest.approx(np.log([0.75, 0.25]))


@pytest.mark.bad_input
def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(BadArguments, match="above 0"):
        logistic(Axes.of(rows(10, 3)), np.arange(10) % 2, 2, 0.0)
    with pytest.raises(BadArguments, match="labels 0 to 4 for 2 classes"):
        logistic(Axes.of(rows(10, 3)), np.arange(10) % 5, 2, 1.0)
    with pytest.raises(BadArguments, match="do not differ"):
        Axes.of(np.ones((4, 3)))
    with pytest.raises(NotFinite, match="NaN"):
        Axes.of(np.full((4, 3), np.nan))
