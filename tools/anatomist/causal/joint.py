"""A set of parts edited at once, beside random sets of its size: the joint effect, its words and its picture.

Two questions. Do other parts do as much? Random sets hold none of the set's parts, and p_others counts their joint
changes. By itself it is no p of a set drawn at random: where one part outweighs all others, every set that holds it
beats sets that cannot (4 of 24 heads drawn at random hold a given one in 17% of draws). Does every part earn its place?
Each is held against others in its place, the rest kept (`each_part.py`). p is the largest of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..figures import Bars
from ..measures.metrics import UNITS, MetricName
from ..measures.statistics import Clusters, Place, control_p, normalised, random_controls, random_replacements
from ..model.protocol import Model
from ..model.sites import Shape, Site, SiteKind
from ..model.sweep_plan import Cell, SweepPlan, SweepProgress
from ..result import Estimate, Frozen
from .each_part import Part, PartTest, SetChanges, parts_test
from .units import LETTERS, unit_name

if TYPE_CHECKING:
    from numpy import ndarray

    from ..model.sweep import SweepResult

MOST_BARS = 20  # random sets drawn one by one
QUANTILES = (
    ("lowest random", 0.0), ("10% of random", 0.1), ("median random", 0.5), ("90% of random", 0.9),
    ("highest random", 1.0),
)  # fmt: skip
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
    sum_of_singles: float | None = Field(
        description="Sum of the parts' changes one by one; differs where parts interact. Absent like `strongest`."
    )
    strongest: str | None = Field(
        description="The part that changes most by itself: the others may be passengers. Absent where parts were "
        "measured position by position."
    )
    strongest_change: float | None = Field(description="Mean change by that part alone.")
    control_changes: tuple[float, ...] = Field(description="Mean change of each random set, in the metric's unit.")
    control_mean: float | None = Field(description="Mean over the random sets.")
    p: float | None = Field(
        description="The largest of p_others and of each part's p: of sets drawn at random at most 5% have .05 or less."
    )
    p_others: float | None = Field(
        description="(1 + b) / (1 + B): b of B random sets without the set's parts with at least as large a change."
    )
    each_part: tuple[PartTest, ...] = Field(
        description="Whether each part earns its place, against others in its place beside the same rest: at most the "
        "five that carry least; empty for one part, without random sets, and where the technique chose the set itself."
    )
    drawn: str = Field(description="How the random sets were drawn.")


class JointCells(NamedTuple):
    """The set as one cell, then its random sets; empty when not asked for."""

    cells: tuple[Cell, ...]
    drawn: str
    claimed: tuple[Part, ...] = ()  # sites, or features
    labels: tuple[str, ...] = ()  # of the claimed parts
    others: tuple[tuple[Part, ...], ...] = ()  # for each claimed part, parts to put in its place: not cells yet

    def of(self, sets: Sequence[tuple[Site, ...]]) -> tuple[Cell, ...]:
        """Cells of other sets of sites, at the same positions."""
        return tuple(Cell(one, self.cells[0].positions) for one in sets)


NOT_JOINT = JointCells((), "")
Positions = tuple[tuple[int, ...], ...] | None


def joint_cells(
    kind: SiteKind, sites: Sequence[Site], shape: Shape, positions: Positions, *, controls: int, seed: int
) -> JointCells:
    """One cell for the set and one for each random set of its size and layers.

    Raises:
        BadArguments: too few other parts to draw from.
    """
    cells = [tuple(sites)]
    width = shape.count(kind) if kind in LETTERS else 1
    names = tuple(map(unit_name, sites))
    if not controls or len(sites) == width * shape.n_layers:
        note = "none: the set is every part there is" if controls else "none asked for"
        return JointCells((Cell(cells[0], positions),), note, cells[0], names)
    claimed = [(site.layer or 0, site.index or 0) for site in sites]
    sizes = dict.fromkeys(range(shape.n_layers), width)
    drawn = random_controls(claimed, sizes, count=controls, seed=seed)
    cells += [_sites(kind, one) for one in drawn.sets]
    replacements = random_replacements(claimed, sizes, count=controls, seed=seed) if len(sites) > 1 else ()
    return JointCells(
        tuple(Cell(one, positions) for one in cells), drawn.note, cells[0], names,
        tuple(_sites(kind, one) for one in replacements),
    )  # fmt: skip


def _sites(kind: SiteKind, places: Sequence[Place]) -> tuple[Site, ...]:
    return tuple(Site(kind, layer, i if kind in LETTERS else None) for layer, i in places)


class FurtherSweeps:
    """Sweeps of sets of parts that are asked for after the main one, on its prompts; `results` says what they cost.

    `plan_of` makes the plan whose cells are the given sets.
    """

    def __init__(
        self, model: Model, plan_of: Callable[[Sequence[tuple[Part, ...]]], SweepPlan], progress: SweepProgress,
        budget_bytes: int,
    ) -> None:  # fmt: skip
        self._model, self._plan_of, self._progress, self._budget = model, plan_of, progress, budget_bytes
        self.results: list[SweepResult] = []

    def __call__(self, sets: Sequence[tuple[Part, ...]]) -> ndarray:
        """Mean change of every metric by every set, [metrics, sets]."""
        from ..model.sweep import sweep  # torch, only where a model is

        # The main sweep's spot check was made on the same plan, with other cells.
        result = sweep(self._model, self._plan_of(sets), self._progress, self._budget, spot_check=False)
        self.results.append(result)
        return (result.values - result.base_values[:, None]).double().mean(-1).numpy()


def joint_effects(
    joint: JointCells, metrics: Sequence[MetricName], changes: ndarray, base: ndarray, other: ndarray,
    clusters: Clusters, further: FurtherSweeps, *, by_part: bool, name: Callable[[Part], str] = unit_name,
) -> tuple[JointEffect, ...]:  # fmt: skip
    """The joint effect by every metric, with the tests of its parts.

    `changes` [metrics, cells, B] are of the sweep whose last cells are `joint.cells`; with `by_part` the cells before
    are the claimed parts one by one. `base` and `other`, both [metrics, B]: see `joint_effect`.
    """
    if not joint.cells:
        return ()
    n = changes.shape[1] - len(joint.cells)
    singles = changes[:, :n] if by_part else changes[:, :0]
    known = SetChanges(further)
    known.know([joint.claimed], changes[:, n : n + 1].mean(-1))
    known.know([(part,) for part in joint.claimed[: singles.shape[1]]], singles.mean(-1))
    return tuple(
        joint_effect(
            joint.labels, metric, UNITS[metric], changes[m, n:], singles[m], base[m], other[m], clusters, joint.drawn,
            parts_test(joint.claimed, joint.others, known, m, name) if joint.others else (),
        )
        for m, metric in enumerate(metrics)
    )  # fmt: skip


def joint_effect(
    names: Sequence[str], metric: str, unit: str, changes: ndarray, singles: ndarray, base: ndarray,
    other: ndarray, clusters: Clusters, drawn: str, each_part: Sequence[PartTest] = (),
) -> JointEffect:  # fmt: skip
    """The set's change beside its controls': changes [1 + B, prompts], the set first; singles [parts, prompts], empty
    where the parts were not measured one by one.

    The fraction is of the way from `base` to `other` (zeros for an ablation), both [prompts].
    """
    means = changes.mean(1)
    share = normalised(changes[0] + base, base, other, clusters).intervals
    controls, alone = tuple(float(c) for c in means[1:]), singles.mean(1)
    largest = int(abs(alone).argmax()) if len(alone) == len(names) else None
    others = control_p(float(means[0]), controls) if controls else None
    return JointEffect(
        parts=tuple(names),
        metric=metric,
        unit=unit,
        change=clusters.means(changes[0]).estimate(),
        fraction=None if share is None else float(share.mean),
        sum_of_singles=None if largest is None else float(alone.sum()),
        strongest=None if largest is None else names[largest],
        strongest_change=None if largest is None else float(alone[largest]),
        control_changes=controls,
        control_mean=sum(controls) / len(controls) if controls else None,
        p=None if others is None else max([others, *(part.p for part in each_part)]),
        p_others=others,
        each_part=tuple(each_part),
        drawn=drawn,
    )


def joint_in_words(joint: JointEffect, of: str) -> str:
    """The set beside its random sets in a sentence; `of` says what the fraction is of."""
    share = "" if joint.fraction is None else f", {joint.fraction:.0%} of {of}"
    several = len(joint.parts) > 1 and joint.strongest_change is not None
    alone = f" ({joint.strongest} alone {joint.strongest_change:+.3g})" if several else ""
    text = f"All {len(joint.parts)} together: {joint.change.mean:+.3g} {joint.unit}{share}{alone}"
    if joint.p_others is None:
        return f"{text} (no random sets: {joint.drawn})."
    sets = f"{len(joint.control_changes)} random sets of other parts: {joint.control_mean:+.3g} on average"
    text = f"{text}; {sets}, p = {joint.p_others:.3g}."
    if not joint.each_part:
        return text
    last = max(joint.each_part, key=lambda part: part.p)
    return (
        f"{text} Each part against others in its place: the least sure is {last.part}, which carries "
        f"{last.carries:.3g}; so do {last.as_strong} of {last.others}, p = {last.p:.3g}."
    )


def few_controls(joint: Sequence[JointEffect]) -> tuple[str, ...]:
    """A warning where the random sets, or the parts in another's place, are too few for p to be small."""
    first = [j for j in joint[:1] if j.p is not None]
    fewest = [min([len(j.control_changes), *(part.others for part in j.each_part)]) for j in first]
    return tuple(
        f"With {n} random sets, or parts in another's place, p cannot be below {1 / (1 + n):.2g}; {ENOUGH} or more "
        f"allow .05 ({j.drawn})."
        for j, n in zip(first, fewest, strict=True)
        if n < ENOUGH
    )


def beside_controls(joint: JointEffect) -> tuple[Bars, ...]:
    """The set and its random sets, smallest first, many of them as quantiles; then each part of the set."""
    controls = sorted(joint.control_changes)
    random = [(f"random {i + 1}", value) for i, value in enumerate(controls)]
    if len(random) > MOST_BARS:
        random = [(name, controls[round(at * (len(controls) - 1))]) for name, at in QUANTILES]
    sets = Bars(
        title=f"{joint.metric}: the set together and {len(controls)} random sets of {len(joint.parts)}",
        value_title=f"change of {joint.metric} ({joint.unit})",
        labels=("the set", *(name for name, _ in random)),
        values=(joint.change.mean, *(value for _, value in random)),
        groups=("the set", *("random sets" for _ in random)),
    )
    if not joint.each_part:
        return (sets,)
    return sets, Bars(
        title=f"{joint.metric}: what each part carries, and how many others in its place carry as much",
        value_title=f"unsigned change of {joint.metric} ({joint.unit})",
        labels=tuple(f"{t.part}: {t.as_strong} of {t.others}, p = {t.p:.2g}" for t in joint.each_part),
        values=tuple(t.carries for t in joint.each_part),
    )
