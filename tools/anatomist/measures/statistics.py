"""Tests over many heads, features or prompts: corrections, sign flips, random controls.

Every random choice takes a seed. Intervals live in `resampling`, and are offered here under one roof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments
from .resampling import CHUNK, Clusters, Intervals, Normalised, difference, estimate, normalised, paired_difference

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = [
    "Clusters",
    "Controls",
    "Intervals",
    "Normalised",
    "benjamini_hochberg",
    "control_p",
    "difference",
    "estimate",
    "holm",
    "max_statistic",
    "normalised",
    "paired_difference",
    "random_controls",
    "random_replacements",
    "sign_flip",
]  # fmt: skip

FLIPS = 10_000
EXACT_CLUSTERS = 13  # 2**13 = 8192 sign patterns: all of them cost less than FLIPS random ones
ALTERNATIVES = 20  # fewer places to draw a control from say little


def holm(p: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjusted p-values (Holm 1979): the chance of any false claim among all is held.

    Sorted p(1) <= ... <= p(m): adjusted(i) = max over j <= i of min(1, (m - j + 1) p(j)).
    """
    order = _sorted_places(p)
    adjusted, running = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = running
    return tuple(adjusted)


def benjamini_hochberg(p: Sequence[float]) -> tuple[float, ...]:
    """Benjamini and Hochberg's adjusted p-values (1995): the expected share of false claims among the claims is held.

    adjusted(i) = min over j >= i of min(1, m p(j) / j).
    """
    order = _sorted_places(p)
    adjusted, running = [0.0] * len(p), 1.0
    for rank, place in reversed(list(enumerate(order, start=1))):
        running = min(running, len(p) * p[place] / rank)
        adjusted[place] = running
    return tuple(adjusted)


def _sorted_places(p: Sequence[float]) -> list[int]:
    for value in p:
        if not 0 <= value <= 1:
            raise BadArguments(f"{value} is not a p-value; each must lie between 0 and 1.")
    return sorted(range(len(p)), key=lambda i: p[i])


def sign_flip(values: Sequence[float] | ndarray, clusters: Sequence[str], *, seed: int, flips: int = FLIPS) -> ndarray:
    """Two-sided p-value per column that the mean is 0, flipping the sign of whole clusters. [n] or [n, m] -> [m].

    Under the null each cluster's sum is as likely with the other sign. All 2**G patterns are counted where there are
    few clusters (then p is exact); else random ones, with p = (1 + b) / (1 + flips), b those at least as extreme.
    """
    import numpy as np

    sums = _cluster_sums(values, clusters, seed)
    observed = abs(sums.sum(0))
    signs, exact = _signs(len(sums), seed, flips)
    parts = [(abs(signs @ sums[:, c]) >= observed[c] * (1 - 1e-12)).sum(0) for c in _columns(sums, signs)]
    extreme = np.concatenate(parts)
    return extreme / len(signs) if exact else (1 + extreme) / (1 + len(signs))


def max_statistic(values: ndarray, clusters: Sequence[str], *, seed: int, flips: int = FLIPS) -> ndarray:
    """Adjusted p-values of m columns, [n, m] -> [m], by the studentised maximum under sign flips (Westfall & Young).

    Every column is divided by its own standard error, flip by flip, so that noisy columns do not hide quiet ones; the
    largest of all columns is the null. Holds the family-wise error like Holm, and is sharper where columns correlate.
    """
    import numpy as np

    sums = _cluster_sums(values, clusters, seed)
    signs, exact = _signs(len(sums), seed, flips)
    observed = abs(_studentised(sums.sum(0), sums))
    largest = np.zeros(len(signs))
    for c in _columns(sums, signs):
        largest = np.maximum(largest, abs(_studentised(signs @ sums[:, c], sums[:, c])).max(1))
    extreme = len(signs) - np.searchsorted(np.sort(largest), observed * (1 - 1e-12), side="left")
    return extreme / len(signs) if exact else (1 + extreme) / (1 + len(signs))


