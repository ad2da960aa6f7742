"""Random circuits: as many of each kind, joined, distinct, and fair as a null."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from anatomist.causal.circuit_evaluation import Asked, Bench, judged
from anatomist.causal.circuit_parts import CircuitParts, Edges, Nodes, Task
from anatomist.causal.random_circuits import (
    Links,
    live,
    other_heads,
    random_circuits,
    random_like,
    random_ranking,
)
from anatomist.model.backends.toy_circuits import random_toy
from anatomist.prompts.encoding import encode

from tests.causal.one_pair import one_pair

# embed(0) -> a(1) by receiver 0, -> b(2) by receivers 1 (k) and 2 (v), both -> logits (3).
LINKS = Links(
    edges=((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),
    reach=(1, 2, 2, 3), node_of=((1,), (2,), (2,), ()), kind=("v", "k", "v", "logits"),
)  # fmt: skip
KINDS = ("v", "k", "k", "v", "v", "logits", "logits", "logits")


@pytest.mark.hand_worked
def test_only_edges_on_a_way_from_embedding_to_logits_are_alive() -> None:
    """embed -> a, a -> b.k, b -> logits is a way. Without embed -> a, a carries nothing, and so on up. embed -> b.v
    feeds b by itself; embed -> logits is a way alone."""
    assert live([0, 2, 7], LINKS) == (0, 2, 7)
    assert live([2, 7], LINKS) == ()
    assert live([0, 2], LINKS) == ()
    assert live([0, 2, 3, 7], LINKS) == (0, 2, 3, 7)
    assert live([2, 3, 7], LINKS) == (3, 7)
    assert live([5], LINKS) == (5,)


def edges() -> CircuitParts:
    return Edges(random_toy(layers=3, heads=4, kv_heads=2), 2**28)


@pytest.mark.parametrize("size", [8, 20, 60, 140])
def test_random_circuits_of_edges_are_joined_distinct_and_of_the_same_kinds(size: int) -> None:
    """Small ones are grown and large ones drawn; every edge carries something in both."""
    parts, rng = edges(), Random(size)
    assert parts.links is not None
    claimed: tuple[int, ...] = ()
    while len(claimed) < 2:
        claimed = live(rng.sample(range(len(parts.names)), size), parts.links)
    drawn = random_circuits(claimed, parts.kinds, parts.links, count=5, seed=0)
    assert len(set(drawn.circuits)) == len(drawn.circuits) == 5
    assert claimed not in drawn.circuits
    for one in drawn.circuits:
        assert Counter(parts.kinds[i] for i in one) == Counter(parts.kinds[i] for i in claimed)
        assert live(one, parts.links) == one


def test_all_circuits_that_there_are_can_be_drawn() -> None:
    """Every triple of one v, one k and one logits edge is tried: those that live wholly are to be drawn."""
    every = {
        (a, b, c)
        for a in range(8) for b in range(a + 1, 8) for c in range(b + 1, 8)
        if Counter(KINDS[i] for i in (a, b, c)) == {"v": 1, "k": 1, "logits": 1} and live((a, b, c), LINKS) == (a, b, c)
    }  # fmt: skip
    drawn = random_circuits((0, 2, 7), KINDS, LINKS, count=50, seed=0)
    assert {*drawn.circuits, (0, 2, 7)} == every
    assert "no more than" in drawn.note


def test_circuits_of_nodes_are_drawn_by_kind() -> None:
    kinds = ("head",) * 8 + ("mlp",) * 3
    drawn = random_circuits((0, 1, 9), kinds, None, count=10, seed=0)
    assert len(drawn.circuits) == 10
    assert all(Counter(kinds[i] for i in one) == {"head": 2, "mlp": 1} for one in drawn.circuits)


def test_other_heads_come_from_the_same_layers_and_mlps_stay() -> None:
    parts = Nodes(random_toy(layers=3, heads=4), 2**28)
    claimed = [parts.names.index(name) for name in ("L1H0", "L1H2", "L1MLP")]
    drawn = other_heads(claimed, parts.places, count=6, seed=0)
    for one in drawn.circuits:
        names = {parts.names[i] for i in one}
        assert "L1MLP" in names
        assert not names & {"L1H0", "L1H2"}
        assert len(names) == 3
    assert other_heads([parts.names.index("L1MLP")], parts.places, count=6, seed=0).circuits == ()
    assert "every place" in other_heads(range(len(parts.names)), parts.places, count=6, seed=0).note


def test_a_random_ranking_has_the_same_kinds_rank_by_rank() -> None:
    kinds = ("a", "b", "a", "b", "a")
    order = [4, 3, 2, 1, 0]
    found = random_ranking(order, kinds, 0)
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert [kinds[i] for i in found] == [kinds[i] for i in order]


def test_one_like_an_unjoined_circuit_is_drawn_unjoined() -> None:
    assert len(random_like((2, 7), KINDS, LINKS, "s")) == 2


@pytest.mark.negative_control
@pytest.mark.parametrize("level", ["nodes", "edges"])
def test_a_claim_drawn_at_random_is_rarely_significant(level: str) -> None:
    """The claimed circuit is one of the same draw as its controls, so p is uniform on 1/20 ... 1: over 20 seeds one is
    expected at .05 or below, four or more have a chance of 1.6%."""
    model = random_toy(layers=2, heads=4, seed=3)
    parts: CircuitParts = Nodes(model, 2**28) if level == "nodes" else Edges(model, 2**28)
    first = parts.names.index("L0H1") if level == "nodes" else parts.names.index("embed -> logits")
    start = [first, first + 1, first + 5] if level == "nodes" else list(range(0, len(parts.names), 6))
    if parts.links is not None:
        start = list(live(start, parts.links))
    on, false = Task.of(encode(one_pair(model, 11), model), "logit_diff", model), 0
    bench = Bench(parts, on, 0, lambda done, total, what: None)
    for seed in range(20):
        (claimed,) = random_circuits(start, parts.kinds, parts.links, count=1, seed=100 + seed).circuits
        verdict = judged(bench, claimed, range(bench.n), Asked(controls=19, minimality=0, seed=seed))
        assert verdict.random.p is not None
        false += verdict.random.p <= 0.05
    assert false <= 3
