"""Edits as data: what is refused before anything runs, and which places one writes."""

from __future__ import annotations

import pytest
import torch
from anatomist.errors import BadArguments, BadPosition, BadSite
from anatomist.model.edits import NEEDS_VALUE, Edit, check_edit, selected
from anatomist.model.sites import KINDS, Shape, Site
from anatomist.model.tokens import Tokens

SHAPE = Shape(n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=8, kinds=KINDS)
TOKENS = Tokens(((5, 6, 7), (8, 9)), (("a", "b", "c"), ("d", "e")), False)
SITE = Site("resid_post", 1)


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("rows", "positions", "places"),
    [
        (None, None, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]),
        ((1,), None, [(1, 0), (1, 1)]),
        (None, (1,), [(0, 1), (1, 1)]),
        (None, ((2,), (0, 1)), [(0, 2), (1, 0), (1, 1)]),
        ((1, 0), ((0,), (2,)), [(1, 0), (0, 2)]),
    ],
)
def test_the_places_an_edit_writes(rows, positions, places) -> None:  # type: ignore[no-untyped-def]
    edit = check_edit(Edit(site=SITE, rule="zero", rows=rows, positions=positions), SHAPE, TOKENS)
    assert selected(edit, TOKENS) == places


@pytest.mark.bad_input
@pytest.mark.parametrize("rule", sorted(NEEDS_VALUE))
def test_a_rule_that_needs_a_value_is_refused_without_one(rule) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadArguments, match=f"{rule} blocks.1.resid_post.*needs a value"):
        check_edit(Edit(site=SITE, rule=rule), SHAPE, TOKENS)
    check_edit(Edit(site=SITE, rule=rule, value=torch.ones(1)), SHAPE, TOKENS)


@pytest.mark.bad_input
def test_places_outside_the_model_or_the_prompt_are_refused() -> None:
    with pytest.raises(BadSite, match="layers are 0 to 1"):
        check_edit(Edit(site=Site("resid_post", 2), rule="zero"), SHAPE, TOKENS)
    with pytest.raises(BadPosition, match="position 2 is outside prompt 1's 2 tokens"):
        check_edit(Edit(site=SITE, rule="zero", positions=(2,)), SHAPE, TOKENS)
    with pytest.raises(BadPosition, match="row 5 does not exist"):
        check_edit(Edit(site=SITE, rule="zero", rows=(5,)), SHAPE, TOKENS)


@pytest.mark.bad_input
@pytest.mark.parametrize("empty", [{"positions": ()}, {"rows": ()}])
def test_an_empty_selection_is_refused(empty: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(BadArguments, match="selects nothing"):
        check_edit(Edit(site=SITE, rule="zero", **empty), SHAPE, TOKENS)  # type: ignore[arg-type]


def test_an_edit_prints_as_what_it_does() -> None:
    assert str(Edit(site=Site("head", 1, 3), rule="zero")) == "zero blocks.1.head.3 at all positions"
    assert str(Edit(site=SITE, rule="scale", positions=(2,))) == "scale blocks.1.resid_post at positions (2,)"
