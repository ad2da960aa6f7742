"""Random circuits to hold a circuit against: as many parts of each kind; edges joined from the embedding to the logits.

A circuit of edges that are not joined carries nothing, so a random handful of edges is no fair rival. A small random
circuit is grown backwards from the logits, every head or MLP that is used getting an input of its own; of a large one
those edges that carry nothing are drawn again until none is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from ..errors import BadArguments
from ..measures.statistics import Place, random_controls

ATTEMPTS, STUCK, ROUNDS = 50, 50, 100  # at one random circuit
EMBED = 0  # the first sender
LARGE = 2  # edges a sender from which circuits are drawn, not grown


class Links(NamedTuple):
    """How edges join."""

    edges: tuple[tuple[int, int], ...]  # sender, receiver
    reach: tuple[int, ...]  # per receiver: the first so many senders come before it
    node_of: tuple[tuple[int, ...], ...]  # per receiver: the senders that it feeds
    kind: tuple[str, ...]  # per receiver


class Drawn(NamedTuple):
    """Random circuits, and how they were drawn."""

    circuits: tuple[tuple[int, ...], ...]
    note: str


def live(kept: Sequence[int], links: Links) -> tuple[int, ...]:
    """The edges that lie on a way from the embedding to the logits; the others carry nothing."""
    chosen = sorted(kept, key=lambda i: links.edges[i][1])
    reached = {EMBED}
    for i in chosen:  # receivers in order: a sender's inputs come before it is used
        sender, receiver = links.edges[i]
        if sender in reached:
            reached |= set(links.node_of[receiver])
    useful = {len(links.reach) - 1}  # receivers; the logits come last
    fed_by = _feeds(links)
    for i in reversed(chosen):
        sender, receiver = links.edges[i]
        if receiver in useful:
            useful |= set(fed_by.get(sender, ()))
    return tuple(i for i in sorted(kept) if links.edges[i][0] in reached and links.edges[i][1] in useful)


def _feeds(links: Links) -> dict[int, list[int]]:
    """Per sender, the receivers that are its inputs."""
    found: dict[int, list[int]] = {}
    for receiver, nodes in enumerate(links.node_of):
        for node in nodes:
            found.setdefault(node, []).append(receiver)
    return found


def random_ranking(order: Sequence[int], kinds: Sequence[str], seed: int) -> list[int]:
    """A ranking with the same kind at every rank, its parts shuffled within their kind."""
    rng = Random(f"{seed} ranking")
    pools: dict[str, list[int]] = {}
    for i in order:
        pools.setdefault(kinds[i], []).append(i)
    for pool in pools.values():
        rng.shuffle(pool)
    return [pools[kinds[i]].pop() for i in order]


def random_circuits(
    claimed: Sequence[int], kinds: Sequence[str], links: Links | None, *, count: int, seed: int
) -> Drawn:
    """Distinct random circuits with as many parts of each kind as the claimed one, which is not among them.

    Fewer than asked for come back where no more were found in many draws; the note says so.
    """
    first = tuple(sorted(claimed))
    draw, how = _drawing(first, kinds, links, Random(f"{seed} circuits"))
    found: dict[tuple[int, ...], None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        one = draw()
        if one is not None and one != first:
            found[one] = None
    few = "" if len(found) == count else f"; no more than {len(found)} were found"
    return Drawn(tuple(found), how + few)


def random_like(claimed: Sequence[int], kinds: Sequence[str], links: Links, seed: str) -> tuple[int, ...]:
    """One random circuit of edges like the claimed one, joined where that can be had."""
    rng = Random(seed)
    draw, _ = _drawing(tuple(sorted(claimed)), kinds, links, rng)
    return draw() or _sampled(Counter(kinds[i] for i in claimed), _pools(kinds), rng)


def _drawing(
    claimed: tuple[int, ...], kinds: Sequence[str], links: Links | None, rng: Random
) -> tuple[Callable[[], tuple[int, ...] | None], str]:
    """How circuits like the claimed one are drawn, and the same in words."""
    wanted, pools = Counter(kinds[i] for i in claimed), _pools(kinds)
    if links is None:
        return lambda: _sampled(wanted, pools, rng), "as many of each kind; all are joined through the residual"
    if not live(claimed, links):
        return lambda: _sampled(wanted, pools, rng), "as many of each kind, joined or not, like the circuit"
    joined = "as many of each kind, joined from the embedding to the logits"
    if len(claimed) > LARGE * links.reach[-1]:
        return lambda: _joined(wanted, pools, links, rng), joined
    tables = _Tables({edge: i for i, edge in enumerate(links.edges)}, _feeds(links))
    return lambda: _grown(wanted, links, tables, rng), joined


def _pools(kinds: Sequence[str]) -> dict[str, list[int]]:
    pools: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        pools.setdefault(kind, []).append(i)
    return pools


def _sampled(wanted: Counter[str], pools: dict[str, list[int]], rng: Random) -> tuple[int, ...]:
    return tuple(sorted(i for kind, n in wanted.items() for i in rng.sample(pools[kind], n)))


def _joined(wanted: Counter[str], pools: dict[str, list[int]], links: Links, rng: Random) -> tuple[int, ...] | None:
    """Drawn at random, then again what carries nothing; none where that does not come to an end."""
    kept = set(_sampled(wanted, pools, rng))
    for _ in range(ROUNDS):
        alive = set(live(sorted(kept), links))
        if len(alive) == len(kept):
            return tuple(sorted(kept))
        lost = Counter(links.kind[links.edges[i][1]] for i in kept - alive)
        fresh = {kind: [i for i in pools[kind] if i not in kept] for kind in lost}
        if any(len(fresh[kind]) < n for kind, n in lost.items()):
            return None
        kept = alive | set(_sampled(lost, fresh, rng))
    return None


class _Tables(NamedTuple):
    """What growing looks up."""

    number: dict[tuple[int, int], int]  # of an edge
    inputs: dict[int, list[int]]  # receivers that are a sender's inputs


def _grown(wanted: Counter[str], links: Links, tables: _Tables, rng: Random) -> tuple[int, ...] | None:
    for _ in range(ATTEMPTS):
        found = _Growth(wanted, links, tables, rng).run()
        if found is not None:
            return found
    return None


class _Growth:
    """One random circuit, grown from the logits backwards."""

    def __init__(self, quotas: Counter[str], links: Links, tables: _Tables, rng: Random) -> None:
        self.left, self.links, self.tables, self.rng = Counter(quotas), links, tables, rng
        self.kept: set[int] = set()
        self.needing: list[int] = []  # senders that are used and have no input yet
        self.fed: dict[int, None] = {EMBED: None}

    def run(self) -> tuple[int, ...] | None:
        """The circuit; none where the quotas ran out before every part had an input."""
        stuck = 0
        while self.left.total() > 0 and stuck < STUCK:
            receiver = self._receiver()
            if receiver is None and self.needing:
                return None
            stuck += receiver is None or not self._add(receiver)
        return tuple(sorted(self.kept)) if not self.needing and self.left.total() == 0 else None

    def _receiver(self) -> int | None:
        """The next input to be fed: of a part that needs one, else any that is in use."""
        if self.needing:
            node = self.rng.choice(self.needing)
            candidates = [r for r in self.tables.inputs[node] if self.left[self.links.kind[r]] > 0]
        else:
            in_use = [r for node in self.fed for r in self.tables.inputs.get(node, ())] + [len(self.links.reach) - 1]
            candidates = [r for r in dict.fromkeys(in_use) if self.left[self.links.kind[r]] > 0]
        return self.rng.choice(candidates) if candidates else None

    def _add(self, receiver: int) -> bool:
        """Give it an edge from a random sender: a new one only while enough edges are left to feed it."""
        own = [n for n in self.links.node_of[receiver] if n in self.needing]
        spare = self.left.total() - 1 - (len(self.needing) - len(own))
        reach, number = self.links.reach[receiver], self.tables.number
        senders = range(reach) if spare > 0 else [s for s in dict.fromkeys([*self.fed, *self.needing]) if s < reach]
        free = [s for s in senders if number[s, receiver] not in self.kept]
        if not free:
            return False
        sender = self.rng.choice(free)
        self.kept.add(number[sender, receiver])
        self.left[self.links.kind[receiver]] -= 1
        for node in own:
            self.needing.remove(node)
            self.fed[node] = None
        if sender not in self.fed and sender not in self.needing:
            self.needing.append(sender)
        return True


def other_heads(claimed: Sequence[int], places: Sequence[Place | None], *, count: int, seed: int) -> Drawn:
    """Other heads of the same layers in place of the circuit's; its MLPs stay. `places`: layer and head, None for MLPs.

    None at all come back, with the reason, where there are no heads to change or none to take.
    """
    number = {place: i for i, place in enumerate(places) if place is not None}
    heads = [place for i in claimed if (place := places[i]) is not None]
    stay = [i for i in claimed if places[i] is None]
    if not heads or not count:
        return Drawn((), "none asked for" if heads else "none: there is no head in the circuit")
    try:
        drawn = random_controls(heads, Counter(layer for layer, _ in number), count=count, seed=seed)
    except BadArguments as error:
        return Drawn((), f"none: {error}")
    circuits = tuple(tuple(sorted([*stay, *(number[place] for place in one)])) for one in drawn.sets)
    return Drawn(circuits, f"the circuit's own MLPs, other heads {drawn.note}")
