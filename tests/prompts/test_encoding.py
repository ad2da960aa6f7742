"""Prompts as tokens: aligned, answers as single ids, roles that move with BOS; columns with labels."""

from __future__ import annotations

from typing import Any

import pytest
from anatomist.errors import BadPosition, BadPrompts
from anatomist.prompts.encoding import EncodedPrompts, encode
from anatomist.prompts.given import inline_set

from tests.prompts.words_model import PAIRS, Splitter

JOHN = "When John and Mary went to the shops, John gave the bag to"
MARY = "When John and Mary went to the shops, Mary gave the bag to"
PAIR: dict[str, Any] = {
    "clean": JOHN, "corrupted": MARY, "answer": " Mary", "wrong": " John", "roles": {"IO": 3, "S1": 1, "S2": 9},
}  # fmt: skip


def encoded(*prompts: dict[str, Any], bos: bool | None = None, need: Any = ()) -> EncodedPrompts:
    return encode(inline_set(prompts), Splitter(PAIRS), bos=bos, need=need)  # type: ignore[arg-type]


@pytest.mark.hand_worked
def test_a_pair_is_aligned_and_its_first_difference_is_the_second_subject() -> None:
    e = encoded(PAIR, need=("corrupted", "answer", "wrong"))
    assert e.clean.lengths == (14,)
    assert e.first_differences == (9,)
    assert e.roles == {"IO": (3,), "S1": (1,), "S2": (9,)}
    assert e.clean.strings[0][9] == " John"
    assert e.answers == (e.clean.ids[0][3:4],)


@pytest.mark.hand_worked
def test_roles_move_with_bos_and_nothing_else_does() -> None:
    without, with_bos = encoded(PAIR), encoded(PAIR, bos=True)
    assert not without.clean.bos
    assert with_bos.clean.bos
    assert with_bos.roles == {"IO": (4,), "S1": (2,), "S2": (10,)}
    for e in (without, with_bos):
        assert [e.clean.strings[0][e.roles[r][0]] for r in ("IO", "S1", "S2")] == [" Mary", " John", " John"]


def test_roles_from_the_end_do_not_count_bos() -> None:
    e = encoded({"clean": "a b c", "roles": {"X": -1, "Y": -3}}, bos=True)
    assert e.roles == {"X": (3,), "Y": (1,)}


def test_only_roles_that_every_prompt_has_remain() -> None:
    e = encoded({"clean": "a b", "roles": {"X": 0, "Y": 1}}, {"clean": "c d", "roles": {"X": 1}})
    assert e.roles == {"X": (0, 1)}


def test_parts_that_only_some_prompts_have_count_as_absent() -> None:
    e = encoded(PAIR, {"clean": "a b"})
    assert e.corrupted is None
    assert e.answers is None
    assert e.first_differences == (None, None)


def test_a_prompt_without_a_cluster_is_its_own() -> None:
    assert encoded({"clean": "a"}, {"clean": "b", "cluster": "x"}).clusters == ("prompt 0", "x")


def test_an_answer_set_keeps_each_token_once() -> None:
    e = encoded({"clean": "a", "answer": (" x", " y", " x"), "wrong": 17})
    assert e.answers is not None
    assert len(e.answers[0]) == 2
    assert e.wrongs == ((17,),)


def test_rows_and_the_other_side() -> None:
    e = encoded(PAIR, {**PAIR, "clean": MARY, "corrupted": JOHN, "answer": " John", "wrong": " Mary"})
    second = e.rows([1])
    assert second.n == 1
    assert second.clean.strings[0][9] == " Mary"
    assert second.roles["S2"] == (9,)
    swapped = e.swapped()
    assert swapped.corrupted == e.clean
    assert swapped.answers == e.wrongs


def test_an_answer_that_lost_its_space_is_warned_of() -> None:
    e = encoded({"clean": JOHN, "answer": "Mary"})
    assert "no leading space" in e.warnings[0]
    assert encoded(PAIR).warnings == ()
    assert encoded({"clean": 'say "', "answer": "Mary"}).warnings == ()


# Columns


