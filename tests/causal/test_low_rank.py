"""Thin factors give what the matrix written out would: entries, extremes, ranks, eigenvalues, singular values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anatomist.causal import low_rank
from anatomist.causal.low_rank import Factors, eigenvalues, extremes, own_ranks, positive_share, singular_values


def factors(n: int = 40, m: int = 30, r: int = 3, seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(n, r, generator=generator), torch.randn(m, r, generator=generator))


@pytest.mark.parametrize("rows_at_once", [1, 7, 100])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_extremes_are_those_of_the_whole_matrix(rows_at_once: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules out losing entries at the seams of pieces, and several extremes of one row."""
    m = factors()
    monkeypatch.setattr(low_rank, "CHUNK_BYTES", rows_at_once * 30 * 4)
    whole = m.left @ m.right.T
    high, low = extremes(m, k)
    assert [e.value for e in high] == pytest.approx(whole.flatten().sort(descending=True).values[:k].tolist())
    assert [e.value for e in low] == pytest.approx(whole.flatten().sort().values[:k].tolist())
    for e in (*high, *low):
        assert float(whole[e.row, e.column]) == pytest.approx(e.value)


def test_several_extremes_may_stand_in_one_row() -> None:
    left, right = torch.tensor([[0.0], [10.0], [1.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    high, _ = extremes(Factors(left, right), 3)
    assert [(e.row, e.column) for e in high] == [(1, 2), (1, 1), (1, 0)]


def test_progress_ends_at_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "CHUNK_BYTES", 7 * 30 * 4)
    seen: list[tuple[int, int]] = []
    extremes(factors(), 1, lambda done, total: seen.append((done, total)))
    assert seen[0] == (7, 40)
    assert seen[-1] == (40, 40)


def test_own_ranks_count_the_other_entries_that_are_as_large() -> None:
    m = factors(n=30)
    whole = m.left @ m.right.T
    expected = [int((whole[i] >= whole[i, i]).sum()) - 1 for i in (4, 0, 29)]
    assert own_ranks(m, [4, 0, 29]) == expected
    assert own_ranks(Factors(0 * m.left, m.right), [2]) == [29]  # a row of zeros: no token stands out


def test_eigenvalues_of_the_core_are_those_of_the_matrix() -> None:
    m = factors(n=30)
    whole = np.linalg.eigvals((m.left @ m.right.T).double().numpy())
    expected = whole[np.argsort(-np.abs(whole))][:3]
    found = eigenvalues(m.core())
    assert np.sort_complex(found) == pytest.approx(np.sort_complex(expected), abs=1e-5)


def test_the_positive_share_of_a_copy_is_one_of_a_rotation_nought() -> None:
    """A rotation by 90 degrees has eigenvalues +-i: magnitudes 1, sum 0. diag(3, -1): (3 - 1) / (3 + 1)."""
    assert positive_share(eigenvalues(torch.eye(4))) == pytest.approx(1)
    assert positive_share(eigenvalues(-2 * torch.eye(4))) == pytest.approx(-1)
    assert positive_share(eigenvalues(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))) == pytest.approx(0)
    assert positive_share(eigenvalues(torch.diag(torch.tensor([3.0, -1.0])))) == pytest.approx(0.5)
    assert positive_share(eigenvalues(torch.zeros(3, 3))) == 0


def test_singular_values_are_those_of_the_matrix() -> None:
    m = factors()
    expected = torch.linalg.svdvals(m.left @ m.right.T)[:3]
    assert singular_values(m) == pytest.approx(expected.numpy(), rel=1e-4)
