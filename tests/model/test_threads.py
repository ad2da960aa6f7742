"""How many threads are used: the setting, the argument, and the measured choice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from anatomist.errors import BadArguments
from anatomist.model import threads


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.delenv(threads.SETTING, raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.hand_worked
def test_candidates_double_up_to_the_most() -> None:
    assert list(threads.candidates(1)) == [1]
    assert list(threads.candidates(2)) == [1, 2]
    assert list(threads.candidates(6)) == [1, 2, 4, 6]
    assert list(threads.candidates(8)) == [1, 2, 4, 8]


@pytest.mark.hand_worked
def test_more_threads_are_taken_only_if_they_are_clearly_faster() -> None:
    # 2 threads save half, 4 threads only 5 % of that: below the 10 % that more threads must bring
    assert threads.fastest({1: 1.0, 2: 0.5, 4: 0.475}) == 2
    # a busy machine: two threads wait for each other
    assert threads.fastest({1: 1.0, 2: 3.0}) == 1
    assert threads.fastest({1: 1.0, 2: 0.95, 4: 0.3}) == 4


def test_the_argument_comes_before_the_setting_and_the_setting_before_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(threads.SETTING, "1")
    assert threads.use_threads() == torch.get_num_threads() == 1
    assert threads.use_threads(2) == torch.get_num_threads() == 2


def test_the_measured_choice_is_one_of_the_candidates_and_kept() -> None:
    most = threads.available()
    first = threads.use_threads()
    assert first in threads.candidates(most)
    assert threads.use_threads() == first


def test_a_choice_of_fewer_threads_than_there_are_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy moment at the first call would halve the speed of a whole session."""
    answers = iter([1, 2])
    monkeypatch.setattr(threads, "measured", lambda most: next(answers))
    monkeypatch.setattr(threads, "available", lambda: 2)
    assert threads.use_threads() == 1
    assert threads.reconsider_threads() == 1  # not at once
    monkeypatch.setattr(threads, "AGAIN", -1.0)
    assert threads.reconsider_threads() == torch.get_num_threads() == 2
    assert threads.reconsider_threads() == 2  # all there are: a third measurement would find no answer


def test_what_was_told_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "AGAIN", -1.0)
    monkeypatch.setattr(threads, "measured", lambda most: 1)
    monkeypatch.setattr(threads, "available", lambda: 4)
    assert threads.use_threads(1) == 1
    assert threads.reconsider_threads() == threads.use_threads() == 1
    monkeypatch.setattr(threads, "_chosen", None)
    assert threads.use_threads() == 1
    torch.set_num_threads(2)  # by the caller, past us
    assert threads.reconsider_threads() == 2


def test_measuring_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    assert threads.measured(2, rounds=1) in (1, 2)
    assert torch.get_num_threads() == before


@pytest.mark.bad_input
@pytest.mark.parametrize("value", ["0", "-2", "many", "1.5"])
def test_a_setting_that_is_no_number_of_threads_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.SETTING, value)
    with pytest.raises(BadArguments, match=f"{threads.SETTING}='{value}'.*at least 1"):
        threads.use_threads()


@pytest.mark.bad_input
def test_an_argument_below_one_is_refused() -> None:
    with pytest.raises(BadArguments, match="threads=0"):
        threads.use_threads(0)
