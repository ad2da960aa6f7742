"""Logits of pairs by look-up are those of the whole forward pass, with their gradients; and which pairs are trained."""

from __future__ import annotations

import pytest
import torch
from anatomist.model.backends.toy import plain_logits
from anatomist.model.backends.toy_file import toy_weights
from anatomist.training.addition import AdditionSettings, AdditionTask, logits_of_pairs


@pytest.mark.positive_control
def test_looked_up_logits_and_their_gradients_are_those_of_the_whole_pass() -> None:
    """Rules out a wrong position or a wrong head order in the look-up: biases and positions are not zero here."""
    task = AdditionTask(AdditionSettings("x", modulus=7, width=16))
    weights = {name: torch.randn(x.shape) / 4 for name, x in task.fresh().items()}
    a, b = torch.tensor([0, 3, 6, 6]), torch.tensor([5, 3, 0, 6])
    rows = torch.stack([a, b, torch.full_like(a, 7)], 1)
    found = []
    for logits in (logits_of_pairs, lambda w, a, b: plain_logits(toy_weights(w), rows)[:, -1]):
        mine = {name: x.clone().requires_grad_() for name, x in weights.items()}
        out = logits(mine, a, b)
        out.square().sum().backward()
        found.append((out.detach(), {name: x.grad for name, x in mine.items()}))
    (looked_up, its), (whole, theirs) = found
    assert torch.allclose(looked_up, whole, rtol=1e-4, atol=1e-4)
    for name in weights:
        assert torch.allclose(its[name], theirs[name], rtol=1e-3, atol=1e-3), name


def test_half_of_the_pairs_are_trained_on_and_they_follow_from_the_seed() -> None:
    chosen = [AdditionTask(AdditionSettings("x", seed=seed)).trained_on for seed in (0, 0, 1)]
    assert int(chosen[0].sum()) == round(59 * 59 / 2)
    assert bool((chosen[0] == chosen[1]).all())
    assert not bool((chosen[0] == chosen[2]).all())
