"""Tokens and positions."""

from __future__ import annotations

import pytest
from anatomist.errors import BadPosition, BadPrompts
from anatomist.model.tokens import Tokens, first_difference

TOKENS = Tokens(((5, 6, 7, 6), (8, 9)), (("When", " John", " saw", " John"), ("A", " b")), False)


def test_rows_keep_their_own_lengths() -> None:
    assert TOKENS.lengths == (4, 2)
    assert TOKENS.width == 4
    assert TOKENS.last == (3, 1)
    assert TOKENS.rows([1]).ids == ((8, 9),)


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("spec", "position"), [(0, 0), (-1, 3), (-4, 0), ("last", 3), ("When", 0), ("saw", 2), (" saw", 2)]
)
def test_a_position_is_found_by_number_word_or_text(spec: int | str, position: int) -> None:
    """Row 0 is 'When John saw John': a text without its leading space is found too."""
    assert TOKENS.find(0, spec) == position


@pytest.mark.bad_input
def test_a_token_that_occurs_twice_is_an_error_that_lists_the_places() -> None:
    with pytest.raises(BadPosition, match=r"'John' occurs at positions \[1, 3\] of prompt 0.*1:' John'"):
        TOKENS.find(0, "John")


@pytest.mark.bad_input
@pytest.mark.parametrize("spec", [4, -5])
def test_a_position_outside_the_row_is_an_error_with_its_last_token(spec: int) -> None:
    with pytest.raises(BadPosition, match=rf"position {spec} is outside prompt 0's 4 tokens \(0 to 3.*' John' is 3"):
        TOKENS.find(0, spec)


@pytest.mark.bad_input
def test_a_token_that_is_not_there_is_an_error_that_shows_the_tokens() -> None:
    with pytest.raises(BadPosition, match=r"prompt 1 has no token 'x'; its tokens are 0:'A', 1:' b'"):
        TOKENS.find(1, "x")


@pytest.mark.bad_input
def test_no_prompts_and_empty_prompts_are_errors() -> None:
    with pytest.raises(BadPrompts, match="there are no prompts"):
        Tokens((), (), False)
    with pytest.raises(BadPrompts, match="prompt 1 is empty"):
        Tokens(((1,), ()), (("a",), ()), False)
    with pytest.raises(BadPrompts, match="2 ids but 1 token strings"):
        Tokens(((1, 2),), (("a",),), False)


@pytest.mark.hand_worked
@pytest.mark.parametrize(("a", "b", "where"), [((1, 2, 3), (1, 5, 3), 1), ((1, 2), (1, 2, 3), 2), ((4,), (5,), 0)])
def test_the_first_difference_of_two_rows(a: tuple[int, ...], b: tuple[int, ...], where: int) -> None:
    assert first_difference(a, b) == where


def test_a_label_names_the_position_and_its_token() -> None:
    assert TOKENS.label(0, 1) == "1: John"
