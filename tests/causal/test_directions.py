"""A direction as an argument: of a run, of tokens, of numbers, of a feature; what is refused says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from anatomist.causal.directions import (
    FromFeature,
    FromRun,
    FromTokens,
    FromValues,
    Saved,
    dictionary_named,
    direction_of,
)
from anatomist.dictionaries.protocol import Dictionary
from anatomist.errors import BadArguments, UnknownName, Unsupported
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model
from anatomist.technique import KeptArray

from tests.backends.families import FAMILIES


@dataclass
class Sources:
    """A model and the arrays of one earlier run."""

    model: Model
    arrays: dict[str, torch.Tensor]
    dictionary: Dictionary | None = None

    def saved(self, run: str, name: str) -> Saved:
        if name not in self.arrays:
            raise UnknownName.of(f"array of run {run}", name, self.arrays)
        return KeptArray(self.arrays[name], ("layer", "d_model"), "residual")


@pytest.fixture(scope="module")
def hand() -> Model:
    return induction()


def test_a_row_of_an_earlier_run_is_found_by_its_layer(hand: Model) -> None:
    """Rows stand for the layers that the run's array `layers` names; without it for every layer from 0 on."""
    rows = torch.eye(hand.info.d_model)[:2]
    named = Sources(hand, {"pca": rows, "layers": torch.tensor([4, 7])})
    assert torch.equal(direction_of(named, FromRun(run="r-1", array="pca", layer=7)).vector, rows[1])
    plain = Sources(hand, {"pca": rows})
    assert torch.equal(direction_of(plain, FromRun(run="r-1", array="pca", layer=1)).vector, rows[1])
    with pytest.raises(BadArguments, match=r"layers \[4, 7\]"):
        direction_of(named, FromRun(run="r-1", array="pca", layer=1))
    with pytest.raises(BadArguments, match="must be one of them, not None"):
        direction_of(named, FromRun(run="r-1", array="pca"))
    with pytest.raises(UnknownName, match="Known: pca"):
        direction_of(plain, FromRun(run="r-1", array="logistic", layer=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_the_unembedding_direction_before_the_final_norm_moves_the_tokens_logit(family: str) -> None:
    """With the norm's scale s frozen, adding e v to the residual adds e (v . v) / s to the token's logit less that of
    the other one: v holds the norm's weight (and is centred where the norm centres)."""
    model = wrap_model(FAMILIES[family](), None, name=family)
    found = direction_of(Sources(model, {}), FromTokens(tokens=(5,), minus=(9,))).vector
    norm, w = model.weights.final_norm(), model.weights.unembed((5, 9))
    through = norm.frozen(found[None], found.new_ones(1, 1)) @ w
    assert float(through[0, 0] - through[0, 1]) == pytest.approx(float(found @ found), rel=1e-4)


def test_embeddings_of_tokens_are_what_enters_the_model(hand: Model) -> None:
    found = direction_of(Sources(hand, {}), FromTokens(tokens=("t3",), minus=("t5", "t7"), side="embedding"))
    table = hand.weights.embed()
    assert torch.equal(found.vector, table[3] - (table[5] + table[7]) / 2)
    assert found.name == "embedding of 't3' minus 't5' 't7'"


@pytest.mark.bad_input
def test_what_is_no_direction_says_why(hand: Model) -> None:
    nothing = Sources(hand, {"cube": torch.ones(2, 2, 2), "none": torch.zeros(hand.info.d_model)})
    for ref, match in (
        (FromValues(values=(1.0, 2.0)), "width is"),
        (FromRun(run="r-1", array="none"), "is zero"),
        (FromRun(run="r-1", array="cube"), r"one row of \[layer, d_model\]"),
        (FromTokens(tokens=("t1 t2",)), "exactly one"),
    ):
        with pytest.raises(BadArguments, match=match):
            direction_of(nothing, ref)
    with pytest.raises(Unsupported, match="load_sae"):
        direction_of(nothing, FromFeature(sae="s", feature=1))


def test_directions_of_one_call_come_from_one_dictionary() -> None:
    refs: list[Any] = [FromFeature(sae="a", feature=1), FromValues(values=(1.0,)), None]
    assert dictionary_named(refs) == "a"
    assert dictionary_named(refs[1:]) is None
    with pytest.raises(BadArguments, match="a, b"):
        dictionary_named([*refs, FromFeature(sae="b", feature=0)])
