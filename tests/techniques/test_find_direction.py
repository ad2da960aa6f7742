"""find_direction: fits by hand, the toy's one-hot tokens, a planted direction in a real model, exchangeable nulls."""

from __future__ import annotations

import pydoc_data.topics
import random
from typing import Any

import numpy as np
import pytest
from anatomist.causal.direction_fits import Part, fit_directions, separations
from anatomist.errors import BadArguments
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.prompts.given import inline_set
from anatomist.technique import Context
from anatomist.techniques.find_direction import Arguments, DirectionsResult, plot, run


def texts(last: int, n: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Random tokens 8 to 19 with a fixed last one."""
    draw = random.Random(seed)
    return tuple((*(draw.randrange(8, 20) for _ in range(4)), last) for _ in range(n))


def look(model: Model, **more: Any) -> tuple[DirectionsResult, Context]:
    context = Context(model)
    return run(context, Arguments(model="m", **more)), context


@pytest.fixture(scope="module")
def hand() -> ToyModel:
    return induction()


@pytest.mark.hand_worked
def test_the_three_directions_of_four_points() -> None:
    """Positives (2, 0), (2, 2), negatives (0, 0), (0, 2): means (2, 1) and (0, 1), so v = (2, 0) and the threshold 1.
    Pairs differ by (2, 0) twice: the same component. The logistic weights point along x by symmetry, midway at 1."""
    x, y = np.array([[2.0, 0], [2, 2], [0, 0], [0, 2]]), np.array([1, 1, 0, 0])
    found = fit_directions(("mean_difference", "pca", "logistic"), x, y, ["a", "b", "a", "b"])
    for direction in found.values():
        assert direction.vector == pytest.approx([2, 0], abs=1e-9)
        assert direction.threshold == pytest.approx(1, abs=1e-9)


@pytest.mark.hand_worked
def test_in_the_toy_the_difference_is_one_token_minus_the_other(hand: ToyModel) -> None:
    """The residual entering block 0 is one-hot in the token (and the position): e3 - e5 at the last position."""
    _, context = look(hand, positive=texts(3, 20, 0), negative=texts(5, 20, 1), site="resid_pre", layers=(0,))
    v = context.arrays["mean_difference"].tensor[0]
    token = hand.weights.embed()
    assert (v - (token[3] - token[5])).abs().max() < 1e-6
    assert context.arrays["layers"].tensor.tolist() == [0]


@pytest.mark.positive_control
def test_different_last_tokens_are_told_apart_and_the_embedding_is_named_as_rival(hand: ToyModel) -> None:
    result, _ = look(hand, positive=texts(3, 30, 0), negative=texts(5, 30, 1))
    for best in result.best:
        assert best.p == pytest.approx(1 / 21)
        assert best.auroc.mean > (0.8 if best.method == "pca" else 0.95)
    assert any("embedding alone" in w for w in result.warnings)
    assert result.tested_on == 18
    assert plot(result).panels[0].kind == "lines"


@pytest.mark.negative_control
def test_texts_of_one_kind_are_seldom_told_apart() -> None:
    """Two sets from one distribution, 20 seeds: at .05 about one is expected; more than three would be too many."""
    beyond = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((60, 12)), np.array([1, 0] * 30)
        groups = tuple(f"g{i}" for i in range(60))
        fit, test = Part(x[:40], y[:40], groups[:40]), Part(x[40:], y[40:], groups[40:])
        found = separations(("mean_difference", "logistic"), fit, test, shuffles=39, seed=seed)
        for s in found.values():
            real = float((s.scores[test.labels == 1][:, None] > s.scores[test.labels == 0]).mean())
            beyond += (1 + (s.shuffled_auroc >= real).sum()) / 40 <= 0.05
    assert beyond <= 2 * 3


@pytest.mark.bad_input
def test_what_is_no_contrast_is_refused(hand: ToyModel) -> None:
    with pytest.raises(BadArguments, match="one of the two"):
        look(hand)
    with pytest.raises(BadArguments, match="at least one text"):
        look(hand, positive=("t1 t2",))
    with pytest.raises(BadArguments, match="no pairs"):
        look(hand, positive=("t1 t2", "t3"), negative=("t4",), paired=True)
    with pytest.raises(BadArguments, match="do not differ"):
        look(hand, positive=("t1 t2",) * 4, negative=("t1 t2",) * 4)
    with pytest.raises(BadArguments, match="same mean"):
        fit_directions(("pca",), np.array([[0.0, 1], [1, 0]] * 2), np.array([1, 1, 0, 0]), list("abcd"))


def test_clean_prompts_stand_against_corrupted_ones_and_pairs_stay_together(hand: ToyModel) -> None:
    """The two sides differ before the last token only, so the last position is the same at the embedding."""
    pairs = [(a, b) for a in range(8, 14) for b in (1, 2, 3)]
    prompts = [{"clean": f"t{a} t{b} t7 t{a}", "corrupted": f"t{b} t{a} t7 t{a}"} for a, b in pairs]
    context = Context(hand, prompts=inline_set(prompts))
    result = run(context, Arguments(model="m", prompts="inline"))
    assert result.embedding_auroc is None
    assert result.fitted_on + result.tested_on == 2 * len(prompts)


def activations_of(model: Model, layer: int, n: int) -> np.ndarray:
    """[n, D] of a residual on running text, 16 positions a row, the first eight left out."""
    text = " ".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics)[:12])
    ids = model.token_ids(text)
    rows = [ids[i * 64 : (i + 1) * 64] for i in range(n // 16)]
    site = Site("resid_post", layer)
    x = model.run(model.tokenize(rows), read=(site,)).reads[site]
    return x[:, 8::3][:, :16].flatten(0, 1).double().numpy()


@pytest.mark.positive_control
def test_a_planted_direction_is_recovered_as_far_as_the_noise_allows(smollm2: Model) -> None:
    """v of 5, 10, 25 and 50% of the median norm m is added to half of n activations of layer 10. Half against half
    differs by noise of squared length 4 tr(S) / n, so the difference of means has cosine s / sqrt(s^2 + 4 tr(S) / n)
    with v, known beforehand: noise of 13% of m gives .36, .61, .89, .97, that of these 400 (7%) .60, .83, .97, .99. A
    logistic probe finds a short v better, for it turns away from what varies; divided by one number its examples let it
    go on gaining with s, where a probe on coordinates scaled one by one stays near .75, .79, .84, .83."""
    told = [s / np.hypot(s, 0.1295) for s in (0.05, 0.1, 0.25, 0.5)]
    assert told == pytest.approx([0.36, 0.61, 0.89, 0.97], abs=6e-3)
    x = activations_of(smollm2, 10, 400)
    size = np.median(np.linalg.norm(x, axis=1))
    noise = 4 * x.var(0).sum() / len(x)
    shares = np.array([0.05, 0.10, 0.25, 0.50])
    found = np.stack([planted(x, size * shares, seed) for seed in range(4)]).mean(0)
    expected = size * shares / np.sqrt((size * shares) ** 2 + noise)
    assert found[0] == pytest.approx(expected, abs=0.03)
    assert (found[0] > np.array([0.36, 0.61, 0.89, 0.97])).all()
    assert (found[1] > np.array([0.75, 0.79, 0.84, 0.83])).all()


def planted(x: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """[method, size]: cosine of what is found with what was planted."""
    rng = np.random.default_rng(seed)
    v = rng.standard_normal(x.shape[1])
    v /= np.linalg.norm(v)
    y, groups = rng.permutation([1, 0] * (len(x) // 2)), [f"t{i}" for i in range(len(x))]
    fits = [fit_directions(("mean_difference", "logistic"), x + s * np.outer(y, v), y, groups) for s in sizes]
    return np.array([[f[m].vector @ v / np.linalg.norm(f[m].vector) for f in fits] for m in fits[0]])


@pytest.mark.negative_control
def test_shuffled_labels_of_a_planted_direction_give_an_accuracy_of_one_half(smollm2: Model) -> None:
    x = activations_of(smollm2, 10, 208)[:200]
    rng = np.random.default_rng(1)
    v, y = rng.standard_normal(x.shape[1]), rng.permutation([1, 0] * 100)
    x = x + 0.5 * np.median(np.linalg.norm(x, axis=1)) * np.outer(y, v / np.linalg.norm(v))
    groups = tuple(f"t{i}" for i in range(200))
    fit, test = (Part(x[s], y[s], groups[s]) for s in (slice(0, 140), slice(140, 200)))
    found = separations(("mean_difference", "logistic"), fit, test, shuffles=20, seed=0)
    for s in found.values():
        assert ((s.scores > 0) == test.labels).mean() > 0.95
        assert s.shuffled_accuracy.mean() == pytest.approx(0.5, abs=0.03)
