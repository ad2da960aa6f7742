"""Which positions of two prompts of one template stand for the same thing, though their lengths differ.

A layout is a prompt's length and where its roles stand. The roles cut a prompt into segments; within a segment a
position is matched by its distance from the nearer end, so that a name or place of more tokens shifts nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple

from ..errors import BadPrompts
from ..prompts.encoding import EncodedPrompts


class Layout(NamedTuple):
    """The shape of a prompt."""

    length: int
    anchors: tuple[int, ...]  # positions of its roles, rising

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """First position and length of each segment: from the start to the first role, from there to the next, ..."""
        cuts = (0, *self.anchors, self.length)
        return tuple((a, b - a) for a, b in pairwise(cuts))


def layout_of(prompts: EncodedPrompts, row: int) -> Layout:
    """The layout of one prompt."""
    return Layout(prompts.clean.lengths[row], tuple(sorted(places[row] for places in prompts.roles.values())))


def matched(target: Layout, other: Layout) -> list[int]:
    """For every position of the target the position of the other that stands for the same thing.

    Layouts of as many roles only; a segment that the other one lacks falls to where it would begin.
    """
    found: list[int] = []
    for (_, n), (start, m) in zip(target.segments, other.segments, strict=True):
        for i in range(n):
            from_left = i <= n - 1 - i
            inside = min(i, m - 1) if from_left else max(m - (n - i), 0)
            found.append(min(start + max(inside, 0), other.length - 1))
    return found


def aligned_groups(prompts: EncodedPrompts, seed: int) -> list[list[int]]:
    """Rows that can stand in for each other, each group in random order with the rows of a cluster side by side.

    Prompts of one template whose roles come in one order; without roles prompts of one template and length.

    Raises:
        BadPrompts: a prompt has no other cluster beside it in its group.
    """
    groups: dict[Hashable, list[int]] = {}
    for row in range(prompts.n):
        groups.setdefault(_kind(prompts, row), []).append(row)
    for rows in groups.values():
        if len({prompts.clusters[row] for row in rows}) < 2:
            what = "" if prompts.roles else f" at {prompts.clean.lengths[rows[0]]} tokens"
            raise BadPrompts(
                f"template {prompts.templates[rows[0]]!r}{what} has {len(rows)} prompt(s) of one cluster (first: "
                f"prompt {rows[0]}): there is no other prompt to take a mean or a sample from. Give at least two "
                "prompts with different names for each template (without roles: and length), make_prompts with a "
                "larger n, or use ablation='zero'."
            )
    return [_shuffled(prompts, rows, random.Random(f"{seed} {rows[0]}")) for rows in groups.values()]


def _kind(prompts: EncodedPrompts, row: int) -> Hashable:
    if not prompts.roles:
        return prompts.templates[row], prompts.clean.lengths[row]
    return prompts.templates[row], tuple(sorted(prompts.roles, key=lambda role: prompts.roles[role][row]))


def _shuffled(prompts: EncodedPrompts, rows: Sequence[int], chosen: random.Random) -> list[int]:
    labels = sorted({prompts.clusters[row] for row in rows})
    chosen.shuffle(labels)
    return sorted(rows, key=lambda row: labels.index(prompts.clusters[row]))
