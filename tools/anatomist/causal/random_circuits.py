"""Random circuits to hold a circuit against: as many parts of each kind; edges joined from the embedding to the logits.

A circuit of edges that are not joined carries nothing, so a random handful of edges is no fair rival: a random circuit
is grown backwards from the logits, every head or MLP that is used getting an input of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from ..errors import BadArguments

ATTEMPTS = 200  # at one random circuit
EMBED = 0  # the first sender


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

    Raises:
        BadArguments: there are not so many others.
    """
    rng, first = Random(f"{seed} circuits"), tuple(sorted(claimed))
    found: dict[tuple[int, ...], None] = {}
    joined = links is not None and bool(live(claimed, links))
    note = "as many of each kind" + (", joined from the embedding to the logits" if joined else "")
    for _ in range(20 * max(count, 1)):
        if len(found) == count:
            break
        one = _grown(first, kinds, links, rng) if links is not None and joined else _drawn(first, kinds, rng)
        if one is not None and one != first:
            found[one] = None
    if len(found) < count:
        raise BadArguments(
            f"only {len(found)} of {count} random circuits like this one ({len(first)} parts) could be drawn; ask for "
            "fewer controls, or another size."
        )
    return Drawn(tuple(found), note)


def _drawn(claimed: Sequence[int], kinds: Sequence[str], rng: Random) -> tuple[int, ...]:
    wanted = Counter(kinds[i] for i in claimed)
    pools: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        pools.setdefault(kind, []).append(i)
    return tuple(sorted(i for kind, n in wanted.items() for i in rng.sample(pools[kind], n)))


def _grown(claimed: Sequence[int], kinds: Sequence[str], links: Links, rng: Random) -> tuple[int, ...] | None:
    for _ in range(ATTEMPTS):
        found = _Growth(Counter(kinds[i] for i in claimed), links, rng).run()
        if found is not None:
            return found
    return None


class _Growth:
    """One random circuit, grown from the logits backwards."""

    def __init__(self, quotas: Counter[str], links: Links, rng: Random) -> None:
        self.left, self.links, self.rng = Counter(quotas), links, rng
        self.number = {edge: i for i, edge in enumerate(links.edges)}
        self.inputs = _feeds(links)
        self.kept: set[int] = set()
        self.needing: list[int] = []  # senders that are used and have no input yet
        self.fed: set[int] = {EMBED}

    def run(self) -> tuple[int, ...] | None:
        """The circuit; none where the quotas ran out before every part had an input."""
        stuck = 0
        while self.left.total() > 0 and stuck < 50:
            receiver = self._receiver()
            if receiver is None or not self._add(receiver):
                stuck += 1
                if receiver is None and self.needing:
                    return None
        return tuple(sorted(self.kept)) if not self.needing and self.left.total() == 0 else None

    def _receiver(self) -> int | None:
        """The next input to be fed: of a part that needs one, else any that is in use."""
        if self.needing:
            node = self.rng.choice(self.needing)
            candidates = [r for r in self.inputs[node] if self.left[self.links.kind[r]] > 0]
        else:
            in_use = [r for node in self.fed for r in self.inputs.get(node, ())] + [len(self.links.reach) - 1]
            candidates = [r for r in in_use if self.left[self.links.kind[r]] > 0]
        return self.rng.choice(candidates) if candidates else None

    def _add(self, receiver: int) -> bool:
        """Give it an edge from a random sender: a new one only while enough edges are left to feed it."""
        own = [n for n in self.links.node_of[receiver] if n in self.needing]
        spare = self.left.total() - 1 - (len(self.needing) - len(own))
        reach = self.links.reach[receiver]
        senders = range(reach) if spare > 0 else [s for s in self.fed | set(self.needing) if s < reach]
        free = [s for s in senders if self.number[s, receiver] not in self.kept]
        if not free:
            return False
        sender = self.rng.choice(free)
        self.kept.add(self.number[sender, receiver])
        self.left[self.links.kind[receiver]] -= 1
        for node in own:
            self.needing.remove(node)
            self.fed.add(node)
        if sender not in self.fed and sender not in self.needing:
            self.needing.append(sender)
        return True
