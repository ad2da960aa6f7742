"""Features that come back: the same, turned round, in another order, and by chance."""

from __future__ import annotations

import pytest
import torch
from anatomist.dictionaries.agreement import agreement, nearest

from tests.dictionaries.words import Both

SITE = "blocks.1.resid_post"


def with_directions(rows: torch.Tensor) -> Both:
    found = Both(rows.shape[1], SITE, rows)
    found.directions = rows
    return found


def drawn(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.hand_worked
def test_the_nearest_direction_counts_with_its_sign() -> None:
    # (3, 4) against (1, 0) and (0, -1): cosines .6 and -.8; the larger is .6, for a feature turned round is another.
    assert nearest(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])).tolist() == pytest.approx([0.6])


@pytest.mark.positive_control
def test_order_and_length_do_not_matter_and_half_of_the_features_is_half() -> None:
    rows = drawn(40, 64, 0)
    same = agreement(with_directions(rows), with_directions(3 * rows.flip(0)))
    assert (same.found_again, same.median_cosine) == (1.0, pytest.approx(1.0, abs=1e-5))
    half = agreement(with_directions(rows), with_directions(torch.cat([rows[:20], drawn(20, 64, 1)])))
    assert half.found_again == 0.5


@pytest.mark.negative_control
def test_random_directions_are_not_found_again() -> None:
    # The largest of 200 cosines in 64 dimensions is near sqrt(2 ln 200 / 64) = .41.
    found = agreement(with_directions(drawn(200, 64, 0)), with_directions(drawn(200, 64, 1)))
    assert found.found_again == 0.0
    assert found.median_cosine == pytest.approx(found.by_chance, abs=0.03)
    assert 0.25 < found.by_chance < 0.45
