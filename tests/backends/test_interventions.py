"""What an edit does to a tensor, on numbers small enough to follow."""

from __future__ import annotations

import pytest
import torch
from anatomist.errors import BadArguments, BadPosition, BadSite, EditDidNotFire, NotFinite
from anatomist.model.backends.interventions import (
    Visits,
    apply_edit,
    finite_or_raise,
    logits_positions,
    pad_ids,
    restrict,
)
from anatomist.model.edits import Edit, Rule
from anatomist.model.sites import KINDS, Shape, Site
from anatomist.model.tokens import Tokens
from torch import Tensor

from tests.backends.plain import by_loop

TOKENS = Tokens(((5, 6, 7), (8, 9)), (("a", "b", "c"), ("d", "e")), False)
SHAPE = Shape(n_layers=2, n_heads=2, n_kv_heads=1, d_mlp=4, kinds=KINDS)
SITE = Site("resid_post", 1)
X = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0], [9.0, 10.0], [0.0, 0.0]]])


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("rule", "value", "factor", "at_1"),
    [
        ("set", [1.0, 0.0], 1.0, [1.0, 0.0]),
        ("mean", [1.0, 0.0], 1.0, [1.0, 0.0]),
        ("resample", [1.0, 0.0], 1.0, [1.0, 0.0]),
        ("add", [1.0, 0.0], 2.0, [5.0, 4.0]),  # 3 + 2 * 1
        ("scale", None, 0.5, [1.5, 2.0]),
        ("multiply", [0.0, 2.0], 1.0, [0.0, 8.0]),
        ("interpolate", [1.0, 0.0], 0.25, [2.5, 3.0]),  # .75 * 3 + .25 * 1, .75 * 4
        ("zero", None, 1.0, [0.0, 0.0]),
        ("project_out", [3.0, 4.0], 1.0, [0.0, 0.0]),  # (3, 4) along itself
        ("project_out", [0.0, 7.0], 1.0, [3.0, 0.0]),
    ],
)
def test_each_rule_on_one_place(rule: Rule, value: list[float] | None, factor: float, at_1: list[float]) -> None:
    """Row 0, position 1 holds (3, 4); nothing else may change."""
    tensor = None if value is None else torch.tensor(value)
    edit = Edit(site=SITE, rule=rule, rows=(0,), positions=(1,), value=tensor, factor=factor)
    changed, fired = apply_edit(X, edit, TOKENS)
    expected = X.clone()
    expected[0, 1] = torch.tensor(at_1)
    assert torch.allclose(changed, expected)
    assert fired == 1


def test_padding_is_never_written() -> None:
    changed, fired = apply_edit(X, Edit(site=SITE, rule="set", value=torch.tensor(9.0)), TOKENS)
    assert changed[1, 2].tolist() == [0.0, 0.0]
    assert changed[1, :2].tolist() == [[9.0, 9.0], [9.0, 9.0]]
    assert fired == 5


def test_the_input_is_left_as_it_was() -> None:
    before = X.clone()
    apply_edit(X, Edit(site=SITE, rule="zero"), TOKENS)
    apply_edit(X, Edit(site=SITE, rule="zero", positions=(0,)), TOKENS)
    assert torch.equal(X, before)


LAYOUTS = {
    Site("resid_post", 0): (2, 3, 4), Site("head", 0): (2, 3, 2, 3), Site("head", 0, 1): (2, 3, 2, 3),
    Site("neuron", 0): (2, 3, 4), Site("neuron", 0, 2): (2, 3, 4), Site("pattern", 0): (2, 2, 3, 3),
    Site("pattern", 0, 1): (2, 2, 3, 3), Site("k", 0, 0): (2, 3, 1, 3),
}  # fmt: skip
WHERE = [(None, None), ((1,), None), (None, (0, 1)), ((1, 0), ((1,), (0, 2))), (None, ((2,), (0, 1)))]


