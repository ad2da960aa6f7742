"""Waves in a + b: shares, key frequencies, restricted and excluded logits, worked out on logits that are one wave."""

from __future__ import annotations

import math

import pytest
import torch
from anatomist.training.fourier import excluded, key_frequencies, loss_on, restricted, shares, table_power
from torch import Tensor

P = 11


def wave(k: int, size: float = 30.0) -> Tensor:
    """Logits that add modulo p by one frequency: size cos(2 pi k (a + b - c) / p)."""
    a, b, c = torch.meshgrid(*[torch.arange(P)] * 3, indexing="ij")
    return size * torch.cos(2 * math.pi * k * (a + b - c) / P)


@pytest.mark.hand_worked
def test_logits_of_one_wave_have_all_their_variance_at_its_frequency() -> None:
    share = shares(wave(3))
    assert share[2] == pytest.approx(1.0)
    assert share.sum() == pytest.approx(1.0)
    assert key_frequencies(share) == (3,)


@pytest.mark.hand_worked
def test_two_waves_share_the_variance_by_their_squared_sizes() -> None:
    """Sizes 30 and 10: 900 to 100, whatever constant each answer or each pair is given on top."""
    pairs, answers = torch.randn(P, P, 1), torch.randn(P)
    share = shares(wave(3, 30.0) + wave(1, 10.0) + pairs + answers)
    assert share[2] == pytest.approx(0.9, abs=1e-6)
    assert share[0] == pytest.approx(0.1, abs=1e-6)
    assert key_frequencies(share, 0.2) == (3,)
    assert key_frequencies(share) == (3, 1)


@pytest.mark.positive_control
def test_without_its_wave_a_model_knows_nothing_and_without_another_it_knows_all() -> None:
    logits = wave(2)
    assert loss_on(logits) < 0.1
    assert torch.allclose(restricted(logits, [2]), logits.double(), atol=1e-4)
    assert loss_on(excluded(logits, [2])) == pytest.approx(math.log(P), abs=1e-4)
    assert torch.allclose(excluded(logits, [4, 5]), logits.double(), atol=1e-4)
    marked = torch.zeros(P, P, dtype=torch.bool)
    marked[3, 4] = True
    right = logits[3, 4].double().log_softmax(-1)[7]
    assert loss_on(logits, marked) == pytest.approx(-float(right))


@pytest.mark.negative_control
def test_random_logits_lie_along_no_wave() -> None:
    """Two directions of p * p - 1 = 120 for each of five frequencies: a twelfth in all, where waves carry all of it."""
    share = shares(torch.randn(P, P, P, generator=torch.Generator().manual_seed(0)))
    assert float(share.sum()) == pytest.approx(10 / 120, abs=0.02)
    assert float(share.max()) < 0.03


@pytest.mark.hand_worked
def test_the_power_of_a_table_is_at_the_waves_it_was_made_of() -> None:
    at = 2 * math.pi * torch.arange(P) / P
    table = torch.stack([2 * (3 * at).cos(), (5 * at).sin()], 1) + 7
    assert table_power(table)[[2, 4]].tolist() == pytest.approx([0.8, 0.2])
