"""A circuit put to the test on prompts that it was not found on, beside all that it has to be held against."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..measures.statistics import Clusters, control_p
from ..result import Estimate, Frozen
from .circuit_parts import CircuitParts, Task, Tick
from .faithfulness import Curve, Ranking, Scale, ranked, sizes_of
from .random_circuits import Drawn, live, other_heads, random_circuits, random_like, random_ranking

if TYPE_CHECKING:
    from numpy import ndarray

RANDOM_CURVES = 3  # random rankings of which whole curves are measured
SUBSETS = 4  # random halves of the circuit that are taken out of it and of the model
IDLE = 0.01  # of the whole behaviour: a part whose removal changes less is not needed
BISECTIONS = 6


class Whole(Frozen):
    """The ends of the scale, in the metric's unit."""

    model: Estimate = Field(description="Metric of the whole model on the clean prompts.")
    empty: Estimate = Field(description="Metric of the circuit without anything: the floor.")
    corrupted: Estimate = Field(description="Metric of the corrupted run, for comparison with the floor.")


class Rivals(Frozen):
    """Random circuits, in f."""

    values: tuple[float, ...] = Field(description="f of each.")
    mean: float | None = Field(description="Their mean.")
    p: float | None = Field(description="(1 + b) / (1 + B): b of B random circuits are at least as faithful.")
    drawn: str = Field(description="How they were drawn, or why there are none.")


class Minimality(Frozen):
    """Whether every part of the circuit is needed."""

    checked: int = Field(description="Parts taken out one at a time.")
    needed: int = Field(description="Of these, parts whose removal lowers f by at least .01.")
    idle: tuple[str, ...] = Field(description="Parts whose removal changes f by less than .01; at most 30.")
    harmful: tuple[str, ...] = Field(description="Parts whose removal raises f by .01 or more; at most 30.")


class Verdict(Frozen):
    """The circuit and its rivals on held-out prompts; f throughout."""

    faithfulness: Estimate = Field(description="f of the circuit, everything else corrupted: is it enough?")
    complement: Estimate = Field(description="f of all the rest, the circuit corrupted: near 0 if it is needed.")
    inverted: Estimate = Field(description="f of as many parts from the other end of the ranking.")
    random: Rivals = Field(description="Random circuits with as many parts of each kind.")
    same_layers: Rivals | None = Field(
        description="The circuit's own MLPs with other heads of the same layers: are the heads right? Absent for edges."
    )
    completeness_gap: float | None = Field(
        description="Mean of |f(model without K) - f(circuit without K)| over random halves K of the circuit; near 0 "
        "where nothing outside does the same work."
    )
    minimality: Minimality = Field(description="Whether every part is needed.")


class Bench:
    """Circuits on one set of prompts, each measured once; faithfulness by the set's own ends."""

    def __init__(self, parts: CircuitParts, on: Task, seed: int, tick: Tick) -> None:
        self.parts, self.on, self.tick = parts, on, tick
        self.n = len(parts.names)
        self.clusters = Clusters(on.prompts.clusters, seed=seed)
        self._known: dict[bytes, ndarray] = {}
        empty, whole = self.measured([(), range(self.n)])
        self.scale = Scale(empty, whole, self.clusters)

    def measured(self, circuits: Sequence[Sequence[int]]) -> list[ndarray]:
        """The metric of circuits, on every prompt."""
        keys = [self._key(c) for c in circuits]
        new = {key: kept for key, kept in zip(keys, circuits, strict=True) if key not in self._known}
        if new:
            values = self.parts.values(self.on, list(new.values()), self.tick).numpy()
            self._known |= dict(zip(new, values, strict=True))
        return [self._known[key] for key in keys]

    def _key(self, kept: Sequence[int]) -> bytes:
        """A bit a part: circuits of edges are long."""
        import numpy as np

        mask = np.zeros(self.n, dtype=bool)
        mask[list(kept)] = True
        return np.packbits(mask).tobytes()

    def f(self, circuit: Sequence[int]) -> Estimate:
        """Faithfulness of one circuit."""
        return self.scale.f(self.measured([circuit])[0])

    def means(self, circuits: Sequence[Sequence[int]]) -> list[float]:
        """Faithfulness without intervals."""
        return [self.scale.mean(values) for values in self.measured(circuits)]

    def curve(self, name: str, circuits: Sequence[Sequence[int]]) -> Curve:
        """Faithfulness of one circuit of each size."""
        import numpy as np

        return self.scale.curve(name, sizes_of(self.n), np.stack(self.measured(circuits)))