@pytest.mark.hand_worked
def test_columns_carry_their_tokens() -> None:
    e = encoded(PAIR)
    assert e.columns((9, -1, "S2", "last", " shops")) == (
        ("9: John", (9,)), ("13: to", (13,)), ("S2 (9: John)", (9,)), ("last (13: to)", (13,)), ("7: shops", (7,)),
    )  # fmt: skip
    assert [c.label for c in e.columns("all")][:3] == ["0:When", "1: John", "2: and"]


def test_columns_over_templates_show_what_varies() -> None:
    e = encoded(
        {"clean": "a b c", "roles": {"X": 1}}, {"clean": "a q r s", "roles": {"X": 2}},
        {"clean": "a t", "roles": {"X": 0}}, {"clean": "u v", "roles": {"X": 1}},
    )  # fmt: skip
    (column,) = e.columns("X")
    assert column == ("X (0-2: b/ r/a/…)", (1, 2, 0, 1))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("positions", "text"),
    [
        ("all", "'all' positions would mean different words in prompts of different lengths"),
        ((1,), "position 1 would mean different words"),
        ((), "no positions were given"),
        (("last", "last"), "positions named twice: last"),
        (("nowhere",), "has no token 'nowhere'.*Roles of these prompts: X"),
    ],
)
def test_positions_that_mean_nothing_here_are_refused(positions: Any, text: str) -> None:
    e = encoded({"clean": "a b c", "roles": {"X": 1}}, {"clean": "a b", "roles": {"X": 1}})
    with pytest.raises(BadPosition, match=text):
        e.columns(positions)


@pytest.mark.bad_input
def test_a_token_that_occurs_twice_lists_its_places() -> None:
    with pytest.raises(BadPosition, match=r"' John' occurs at positions \[1, 9\].*Roles of these prompts: IO, S1, S2"):
        encoded(PAIR).columns((" John",))


@pytest.mark.bad_input
def test_a_position_outside_says_the_range() -> None:
    with pytest.raises(BadPosition, match=r"position 14 is outside prompt 0's 14 tokens \(0 to 13.*' to' is 13"):
        encoded(PAIR).columns((14,))


# What cannot be used


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"corrupted": MARY.replace("Mary gave", "Mary then gave")},
         r"1 of 1 prompts differ in length. Prompt 0 diverges at position 9: clean \(14\): 'When'.*corrupted \(15\)"),
        ({"answer": " Mary Ann"}, r"`answer` ' Mary Ann' of prompt 0 is 2 tokens \(' Mary' ' Ann'\); it must be"),
        ({"answer": "Mary."}, r"is 2 tokens \('Mary' '\.'\)"),
        ({"wrong": ""}, r"`wrong` '' of prompt 0 is 0 tokens \(none\)"),
        ({"answer": ()}, "`answer` of prompt 0 is an empty set"),
        ({"answer": 100_000}, r"`answer` id 100000 of prompt 0 is outside the vocabulary \(0 to 99999\)"),
        ({"wrong": (" John", " Mary")}, "has ' Mary' in `answer` and in `wrong`"),
        ({"roles": {"S2": 14}}, r"role 'S2' of prompt 0 is at 14, but the prompt has 14 tokens without BOS \(0 to"),
        ({"clean": "", "corrupted": None}, "prompt 0 is empty"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_used_say_why(change: dict[str, Any], text: str) -> None:
    with pytest.raises(BadPrompts, match=text):
        encoded({**PAIR, **change})


@pytest.mark.bad_input
@pytest.mark.parametrize("part", ["corrupted", "answer", "wrong"])
def test_a_needed_part_that_is_absent_is_named(part: str) -> None:
    with pytest.raises(BadPrompts, match=rf"1 of 2 prompts have no `{part}` \(first: prompt 1\)"):
        encoded(PAIR, {**PAIR, part: None}, need=(part,))


@pytest.mark.bad_input
def test_a_single_token_with_its_space_is_pointed_out() -> None:
    model = Splitter(r" Paris|.")
    with pytest.raises(BadPrompts, match="' Paris' with its leading space is a single token"):
        encode(inline_set([{"clean": "It is", "answer": "Paris"}]), model)  # type: ignore[arg-type]


@pytest.mark.bad_input
def test_the_other_side_needs_a_corrupted_side() -> None:
    with pytest.raises(BadPrompts, match="no corrupted side"):
        encoded({"clean": "a"}).swapped()
