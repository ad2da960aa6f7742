"""Labels of examples that come in groups: splits that keep groups whole, and shuffles that keep what groups share.

Examples of a group (one text with its counterpart, one set of names) are not independent: a split that tears a group
apart lets a probe recognise the group, and a shuffle example by example makes a null that is too easy to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import BadArguments

if TYPE_CHECKING:
    from numpy import ndarray


def split_by_group(
    labels: Sequence[int], groups: Sequence[str], share: float, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices of two parts that share no group, the second with about `share` of the groups, both with both labels.

    Groups are drawn separately by the labels they hold, so that the parts are balanced alike.

    Raises:
        BadArguments: too few groups for both parts to have both labels.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    held: set[str] = set()
    for alike in _by_content(labels, groups).values():
        order = [alike[i] for i in generator.permutation(len(alike))]
        held |= set(order[: min(len(alike) - 1, max(1, round(share * len(alike))))])
    parts = tuple(i for i, g in enumerate(groups) if g not in held), tuple(i for i, g in enumerate(groups) if g in held)
    for part in parts:
        if len({labels[i] for i in part}) < len(set(labels)) or len(set(labels)) < 2:
            raise BadArguments(
                f"{len(set(groups))} groups of examples cannot be split in two parts that both have every label; "
                "give more examples of each label."
            )
    return parts


def shuffled(labels: Sequence[int], groups: Sequence[str], count: int, seed: int) -> ndarray:
    """[count, n] labels of 0 and 1 as they would be if they meant nothing, group by group.

    A group that holds both labels has them exchanged or not, at random; groups that hold one label exchange it among
    themselves. How many examples carry each label changes only where such groups differ in size.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    given = np.asarray(labels)
    names, of_row = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    first = np.array([given[of_row == g][0] for g in range(len(names))])
    mixed = np.array([len(set(given[of_row == g].tolist())) > 1 for g in range(len(names))])
    out = np.empty((count, len(given)), dtype=int)
    for i in range(count):
        new = first.copy()
        new[~mixed] = generator.permutation(first[~mixed])
        exchanged = np.where(mixed, generator.integers(0, 2, len(names)), new != first)
        out[i] = np.where(exchanged[of_row] == 1, 1 - given, given)
    return out


def _by_content(labels: Sequence[int], groups: Sequence[str]) -> dict[tuple[int, ...], list[str]]:
    """Groups by which labels they hold."""
    content: dict[str, set[int]] = {}
    for label, group in zip(labels, groups, strict=True):
        content.setdefault(group, set()).add(label)
    found: dict[tuple[int, ...], list[str]] = {}
    for group, held in content.items():
        found.setdefault(tuple(sorted(held)), []).append(group)
    return found