def smallest(bench: Bench, order: Sequence[int], target: float) -> int:
    """The smallest size of the curve that reaches the target, then bisected down to the size before it."""
    sizes = [size for size in dict.fromkeys(sizes_of(bench.n)) if size]
    found = bench.means([order[:size] for size in sizes])
    reached = next((i for i, f in enumerate(found) if f >= target), len(sizes) - 1)
    high, low = sizes[reached], sizes[reached - 1] if reached else 0
    for _ in range(BISECTIONS):
        if high - low < 2:
            break
        middle = (low + high) // 2
        low, high = (low, middle) if bench.means([order[:middle]])[0] >= target else (middle, high)
    return high


def curves_of(bench: Bench, scores: ndarray, ranking: Ranking, seed: int) -> tuple[Curve, ...]:
    """Both rankings, the claimed one backwards, and random circuits of every size."""
    orders = {name: ranked(scores, name) for name in ("signed", "absolute")}
    backwards = orders[ranking][::-1]
    cut = {**{name: _cut(order) for name, order in orders.items()}, f"{ranking}, inverted": _cut(backwards)}
    for i in range(RANDOM_CURVES):
        cut[f"random {i + 1}"] = _random_sizes(bench.parts, orders[ranking], seed + i)
    return tuple(bench.curve(name, circuits) for name, circuits in cut.items())


def _cut(order: Sequence[int]) -> list[Sequence[int]]:
    return [order[:size] for size in sizes_of(len(order))]


def _random_sizes(parts: CircuitParts, order: Sequence[int], seed: int) -> list[Sequence[int]]:
    """A random circuit of every size: nodes nested, edges each joined anew like those that carry something."""
    if parts.links is None:
        return _cut(random_ranking(order, parts.kinds, seed))
    claimed = [live(kept, parts.links) or kept for kept in _cut(order)]
    return [random_like(c, parts.kinds, parts.links, f"{seed} of {len(c)}") if c else () for c in claimed]


class Asked(NamedTuple):
    """What the circuit is held against."""

    controls: int
    minimality: int
    seed: int


def judged(bench: Bench, circuit: Sequence[int], order: Sequence[int], asked: Asked) -> Verdict:
    """The circuit beside its complement, its inverse, random circuits and itself without each part."""
    parts, inside = bench.parts, set(circuit)
    rest = [i for i in range(bench.n) if i not in inside]
    controls = Drawn((), "none: the circuit is the whole model")
    if rest:
        controls = random_circuits(circuit, parts.kinds, parts.links, count=asked.controls, seed=asked.seed)
    heads = None
    if parts.places is not None:
        heads = _rivals(bench, circuit, other_heads(circuit, parts.places, count=asked.controls, seed=asked.seed))
    return Verdict(
        faithfulness=bench.f(circuit),
        complement=bench.f(rest),
        inverted=bench.f(order[::-1][: len(circuit)]),
        random=_rivals(bench, circuit, controls),
        same_layers=heads,
        completeness_gap=_completeness(bench, circuit, rest, asked.seed),
        minimality=_minimality(bench, circuit, asked),
    )


def _rivals(bench: Bench, circuit: Sequence[int], drawn: Drawn) -> Rivals:
    own, *found = bench.means([circuit, *drawn.circuits])
    if not found:
        return Rivals(values=(), mean=None, p=None, drawn=drawn.note)
    p = control_p(own, found, size=float)
    return Rivals(values=tuple(found), mean=sum(found) / len(found), p=p, drawn=drawn.note)


def _completeness(bench: Bench, circuit: Sequence[int], rest: Sequence[int], seed: int) -> float | None:
    """Wang et al., arXiv 2211.00593, section 4.2, with random subsets."""
    if len(circuit) < 2 or not rest:
        return None
    rng, kept = Random(f"{seed} completeness"), list[list[int]]()
    for _ in range(SUBSETS):
        out = set(rng.sample(list(circuit), len(circuit) // 2))
        kept.append([i for i in circuit if i not in out])
    model = bench.means([[*own, *rest] for own in kept])
    return sum(abs(m - c) for m, c in zip(model, bench.means(kept), strict=True)) / SUBSETS


def _minimality(bench: Bench, circuit: Sequence[int], asked: Asked) -> Minimality:
    chosen = list(circuit)
    if len(chosen) > asked.minimality:
        chosen = sorted(Random(f"{asked.seed} minimality").sample(chosen, asked.minimality))
    whole, *without = bench.means([circuit, *([i for i in circuit if i != out] for out in chosen)])
    lost = {bench.parts.names[i]: whole - f for i, f in zip(chosen, without, strict=True)}
    return Minimality(
        checked=len(chosen),
        needed=sum(f >= IDLE for f in lost.values()),
        idle=tuple(name for name, f in lost.items() if abs(f) < IDLE)[:30],
        harmful=tuple(name for name, f in lost.items() if f <= -IDLE)[:30],
    )


def pruned(circuit: Sequence[int], parts: CircuitParts) -> list[int]:
    """Without edges that lie on no way from the embedding to the logits: they carry nothing."""
    return sorted(circuit) if parts.links is None else list(live(circuit, parts.links))
