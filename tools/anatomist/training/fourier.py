"""How far logits over all pairs (a, b) modulo p are waves in a + b, and what is lost without them.

A model that adds by trigonometry answers c with sum over k of A_k cos(2 pi k (a + b - c) / p). For each answer c that
is a wave in a + b: a combination of cos(2 pi k (a + b) / p) and sin(2 pi k (a + b) / p). Such waves of different k are
orthogonal over all pairs, so that logits split into a mean, a part for each k, and a rest.

Source: Nanda et al., arXiv 2301.05217: key frequencies (section 4.1), restricted and excluded loss (section 5.1).
Shapes: p the modulus; logits [p, p, p] over a, b and the answer c. Losses are cross-entropies in nats, in double
precision: after training they are far below what single precision resolves beside logits of tens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

KEY = 0.01  # share of the variance from which a frequency is key; after training the others carry far less


def shares(logits: Float[Tensor, "p p p"]) -> Float[Tensor, " K"]:
    """Share of the logits' variance over pairs that the waves of frequency 1, 2, ... (p - 1) / 2 carry.

    What all answers of a pair share is taken away first: it changes no probability.
    """
    centred = _centred(logits)
    p = logits.shape[0]
    found = [_on_waves(centred, [k]).square().sum() for k in range(1, (p - 1) // 2 + 1)]
    return torch.stack(found) / centred.square().sum()


def key_frequencies(share: Float[Tensor, " K"], least: float = KEY) -> tuple[int, ...]:
    """Frequencies that carry at least this share of the variance, the largest first; the largest where none does."""
    order = share.argsort(descending=True)
    n = max(1, int((share >= least).sum()))
    return tuple(int(k) + 1 for k in order[:n])


def restricted(logits: Float[Tensor, "p p p"], frequencies: Sequence[int]) -> Float[Tensor, "p p p"]:
    """The mean over pairs and the waves of these frequencies, and nothing else."""
    mean = logits.double().mean((0, 1), keepdim=True)
    return mean + _on_waves(logits.double() - mean, frequencies)


def excluded(logits: Float[Tensor, "p p p"], frequencies: Sequence[int]) -> Float[Tensor, "p p p"]:
    """Everything but the waves of these frequencies."""
    return logits.double() - _on_waves(logits.double(), frequencies)


def loss_on(logits: Float[Tensor, "p p p"], pairs: Bool[Tensor, "p p"] | None = None) -> float:
    """Mean cross-entropy of the sum's logit, over all pairs or those that are marked."""
    p = logits.shape[0]
    answers = (torch.arange(p)[:, None] + torch.arange(p)) % p
    losses = cross_entropy(logits.double().reshape(-1, p), answers.flatten(), reduction="none").view(p, p)
    return float(losses.mean() if pairs is None else losses[pairs].mean())


def table_power(table: Float[Tensor, "p d"]) -> Float[Tensor, " K"]:
    """Share of an embedding table's variance at each frequency: which waves of a number its embedding holds."""
    power = torch.fft.rfft(table.double() - table.double().mean(0), dim=0).abs().square().sum(-1)[1:]
    return power / power.sum()


def _centred(logits: Float[Tensor, "p p p"]) -> Float[Tensor, "p p p"]:
    x = logits.double()
    x = x - x.mean(-1, keepdim=True)
    return x - x.mean((0, 1), keepdim=True)


def _on_waves(x: Float[Tensor, "p p p"], frequencies: Sequence[int]) -> Float[Tensor, "p p p"]:
    """The part of every answer's values over (a, b) that lies along these waves."""
    p = x.shape[0]
    total = (torch.arange(p)[:, None] + torch.arange(p)).flatten().double()
    angles = 2 * math.pi / p * total * torch.tensor(list(frequencies), dtype=total.dtype)[:, None]
    waves = torch.cat([angles.cos(), angles.sin()]) * (2**0.5 / p)  # of length 1 over the p x p pairs
    return (waves.T @ (waves @ x.double().reshape(p * p, -1))).view(x.shape)