@pytest.mark.parametrize("rule", ["set", "add", "scale", "multiply", "interpolate", "zero", "project_out"])
@pytest.mark.parametrize("site", LAYOUTS, ids=str)
def test_every_layout_and_selection_as_a_loop_over_places(site: Site, rule: Rule) -> None:
    """The loop is written apart from the library (`plain.by_loop`); one value of the feature's shape for all places,
    and one of full shape where each place has its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*LAYOUTS[site], generator=generator)
    feature = {"pattern": (2, 3), "head": (2, 3), "k": (1, 3)}.get(site.kind, (4,))
    feature = feature[1:] if site.index is not None else feature
    for rows, positions in WHERE:
        n = 2 if rows is None else len(rows)
        width = 3 if positions is None else max(len(p) if isinstance(p, tuple) else len(positions) for p in positions)
        for shape in [feature] if rule == "project_out" else [feature, (n, width, *feature), (n, 1, *feature)]:
            value = torch.randn(shape, generator=generator)
            edit = Edit(site=site, rule=rule, rows=rows, positions=positions, value=value, factor=0.3)  # type: ignore[arg-type]
            assert torch.allclose(apply_edit(x, edit, TOKENS)[0], by_loop(x, edit, TOKENS), atol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(2, 5, 2), torch.ones(1, 2, 3, 2)])
def test_a_value_that_does_not_fit_is_an_error_with_both_shapes(value: Tensor) -> None:
    with pytest.raises(BadArguments, match=r"has shape \[.*\]; the shape must be one that broadcasts.*\[2, 3, 2\]"):
        apply_edit(X, Edit(site=SITE, rule="set", value=value), TOKENS)


@pytest.mark.bad_input
def test_a_direction_of_length_zero_or_wrong_shape_is_an_error() -> None:
    with pytest.raises(BadArguments, match="direction of length 0"):
        apply_edit(X, Edit(site=SITE, rule="project_out", value=torch.zeros(2)), TOKENS)
    with pytest.raises(BadArguments, match="exactly that of the feature"):
        apply_edit(X, Edit(site=SITE, rule="project_out", value=torch.ones(1)), TOKENS)


@pytest.mark.hand_worked
def test_an_edit_for_some_rows_is_the_same_edit_on_those_rows() -> None:
    """Rows 0, 1, 2 hold 1, 2, 3; a pass over rows 2 and 0 only."""
    tokens = Tokens(((1,), (2,), (3,)), (("a",), ("b",), ("c",)), False)
    edit = Edit(site=SITE, rule="set", value=torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    kept = restrict(edit, [2, 0])
    assert kept is not None
    changed, fired = apply_edit(torch.zeros(2, 1, 1), kept, tokens.rows([2, 0]))
    assert changed.flatten().tolist() == [3.0, 1.0]
    assert fired == 2
    named = Edit(
        site=SITE, rule="set", rows=(2, 1), positions=((0,), (0,)), value=torch.tensor([30.0, 20.0])[:, None, None]
    )
    only = restrict(named, [0, 1])
    assert only is not None
    assert only.rows == (1,)
    assert apply_edit(torch.zeros(2, 1, 1), only, tokens.rows([0, 1]))[0].flatten().tolist() == [0.0, 20.0]
    assert restrict(named, [0]) is None


@pytest.mark.bad_input
def test_an_edit_whose_place_is_never_computed_is_an_error() -> None:
    visits = Visits(TOKENS, [], [Edit(site=SITE, rule="zero")], SHAPE)
    visits.at(Site("resid_post", 0), X)
    assert not visits.done
    with pytest.raises(EditDidNotFire, match=r"'zero blocks\.1\.resid_post at all positions' wrote nothing"):
        visits.result()


@pytest.mark.bad_input
def test_a_read_whose_place_is_never_computed_is_an_error() -> None:
    with pytest.raises(BadSite, match=r"blocks\.1\.resid_post was never computed"):
        Visits(TOKENS, [SITE], [], SHAPE).result()


@pytest.mark.bad_input
def test_numbers_that_are_not_finite_are_named_with_their_place() -> None:
    bad = X.clone()
    bad[1, 0, 1] = float("nan")
    with pytest.raises(
        NotFinite, match=r"logits holds 1 values that are NaN or infinite of 12 \(first at index \[1, 0, 1\]"
    ):
        finite_or_raise("logits", bad)
    finite_or_raise("scores", torch.tensor([0.0, float("-inf")]), masked=True)
    finite_or_raise("big", torch.full((4,), 3e38))  # finite, though their sum is not


def test_reads_come_in_the_order_asked_for_and_after_the_edits() -> None:
    head = Site("head", 0, 1)
    visits = Visits(TOKENS, [head, Site("head", 0)], [Edit(site=head, rule="zero")], SHAPE)
    visits.at(Site("head", 0), torch.ones(2, 3, 2, 3))
    reads, fired = visits.result()
    assert list(reads) == [head, Site("head", 0)]
    assert float(reads[head][0].abs().max()) == 0
    assert float(reads[Site("head", 0)][:, :, 0].min()) == 1
    assert fired == (5,)
    assert visits.done


@pytest.mark.hand_worked
def test_rows_are_padded_on_the_right() -> None:
    assert pad_ids(TOKENS, 0).tolist() == [[5, 6, 7], [8, 9, 0]]


@pytest.mark.bad_input
def test_one_logit_position_is_needed_for_every_row() -> None:
    assert logits_positions(TOKENS, [2, 1]) == (2, 1)
    with pytest.raises(BadPosition, match="gives 1 positions for 2 prompts"):
        logits_positions(TOKENS, [0])
    with pytest.raises(BadPosition, match="position 2 is outside prompt 1's 2 tokens"):
        logits_positions(TOKENS, [0, 2])
