"""Whether every part of a set earns its place: each against other parts put in its place, the rest of the set kept.

A part carries what the set loses or gains by it: the larger of its change alone and of what it adds to the rest. Parts
in sequence show alone, parts that stand in for each other only when the rest is gone too. With m the mean change of the
metric, R the rest of the set without part i, and j another part,

    carries(i) = max(|m({i})|, |m(R + i) - m(R)|),   p(i) = (1 + b) / (1 + B),

b of B parts j drawn at random with carries(j) >= carries(i) beside the same rest. For a set drawn at random i and the j
are exchangeable, whatever the rest is and however strong: p(i) is at most .05 in 5% of draws (Phipson & Smyth 2010,
arXiv 1603.05766, on p of random draws), and the largest p of the parts no more often. The joint change cannot tell: one
strong part lifts any set that holds it. Of many parts those that carry least are tested, which costs as much as a few;
where parts interact the bound is then that of the parts tested, not of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from ..result import Frozen

if TYPE_CHECKING:
    from numpy import ndarray

Part = Any  # a site or a feature: hashable
Parts = Sequence[Part]
MOST_TESTED = 5  # parts, those that carry least: the least sure of them decides
TIE = 1e-3  # of the set's change: smaller differences are rounding, and count as ties


class PartTest(Frozen):
    """One part of a set beside other parts in its place."""

    part: str = Field(description="The part.")
    carries: float = Field(description="The larger of its change alone and of what it adds to the rest; unsigned.")
    others: int = Field(description="Parts drawn at random and put in its place.")
    as_strong: int = Field(description="Of these, parts that carry at least as much.")
    p: float = Field(description="(1 + as_strong) / (1 + others).")


class SetChanges:
    """Mean change of every metric by any set of parts, each set measured once, many sets at a time.

    `measure` takes sets and gives [metrics, sets].
    """

    def __init__(self, measure: Callable[[Sequence[tuple[Part, ...]]], ndarray]) -> None:
        self._measure = measure
        self._known: dict[frozenset[Part], ndarray] = {}

    def know(self, sets: Sequence[Parts], changes: ndarray) -> None:
        """Changes already measured, [metrics, sets]."""
        self._known |= {frozenset(one): changes[:, i] for i, one in enumerate(sets)}

    def measure(self, sets: Iterable[Parts]) -> None:
        """Measure those not known yet, together."""
        missing = {key: tuple(one) for one in sets if (key := frozenset(one)) not in self._known}
        if missing:
            self.know(list(missing.values()), self._measure(list(missing.values())))

    def of(self, one: Parts, metric: int) -> float:
        return float(self._known[frozenset(one)][metric])

    def carried(self, part: Part, rest: Parts, metric: int) -> float:
        """The larger of the part's change alone and of what it adds to the rest."""
        return max(abs(self.of((part,), metric)), abs(self.of((*rest, part), metric) - self.of(rest, metric)))


class Place(NamedTuple):
    """A part of the claimed set, the rest, and what may stand in for it."""

    part: Part
    rest: tuple[Part, ...]
    others: Parts


def parts_test(
    claimed: Parts, others: Sequence[Parts], changes: SetChanges, metric: int, name: Callable[[Part], str]
) -> tuple[PartTest, ...]:
    """The parts of a set of two or more that carry least, each against those in `others` that are for its place."""
    places = [
        Place(part, tuple(p for p in claimed if p != part), drawn) for part, drawn in zip(claimed, others, strict=True)
    ]
    changes.measure([claimed, *(place.rest for place in places), *((part,) for part in claimed)])
    places = sorted(places, key=lambda place: changes.carried(place.part, place.rest, metric))[:MOST_TESTED]
    changes.measure({(j,): None for place in places for j in place.others})
    tie = TIE * abs(changes.of(claimed, metric))
    enough = [changes.carried(place.part, place.rest, metric) - tie for place in places]
    weak = [
        [j for j in place.others if abs(changes.of((j,), metric)) < least]
        for place, least in zip(places, enough, strict=True)
    ]
    changes.measure((*place.rest, j) for place, some in zip(places, weak, strict=True) for j in some)
    return tuple(
        _tested(place, sum(changes.carried(j, place.rest, metric) < least for j in some), changes, metric, name)
        for place, some, least in zip(places, weak, enough, strict=True)
    )


def _tested(
    place: Place, weaker: int, changes: SetChanges, metric: int, name: Callable[[Part], str]
) -> PartTest:
    strong, others = len(place.others) - weaker, len(place.others)
    return PartTest(
        part=name(place.part), carries=changes.carried(place.part, place.rest, metric), others=others,
        as_strong=strong, p=(1 + strong) / (1 + others),
    )  # fmt: skip
