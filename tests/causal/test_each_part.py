"""Each part of a set against other parts in its place."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest
from anatomist.causal.each_part import MOST_TESTED, PartTest, SetChanges, parts_test

Effect = Callable[[frozenset[int]], float]


class Network:
    """Parts whose joint effect is written down; counts what was measured."""

    def __init__(self, effect: Effect, places: int = 8) -> None:
        self.effect, self.places, self.asked = effect, range(places), 0
        self.changes = SetChanges(self.measure)

    def measure(self, sets: Sequence[tuple[int, ...]]) -> np.ndarray:
        self.asked += len(sets)
        return np.array([[self.effect(frozenset(one)) for one in sets]])

    def test(self, *claimed: int) -> dict[int, PartTest]:
        """Against every other part."""
        others = [[j for j in self.places if j not in claimed]] * len(claimed)
        return {int(t.part): t for t in parts_test(claimed, others, self.changes, 0, str)}


@pytest.mark.hand_worked
def test_parts_in_sequence_show_alone() -> None:
    """Without 1 or without 6 all of 10 is lost, so that neither adds to the other. Each carries 10 alone, the six
    others nothing, alone or beside it: p = 1/7. Rules out a test of what is added only (p = 1)."""
    found = Network(lambda one: -10.0 if one & {1, 6} else 0.0).test(1, 6)
    assert {i: (t.carries, t.as_strong, t.others) for i, t in found.items()} == {1: (10, 0, 6), 6: (10, 0, 6)}
    assert found[1].p == pytest.approx(1 / 7)


@pytest.mark.hand_worked
def test_parts_that_stand_in_for_each_other_show_when_the_rest_is_gone() -> None:
    """Either of 2 and 5 is enough: alone each costs 0, together 8. Rules out a test of single changes (p = 1)."""
    found = Network(lambda one: -8.0 if one >= {2, 5} else 0.0).test(2, 5)
    assert [(t.carries, t.p) for t in found.values()] == [(8.0, pytest.approx(1 / 7))] * 2


@pytest.mark.hand_worked
def test_a_strong_part_does_not_lift_a_passenger() -> None:
    """3 costs 30, 0 costs 1, the others 1.1 to 2, in sum. Beside 3 every other part does at least what 0 does."""
    cost = (1.0, 1.1, 1.2, 30.0, 1.4, 1.5, 1.6, 2.0)
    found = Network(lambda one: -sum(cost[i] for i in one)).test(0, 3)
    assert (found[0].carries, found[0].p) == (1.0, 1.0)
    assert (found[3].carries, found[3].p) == (30.0, pytest.approx(1 / 7))
    # 7, the strongest of the weak ones, is beaten by none of the six.
    assert Network(lambda one: -sum(cost[i] for i in one)).test(3, 7)[7].p == pytest.approx(1 / 7)


@pytest.mark.negative_control
@pytest.mark.parametrize("seed", range(4))
def test_beside_any_rest_small_p_are_as_rare_as_stated(seed: int) -> None:
    """Theorem: with all other parts as alternatives p(i) is a rank, so at most 5% of the parts that may stand beside a
    given rest have p <= .05, for any effects at all. Here: heavy-tailed parts, interactions of every pair, one part a
    hundred times as strong; rests of two parts, with the strong one and without."""
    places, draw = 24, random.Random(seed)
    alone = [draw.paretovariate(1) * draw.choice((-1, 1)) for _ in range(places)]
    alone[0] *= 100
    pairs = {frozenset(pair): draw.gauss(0, 1) for pair in combinations(range(places), 2)}
    network = Network(
        lambda one: sum(alone[i] for i in one) + sum(pairs[frozenset(p)] for p in combinations(one, 2)), places
    )
    for rest in ((0, 1), (0, 2), (3, 4)):
        p = [network.test(*rest, i)[i].p for i in range(places) if i not in rest]
        for level in (0.05, 0.1, 0.3):
            assert sum(value <= level for value in p) <= level * len(p)
        assert min(p) <= 0.05  # and one part reaches it: rules out a test that never speaks


def test_differences_of_rounding_are_ties() -> None:
    """A passenger that costs a millionth beside others that cost nothing earns no place."""
    found = Network(lambda one: -10.0 * (1 in one) - 1e-6 * (6 in one)).test(1, 6)
    assert (found[6].p, found[1].p) == (1.0, pytest.approx(1 / 7))


def test_of_many_parts_those_that_carry_least_are_tested() -> None:
    found = Network(lambda one: -float(sum(one)), places=30).test(*range(3, 27, 3))
    assert sorted(found) == [3, 6, 9, 12, 15]
    assert len(found) == MOST_TESTED


def test_no_set_is_measured_twice() -> None:
    network = Network(lambda one: -10.0 if one & {1, 6} else 0.0)
    network.test(1, 6)
    assert network.asked == 8 + 1 + 2 * 6  # every part alone, the pair, six others in the place of each
    network.test(1, 6)
    assert network.asked == 8 + 1 + 2 * 6
