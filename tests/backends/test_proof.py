"""A place that is not what it is called is not offered: each identity of `proof.py` notices its own kind of lie."""

from __future__ import annotations

import pytest
from anatomist.model.backends.local import LocalModel
from anatomist.model.backends.proof import proven_kinds
from anatomist.model.backends.toy_circuits import TOYS
from anatomist.model.sites import KINDS, SiteKind

from tests.backends.families import FAMILIES


@pytest.mark.positive_control
@pytest.mark.parametrize("name", TOYS)
def test_a_true_model_keeps_all_its_places(name: str) -> None:
    model = TOYS[name]()
    assert proven_kinds(model) == model.info.sites


@pytest.mark.negative_control
@pytest.mark.parametrize(
    ("liar", "shown", "refuted"),
    [
        ("attn_out", "mlp_out", {"attn_out", "mlp_out"}),  # the parts no longer add up, whichever of them lies
        ("pattern", "scores", {"pattern", "scores", "head", "v"}),  # what is judged by the pattern falls with it
        ("head", "q", {"head", "v"}),
        ("k", "v", {"q", "k"}),
    ],
)
def test_a_place_that_shows_another_value_is_refuted(liar: SiteKind, shown: SiteKind, refuted: set[str]) -> None:
    """One layer of three shows something else under that name."""
    model = LocalModel(FAMILIES["qwen3"](), None, name="liar")
    assert set(model.info.sites) == set(KINDS)
    model._places[1][liar] = model._places[1][shown]
    assert refuted <= set(KINDS) - set(proven_kinds(model))


@pytest.mark.negative_control
def test_a_place_that_is_never_computed_is_refuted() -> None:
    model = LocalModel(FAMILIES["llama"](), None, name="silent")
    model._places[2]["neuron"] = model._places[2]["neuron"]._replace(hook=model._bridge.blocks[2].attn.hook_result)
    assert set(KINDS) - set(proven_kinds(model)) == {"neuron"}
