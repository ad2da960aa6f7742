"""Sparse probing and the absorption-like check, on features that are planted."""

from __future__ import annotations

import numpy as np
import pytest
from anatomist.dictionaries.probing import Halves, absorption, balanced, halves, one_of, probe_rows, properties

N = 400
PARTS = Halves(np.arange(0, N, 2), np.arange(1, N, 2))


def noise(columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, columns))


@pytest.mark.hand_worked
def test_properties_of_tokens_are_those_one_can_see() -> None:
    found = properties([[" The", " cat", "'s", " (", "12", ")", "\n"]])
    assert found["starts a word"].tolist() == [True, True, False, False, False, False, False]
    assert found["capital"].tolist() == [True] + [False] * 6
    assert found["number"].tolist() == [False] * 4 + [True, False, False]
    assert found["punctuation"].tolist() == [False, False, False, True, False, True, False]
    assert found["inside brackets"].tolist() == [False, False, False, False, True, True, False]
    assert found["line break"].tolist() == [False] * 6 + [True]


@pytest.mark.hand_worked
def test_balanced_accuracy_weighs_both_kinds_alike() -> None:
    # 1 of 2 positives and 3 of 3 negatives are told right: (1/2 + 1) / 2
    said = np.array([True, False, False, False, False])
    assert balanced(said, np.array([True, True, False, False, False])) == 0.75


@pytest.mark.hand_worked
def test_even_rows_choose_and_odd_rows_judge() -> None:
    found = halves([2, 1, 2], np.array([True, True, True, False, True]))
    assert found.choose.tolist() == [0, 1, 4]
    assert found.judge.tolist() == [2]


@pytest.mark.positive_control
def test_a_planted_feature_is_found_and_reads_the_property() -> None:
    label = np.random.default_rng(1).random(N) < 0.3
    f = np.abs(noise(10))
    f[:, 7] = label * 2.0
    assert one_of(f, label, PARTS) == (7, 1.0)
    f[:, 7] = ~label * 2.0  # a feature that is silent on the property tells it as well
    assert one_of(f, label, PARTS) == (7, 1.0)


@pytest.mark.negative_control
def test_shuffled_labels_and_noise_stay_near_chance() -> None:
    label = np.random.default_rng(1).random(N) < 0.4
    f = noise(30)
    f[:, 3] += 3 * label
    (row,) = probe_rows(noise(8, seed=2), f, {"planted": label}, PARTS, seed=0)
    assert row.feature == 3
    assert row.one_feature > 0.85
    assert row.shuffled == pytest.approx(0.5, abs=0.12)
    assert row.whole == pytest.approx(0.5, abs=0.12)  # the activation knows nothing of it
    assert not list(probe_rows(noise(8), f, {"rare": np.arange(N) < 5}, PARTS, seed=0))


@pytest.mark.positive_control
@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.25, 0.25)])
def test_words_that_a_feature_of_their_own_took_over_are_counted(share: float, expected: float) -> None:
    # Coordinate 0 is 1 on words with 'a'. Feature 0 stands for it, but on a share of the words feature 1 does instead.
    draw = np.random.default_rng(3)
    is_a = draw.random(N) < 0.4
    taken = is_a & (draw.random(N) < share)
    x = 0.01 * noise(5)
    x[:, 0] += is_a
    f = np.zeros((N, 3))
    f[:, 0], f[:, 1], f[:, 2] = is_a & ~taken, taken, 1.0
    directions = np.zeros((3, 5))
    directions[:2, 0], directions[2, 4] = 1.0, 1.0
    found = absorption(x, f, directions, [" apple" if a else " berry" for a in is_a], PARTS)
    judged = taken[PARTS.judge].sum() / is_a[PARTS.judge].sum()
    assert found.letters in ("a", "ab")
    others = [" apple" if a else f" {c}x" for a, c in zip(is_a, "bcdefghijklmnopq" * 25, strict=True)]
    only_a = absorption(x, f, directions, others, PARTS)
    assert only_a.letters == "a"
    assert only_a.rate == pytest.approx(judged)
    assert judged == pytest.approx(expected, abs=0.1)


@pytest.mark.negative_control
def test_a_letter_that_the_activation_does_not_hold_is_not_judged() -> None:
    words = [" apple" if i % 2 else " berry" for i in np.random.default_rng(0).integers(0, 2, N)]
    found = absorption(noise(5), np.abs(noise(4, 1)), noise(5)[:4], words, PARTS)
    assert (found.rate, found.letters) == (None, "")
