"""Two results side by side."""

from __future__ import annotations

import math

import pytest
from anatomist.comparing import changed, compare_numbers, numbers
from anatomist.result import Frozen
from pydantic import JsonValue


def record(**more: JsonValue) -> dict[str, JsonValue]:
    return {"about": {"seconds": 1.0}, "effect": {"mean": 2.0, "low": 1.5}, "values": [1, None, 3.0], **more}


@pytest.mark.hand_worked
def test_numbers_are_found_by_path_without_timings_and_truth_values() -> None:
    found = dict(numbers(record(seconds=9, cost={"bytes": 4}, passed=True, name="x")))
    assert found == {"effect.mean": 2.0, "effect.low": 1.5, "values.0": 1.0, "values.2": 3.0}


def test_the_same_numbers_are_the_same() -> None:
    compared = compare_numbers(record(), record(about={"seconds": 7.0}), absolute=0.0, relative=0.0)
    assert (compared.same, compared.compared, compared.largest) == (True, 4, 0.0)


@pytest.mark.hand_worked
def test_a_difference_counts_beyond_the_sum_of_both_tolerances() -> None:
    """2.0 against 2.03: .03 is within .01 + .01 x 2.03 = .0303 and beyond .009 + .01 x 2.03 = .0293."""
    other = record(effect={"mean": 2.03, "low": 1.5})
    assert compare_numbers(record(), other, absolute=0.01, relative=0.01).same
    compared = compare_numbers(record(), other, absolute=0.009, relative=0.01)
    assert (compared.same, compared.beyond, [g.where for g in compared.gaps]) == (False, 1, ["effect.mean"])
    assert compared.largest == pytest.approx(0.03)


@pytest.mark.negative_control
def test_a_number_that_only_one_has_makes_them_differ() -> None:
    compared = compare_numbers(record(), record(extra=1), absolute=1.0, relative=1.0)
    assert (compared.same, compared.only_one) == (False, 1)


@pytest.mark.negative_control
def test_results_without_numbers_are_not_called_the_same() -> None:
    assert not compare_numbers({"a": "x"}, {"a": "x"}, absolute=0.0, relative=0.0).same


def test_the_largest_gaps_come_first_and_twenty_at_most() -> None:
    first: dict[str, JsonValue] = {f"n{i}": 0.0 for i in range(30)}
    second: dict[str, JsonValue] = {f"n{i}": float(i) for i in range(30)}
    compared = compare_numbers(first, second, absolute=0.0, relative=0.0)
    assert [g.where for g in compared.gaps] == [f"n{i}" for i in range(29, 9, -1)]
    assert compared.beyond == 29


def test_numbers_that_are_not_finite_are_left_out() -> None:
    assert list(numbers({"a": math.nan, "b": math.inf, "c": 1.0})) == [("c", 1.0)]


def test_leaves_that_differ_are_named_by_path_and_cut_to_length() -> None:
    found = list(changed({"a": {"b": 1, "c": 2}, "d": "x" * 300}, {"a": {"b": 1, "c": 3}}))
    assert [c.where for c in found] == ["a.c", "d"]
    assert isinstance(found[0], Frozen)
    assert (found[0].first, found[0].second) == ("2", "3")
    assert len(found[1].first) == 203
