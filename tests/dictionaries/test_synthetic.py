"""Known features: they are found where the settings are right, and a good reconstruction without them is called bad."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from anatomist.dictionaries.synthetic import SyntheticRow, World, matched, synthetic_row, verdict
from anatomist.dictionaries.training.recipe import Recipe
from anatomist.errors import BadArguments
from anatomist.host import Host
from anatomist.operations.synthetic_sae_benchmark import SyntheticBenchmark

EASY, SQUEEZED = World(16, 16, 0.1), World(32, 16, 0.04)


def recipe(features: int, penalty: float, steps: int, seed: int = 0) -> Recipe:
    return Recipe(
        architecture="standard", d_dict=features, penalty=penalty, normalise=False, batch=512, steps=steps, lr=3e-3,
        seed=seed,
    )  # fmt: skip


def row(mcc: float, ev: float = 0.97, l0: float = 1.0) -> SyntheticRow:
    return SyntheticRow(
        seed=0, mcc=mcc, random_mcc=0.5, explained_variance=ev, l0=l0, true_l0=1.0, dead=0, unique=1.0
    )  # fmt: skip


@pytest.mark.hand_worked
def test_the_match_is_one_to_one() -> None:
    # Two directions found, both nearest to the first true one: only one may have it; the other is at right angles.
    true = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert matched(true.flip(0), true) == pytest.approx(1.0)
    assert matched(-true, true) == pytest.approx(1.0)
    assert matched(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), true) == pytest.approx(0.5)


@pytest.mark.positive_control
def test_sixteen_features_in_sixteen_dimensions_are_found() -> None:
    found = synthetic_row(EASY, recipe(16, 0.15, 1000))
    assert found.mcc >= 0.99
    assert found.random_mcc < 0.6
    assert verdict((found,)).startswith("GOOD")


@pytest.mark.negative_control
def test_a_penalty_too_small_explains_the_variance_and_is_called_bad() -> None:
    found = synthetic_row(SQUEEZED, recipe(32, 0.02, 600))
    assert found.explained_variance > 0.95
    assert found.mcc < 0.8
    words = verdict((found,))
    assert words.startswith("BAD")
    assert "says nothing of the features" in words
    assert "raise the penalty" in words


@pytest.mark.slow
@pytest.mark.positive_control
def test_thirty_two_features_in_sixteen_dimensions_are_found_on_three_seeds(tmp_path: Path) -> None:
    found = Host(tmp_path).call("synthetic_sae_benchmark", {}).result
    assert isinstance(found, SyntheticBenchmark)
    assert len(found.rows) == 3
    assert min(row.mcc for row in found.rows) >= 0.98
    assert max(row.random_mcc for row in found.rows) < 0.6
    assert found.verdict.startswith("GOOD")
    bad = Host(tmp_path).call("synthetic_sae_benchmark", {"penalty": 0.02}).result
    assert isinstance(bad, SyntheticBenchmark)
    assert bad.verdict.startswith("BAD")


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ((row(0.99), row(0.97)), "GOOD"),
        ((row(0.99), row(0.90)), "PARTLY"),  # one seed missed some: 0.945 - .5 is 89% of the way
        ((row(0.55),), "BAD"),
        ((row(0.52, ev=0.3),), "BAD: no nearer"),
    ],
)
def test_the_verdict_follows_recovery_and_never_reconstruction(rows: tuple[SyntheticRow, ...], word: str) -> None:
    assert verdict(rows).startswith(word)


@pytest.mark.bad_input
def test_settings_that_do_not_agree_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadArguments, match="k is 50, but there are 32 features"):
        Host(tmp_path).call("synthetic_sae_benchmark", {"architecture": "topk", "k": 50})