def _columns(sums: ndarray, signs: ndarray) -> list[slice]:
    """Columns in pieces, so that flips x columns stays small."""
    step = max(1, CHUNK // len(signs))
    return [slice(i, i + step) for i in range(0, sums.shape[1], step)]


def _studentised(totals: ndarray, sums: ndarray) -> ndarray:
    """Total over its standard error; sum of squares does not change with the signs. 0 for columns that are all 0."""
    import numpy as np

    count = len(sums)
    variance = ((sums**2).sum(0) - totals**2 / count) * count / max(1, count - 1)
    floor = 1e-24 * (sums**2).sum(0) + 1e-300  # identical clusters: a very large value, not an infinite one
    return totals / np.sqrt(np.maximum(variance, floor))


def _cluster_sums(values: Sequence[float] | ndarray, clusters: Sequence[str], seed: int) -> ndarray:
    import numpy as np

    array = np.asarray(values, dtype=float)
    sums = Clusters(clusters, seed=seed, replicates=1).sums(array.reshape(len(array), -1))
    if len(sums) < 2:
        raise BadArguments("a sign-flip test needs at least two clusters of prompts; give more templates or names.")
    return sums


def _signs(count: int, seed: int, flips: int) -> tuple[ndarray, bool]:
    import numpy as np

    if count <= EXACT_CLUSTERS:
        patterns = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return 1.0 - 2.0 * patterns, True
    return np.random.default_rng(seed).choice((-1.0, 1.0), size=(flips, count)), False


Place = tuple[int, int]  # layer, head (or neuron, or feature)


class Controls(NamedTuple):
    """Random sets of the claimed set's size, and how they were drawn."""

    sets: tuple[tuple[Place, ...], ...]
    note: str  # layer-matched, or how far the layers were widened


def random_controls(
    claimed: Sequence[Place],
    sizes: Mapping[int, int],
    *,
    count: int,
    seed: int,
    exclude: Sequence[Place] = (),
) -> Controls:
    """Distinct random sets, each of the claimed set's size and with as many places in each layer (or its neighbours).

    `sizes` maps a layer to its number of heads. No control holds a claimed or an excluded place. Where a layer offers
    fewer than 20 alternatives, neighbouring layers are drawn on too, one further each side at a time.

    Where there are fewer distinct sets than asked for, all that many draws found come back, and the note says so.

    Raises:
        BadArguments: the set is empty, repeats a place, names one that does not exist, or no other set can be drawn.
    """
    import numpy as np

    _check_claimed(claimed, sizes, count)
    banned = set(claimed) | set(exclude)
    pools = {layer: _pool(layer, sizes, banned) for layer in {layer for layer, _ in claimed}}
    generator = np.random.default_rng(seed)
    sets: dict[tuple[Place, ...], None] = {}
    for _ in range(200 * count):
        if len(sets) == count:
            break
        drawn = _draw(claimed, pools, generator)
        if drawn is not None:
            sets[drawn] = None
    if not sets:
        raise BadArguments(
            f"no other set of {len(claimed)} can be drawn: too few places are left unclaimed; claim a smaller set."
        )
    few = "" if len(sets) == count else f"; there are no more than {len(sets)} such sets"
    reach = max(max(abs(place[0] - layer) for place in pool) for layer, pool in pools.items())
    return Controls(tuple(sets), f"drawn from the same layers{f' and up to {reach} layers away' if reach else ''}{few}")


def random_replacements(
    claimed: Sequence[Place], sizes: Mapping[int, int], *, count: int, seed: int
) -> tuple[tuple[Place, ...], ...]:
    """For each claimed place at most `count` distinct others to stand in for it, drawn from where controls are.

    Raises:
        BadArguments: as `random_controls`.
    """
    import numpy as np

    _check_claimed(claimed, sizes, count)
    generator = np.random.default_rng([seed, 1])  # another stream than that of the controls
    pools = [_pool(layer, sizes, set(claimed)) for layer, _ in claimed]
    return tuple(tuple(pool[i] for i in sorted(generator.permutation(len(pool))[:count])) for pool in pools)


def _check_claimed(claimed: Sequence[Place], sizes: Mapping[int, int], count: int) -> None:
    if not claimed or len(set(claimed)) != len(claimed) or count < 1:
        raise BadArguments(f"controls need a set without repeats and a count of at least 1: {list(claimed)}, {count}.")
    for layer, index in claimed:
        if not 0 <= index < sizes.get(layer, 0):
            raise BadArguments(f"({layer}, {index}) does not exist: layer {layer} has {sizes.get(layer, 0)} places.")


def _pool(layer: int, sizes: Mapping[int, int], banned: set[Place]) -> list[Place]:
    """Places to draw from: the layer's own, widened by neighbours until there are enough or the model ends."""
    reach = 0
    while True:
        near = [at for at in range(layer - reach, layer + reach + 1) if at in sizes]
        pool = [(at, i) for at in near for i in range(sizes[at]) if (at, i) not in banned]
        if len(pool) >= ALTERNATIVES or len(near) == len(sizes):
            break
        reach += 1
    if not pool:
        raise BadArguments("every place of the model is claimed or excluded; nothing is left to draw a control from.")
    return pool


def _draw(claimed: Sequence[Place], pools: Mapping[int, list[Place]], generator: object) -> tuple[Place, ...] | None:
    """One set: a place for each claimed one, none twice; None where the pool ran out."""
    taken: set[Place] = set()
    for layer, _ in claimed:
        left = [place for place in pools[layer] if place not in taken]
        if not left:
            return None
        taken.add(left[int(generator.integers(len(left)))])  # type: ignore[attr-defined]
    return tuple(sorted(taken))


def control_p(effect: float, controls: Sequence[float], *, size: Callable[[float], float] = abs) -> float:
    """p = (1 + b) / (1 + B): b of B random controls have an effect at least as large (by magnitude unless told).

    Never 0: with B controls the smallest is 1 / (1 + B).
    """
    if not controls:
        raise BadArguments("no controls were given; draw some with random_controls.")
    return (1 + sum(size(c) >= size(effect) for c in controls)) / (1 + len(controls))
