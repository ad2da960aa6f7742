"""A set of parts edited at once, beside random sets of its size: the joint effect, its words and its picture.

Random sets hold none of the set's own parts, so that p answers whether other parts do as much. It is no p of a set
drawn at random: where one part outweighs all others, every set that holds it beats sets that cannot (4 of 24 heads
drawn at random hold a given one in 17% of draws). Random sets that may share parts would have that p, and no power
where parts need each other: of the hand-set induction circuit's 27 other pairs of heads 12 hold one of its two and do
as much harm as both (p = .46). Instead the part that changes most by itself is named, with its change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..figures import Bars
from ..measures.statistics import Clusters, Controls, control_p, normalised, random_controls
from ..model.sites import Shape, Site, SiteKind
from ..model.sweep_plan import Cell
from ..result import Estimate, Frozen
from .units import LETTERS, unit_name

if TYPE_CHECKING:
    from numpy import ndarray

ENOUGH = 19  # random sets: the smallest p is then .05


class JointEffect(Frozen):
    """The whole set edited at once, beside random sets of its size."""

    parts: tuple[str, ...] = Field(description="The set.")
    metric: str = Field(description="Name of the metric.")
    unit: str = Field(description="Its unit.")
    change: Estimate = Field(description="Mean change of the metric.")
    fraction: float | None = Field(
        description="Ablation: share of the baseline lost; patching: share of the gap. Not clipped; absent if withheld."
    )
    sum_of_singles: float = Field(description="Sum of the parts' changes one by one; differs where parts interact.")
    strongest: str | None = Field(
        description="The part that changes most by itself: the others may be passengers. Absent where parts were "
        "measured position by position."
    )
    strongest_change: float | None = Field(description="Mean change by that part alone.")
    control_changes: tuple[float, ...] = Field(description="Mean change of each random set, in the metric's unit.")
    control_mean: float | None = Field(description="Mean over the random sets.")
    p: float | None = Field(description="(1 + b) / (1 + B): b of B random sets with at least as large a change.")
    drawn: str = Field(description="How the random sets were drawn.")


class JointCells(NamedTuple):
    """The set as one cell, then its random sets; empty when not asked for."""

    cells: tuple[Cell, ...]
    drawn: str


NOT_JOINT = JointCells((), "")
Positions = tuple[tuple[int, ...], ...] | None


def joint_cells(
    kind: SiteKind, sites: Sequence[Site], shape: Shape, positions: Positions, *, controls: int, seed: int
) -> JointCells:
    """One cell for the set and one for each random set of its size and layers.

    Raises:
        BadArguments: too few other parts to draw from.
    """
    drawn = _controls(kind, sites, shape, controls, seed)
    indexed = kind in LETTERS
    others = [[Site(kind, layer, i if indexed else None) for layer, i in one] for one in drawn.sets]
    return JointCells(tuple(Cell(tuple(one), positions) for one in (sites, *others)), drawn.note)


def _controls(kind: SiteKind, sites: Sequence[Site], shape: Shape, count: int, seed: int) -> Controls:
    if not count:
        return Controls((), "none asked for")
    width = shape.count(kind) if kind in LETTERS else 1
    claimed = [(site.layer or 0, site.index or 0) for site in sites]
    if len(claimed) == width * shape.n_layers:
        return Controls((), "none: the set is every part there is")
    return random_controls(claimed, dict.fromkeys(range(shape.n_layers), width), count=count, seed=seed)


def joint_effect(
    parts: Sequence[Site | str], metric: str, unit: str, changes: ndarray, singles: ndarray, base: ndarray,
    other: ndarray, clusters: Clusters, drawn: str,
) -> JointEffect:  # fmt: skip
    """The set's change beside its controls': changes [1 + B, prompts], the set first; singles [parts, prompts].

    The fraction is of the way from `base` to `other` (zeros for an ablation), both [prompts].
    """
    means = changes.mean(1)
    share = normalised(changes[0] + base, base, other, clusters).intervals
    controls, alone = tuple(float(c) for c in means[1:]), singles.mean(1)
    names = tuple(part if isinstance(part, str) else unit_name(part) for part in parts)
    largest = int(abs(alone).argmax()) if len(alone) == len(names) else None
    return JointEffect(
        parts=names,
        metric=metric,
        unit=unit,
        change=clusters.means(changes[0]).estimate(),
        fraction=None if share is None else float(share.mean),
        sum_of_singles=float(alone.sum()),
        strongest=None if largest is None else names[largest],
        strongest_change=None if largest is None else float(alone[largest]),
        control_changes=controls,
        control_mean=sum(controls) / len(controls) if controls else None,
        p=control_p(float(means[0]), controls) if controls else None,
        drawn=drawn,
    )


def joint_in_words(joint: JointEffect, of: str) -> str:
    """The set beside its random sets in a sentence; `of` says what the fraction is of."""
    share = "" if joint.fraction is None else f", {joint.fraction:.0%} of {of}"
    several = len(joint.parts) > 1 and joint.strongest_change is not None
    alone = f" ({joint.strongest} alone {joint.strongest_change:+.3g})" if several else ""
    text = f"All {len(joint.parts)} together: {joint.change.mean:+.3g} {joint.unit}{share}{alone}"
    if joint.p is None:
        return f"{text} (no random sets: {joint.drawn})."
    return f"{text}; {len(joint.control_changes)} random sets: {joint.control_mean:+.3g} on average, p = {joint.p:.3g}."


def few_controls(joint: Sequence[JointEffect]) -> tuple[str, ...]:
    """A warning where the random sets are too few for p to be small."""
    return tuple(
        f"With {len(j.control_changes)} random sets p cannot be below {1 / (1 + len(j.control_changes)):.2g}; "
        f"{ENOUGH} or more allow .05 ({j.drawn})."
        for j in joint[:1]
        if j.p is not None and len(j.control_changes) < ENOUGH
    )


def beside_controls(joint: JointEffect) -> Bars:
    """The set and its random sets, smallest first."""
    controls = sorted(joint.control_changes)
    return Bars(
        title=f"{joint.metric}: the set together and {len(controls)} random sets of {len(joint.parts)}",
        value_title=f"change of {joint.metric} ({joint.unit})",
        labels=("the set", *(f"random {i + 1}" for i in range(len(controls)))),
        values=(joint.change.mean, *controls),
        groups=("the set", *("random sets" for _ in controls)),
    )
