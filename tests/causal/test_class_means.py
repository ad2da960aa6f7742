"""Directions between class means: worked by hand, and what they must be whatever the data."""

from __future__ import annotations

import pytest
import torch
from anatomist.causal.class_means import class_basis
from anatomist.causal.subspaces import Ends, cosines
from torch import Tensor

ONE, TWO, THREE, FOUR = (1,), (2,), (3,), (4,)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.hand_worked
def test_three_classes_span_a_plane_of_which_the_widest_direction_comes_first() -> None:
    """Classes at (0, 0, 0), (6, 0, 0) and (0, 2, 0); each pair of two once, so that every class has two runs. Halves of
    the differences: 1 -> 2 (3, 0, 0), 2 -> 3 (-3, 1, 0), 3 -> 1 (0, -1, 0). Sums by class: one (-3, -1, 0), two
    (6, -1, 0), three (-3, 2, 0). S = ((54, -9), (-9, 6)) / 2: trace 30, determinant 60.75, largest eigenvalue
    15 + sqrt(225 - 60.75) = 27.816, its direction (4.5, 27 - 27.816) or (1, -.1814): (.984, -.178)."""
    at = {ONE: torch.zeros(3), TWO: torch.tensor([6.0, 0, 0]), THREE: torch.tensor([0, 2.0, 0])}
    kept, wanted = (ONE, TWO, THREE), (TWO, THREE, ONE)
    ends = Ends(torch.stack([at[c] for c in kept]), torch.stack([at[c] for c in wanted]))
    found = class_basis(ends, kept, wanted, 2)
    assert found.classes == 3
    assert found.from_means == 2
    first = found.basis[0] * found.basis[0, 0].sign()
    assert first.tolist() == pytest.approx([0.98393, -0.17849, 0], abs=1e-4)
    assert found.basis[:, 2].abs().max() < 1e-6


@pytest.mark.hand_worked
def test_with_two_classes_further_dimensions_come_from_the_paired_differences() -> None:
    """Differences (4, 2, 0), (4, -2, 0), (4, 0, 1), (4, 0, -1): their mean is along the first feature, and of what is
    left the second is longer than the third."""
    apart = torch.tensor([[4.0, 2, 0], [4, -2, 0], [4, 0, 1], [4, 0, -1]])
    base = drawn(4, 3)
    found = class_basis(Ends(base, base + apart), (ONE,) * 4, (TWO,) * 4, 2)
    assert (found.classes, found.from_means) == (2, 1)
    assert torch.allclose(found.basis.abs(), torch.eye(3)[:2], atol=1e-5)
    assert len(class_basis(Ends(base, base + apart), (ONE,) * 4, (TWO,) * 4, 3).basis) == 3


@pytest.mark.hand_worked
def test_where_the_class_means_coincide_the_paired_differences_remain() -> None:
    """(3, 0) and (-3, 0) from the one class to the other: no mean difference, and one direction to fill with."""
    base = torch.zeros(2, 2)
    found = class_basis(Ends(base, torch.tensor([[3.0, 0], [-3.0, 0]])), (ONE,) * 2, (TWO,) * 2, 2)
    assert found.from_means == 0
    assert torch.allclose(found.basis.abs(), torch.tensor([[1.0, 0.0]]))  # the pairs differ in one dimension alone


@pytest.mark.parametrize("swapped", [0, 7, 20])
def test_of_two_classes_the_first_direction_is_the_difference_of_their_means(swapped: int) -> None:
    """Over all runs, whichever side of its pair a class is on."""
    base, source = drawn(20, 9) + 1, drawn(20, 9, seed=1)
    kept = (TWO,) * swapped + (ONE,) * (20 - swapped)
    wanted = (ONE,) * swapped + (TWO,) * (20 - swapped)
    runs, labels = torch.cat([base, source]), [*kept, *wanted]
    one, two = (runs[[i for i, label in enumerate(labels) if label == c]].mean(0) for c in (ONE, TWO))
    known = (two - one) / (two - one).norm()
    (found,) = class_basis(Ends(base, source), kept, wanted, 1).basis
    assert abs(float(found @ known)) == pytest.approx(1, abs=1e-5)
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)


def test_of_several_classes_the_directions_are_the_principal_components_of_their_means() -> None:
    """Every ordered pair of four classes once, each pair with a large part of its own that both its runs share."""
    centres, labels = drawn(4, 9), (ONE, TWO, THREE, FOUR)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    shared = 10 * drawn(len(pairs), 9, seed=1)
    ends = Ends(*(centres[[p[side] for p in pairs]] + shared for side in (0, 1)))
    kept, wanted = (tuple(labels[p[side]] for p in pairs) for side in (0, 1))
    known = torch.linalg.svd(centres - centres.mean(0), full_matrices=False)[2][:3]
    found = class_basis(ends, kept, wanted, 3)
    assert found.from_means == 3
    assert (found.basis * known).sum(1).abs().tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_what_both_runs_of_a_pair_share_does_not_count() -> None:
    """Two pairs of classes far apart, such as two verbs: what lies between the verbs is no difference within a pair."""
    number, verb = torch.eye(5)[0], 50 * torch.eye(5)[1]
    centres = {ONE: -number, TWO: number, THREE: verb - number, FOUR: verb + number}
    kept, wanted = (ONE, THREE) * 3, (TWO, FOUR) * 3
    noise = 0.01 * drawn(2, 6, 5)
    ends = Ends(*(torch.stack([centres[c] for c in side]) + n for side, n in zip((kept, wanted), noise, strict=True)))
    found = class_basis(ends, kept, wanted, 1)
    assert abs(float(found.basis[0, 0])) > 0.999


def test_answers_of_several_tokens_are_one_class_in_whatever_order() -> None:
    base, source = drawn(4, 3), drawn(4, 3, seed=1)
    found = class_basis(Ends(base, source), ((1, 5), (5, 1)) * 2, (TWO,) * 4, 1)
    assert found.classes == 2


def test_the_basis_is_orthonormal_and_of_half_precision_widened() -> None:
    ends = Ends(drawn(30, 12).bfloat16(), drawn(30, 12, seed=1).bfloat16())
    found = class_basis(ends, (ONE, TWO, THREE) * 10, (TWO, THREE, ONE) * 10, 6)
    assert found.from_means == 2
    assert found.basis.dtype == torch.float32
    assert torch.allclose(found.basis @ found.basis.T, torch.eye(6), atol=1e-5)
    fewer = class_basis(ends, (ONE, TWO, THREE) * 10, (TWO, THREE, ONE) * 10, 2)
    assert min(cosines(found.basis[:2], fewer.basis)) > 0.9999
