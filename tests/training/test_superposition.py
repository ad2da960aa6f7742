"""The geometry of feature vectors, on figures drawn by hand, and the batched loss against one written out."""

from __future__ import annotations

import math

import pytest
import torch
from anatomist.training.superposition import SuperpositionSettings, SuperpositionTask, geometry
from torch import Tensor


def at_degrees(*angles: float, length: float = 1.0) -> Tensor:
    turn = torch.tensor([math.radians(a) for a in angles])
    return length * torch.stack([turn.cos(), turn.sin()])


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("vectors", "figure", "dimensionality"),
    [
        (at_degrees(10, 100), "two orthogonal features", [1, 1]),
        (at_degrees(0, 180), "one antipodal pair", [0.5, 0.5]),
        (at_degrees(30, 120, 210, 300), "two antipodal pairs", [0.5] * 4),
        (at_degrees(*range(5, 365, 72)), "regular pentagon", [0.4] * 5),
        (at_degrees(0, 60), "2 features, no regular figure", [0.8, 0.8]),  # 1 / (1 + 1/4)
        (at_degrees(0, 72, 144, 216, 280), "5 features, no regular figure", None),
    ],
)
def test_the_figure_and_the_dimensionality_of_vectors_drawn_by_hand(
    vectors: Tensor, figure: str, dimensionality: list[float] | None
) -> None:
    found = geometry(vectors)
    assert found.figure == figure
    if dimensionality is not None:
        assert found.dimensionality == pytest.approx(dimensionality, abs=1e-5)


@pytest.mark.hand_worked
def test_a_feature_that_is_not_held_has_no_dimension_and_no_place_in_the_figure() -> None:
    vectors = torch.cat([at_degrees(0, 90), at_degrees(45, length=0.1)], 1)
    found = geometry(vectors)
    assert found.represented == (0, 1)
    assert found.figure == "two orthogonal features"
    assert found.dimensionality[2] == 0
    # the third takes 0.1^2 / 2 of each: 1 / (1 + .005)
    assert found.dimensionality[0] == pytest.approx(1 / 1.005)


@pytest.mark.hand_worked
def test_the_batched_loss_is_the_one_written_out_for_each_start() -> None:
    task = SuperpositionTask(SuperpositionSettings("x", starts=3, sparsities=(0.0, 0.5), importance_decay=0.5))
    weights = {name: torch.randn(x.shape) for name, x in task.fresh().items()}
    x = task.samples(7, 1)
    for g in range(2):
        for k in range(3):
            w, b = weights["W"][g, k], weights["b"][g, k]
            out = (x[g] @ w.T @ w + b).relu()
            error = ((x[g] - out) ** 2 * torch.tensor([1, 0.5, 0.25, 0.125, 0.0625])).sum(-1).mean()
            assert task.losses(weights, x)[g, k] == pytest.approx(float(error), rel=1e-5)


def test_features_are_absent_as_often_as_the_sparsity_says() -> None:
    task = SuperpositionTask(SuperpositionSettings("x", sparsities=(0.0, 0.7, 0.95)))
    absent = (task.samples(20_000, 1) == 0).float().mean((1, 2))
    assert absent.tolist() == pytest.approx([0, 0.7, 0.95], abs=0.01)
