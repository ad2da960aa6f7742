"""Effects of a sweep's cells: raw change, fraction of the gap, intervals, and which cells stand out.

x: metric with the edit; base: of the run that is edited; other: of the run it is compared with. Means run over prompts.
change = mean(x - base); fraction = mean(x - base) / mean(other - base), a ratio of means (a mean of ratios is ruled by
the prompts whose gap is near 0). p-values are sign flips of whole clusters, adjusted over cells by Holm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..measures.statistics import Clusters, Intervals, holm, normalised, sign_flip
from ..result import Estimate, Frozen, Grid
from .grids import CellGrid

if TYPE_CHECKING:
    from numpy import ndarray

NEGLIGIBLE = 1e-4  # in the metric's unit: two ways of computing a cell agree to about this
SIGNIFICANT = 0.05
LISTED = 10


class MetricEffects(Frozen):
    """What every cell does to one metric."""

    metric: str = Field(description="Name of the metric.")
    unit: str = Field(description="Its unit.")
    base: Estimate = Field(description="Metric of the run that is edited, before any edit.")
    other: Estimate | None = Field(description="Metric of the run it is patched from; absent for ablations.")
    change: Grid = Field(description="Mean change of the metric per cell: with the edit minus without. Primary.")
    low: Grid | None = Field(description="Lower interval ends of the change; absent with a single cluster.")
    high: Grid | None = Field(description="Upper interval ends of the change; absent with a single cluster.")
    fraction: Grid | None = Field(description="Mean change over mean gap, not clipped; absent when withheld.")
    withheld: str | None = Field(description="Why there are no fractions.")


class StandOut(Frozen):
    """A cell whose effect is large, with the evidence that it is not chance."""

    cell: str = Field(description="Which cell: 'L23H3', 'L14 resid_pre at 9: John'.")
    change: Estimate = Field(description="Mean change of the primary metric.")
    fraction: float | None = Field(description="As a fraction of the gap; absent when withheld.")
    p_holm: float | None = Field(description="Sign-flip p adjusted over all cells by Holm; absent with one cluster.")


def metric_effects(
    cells: CellGrid, metric: str, unit: str, values: ndarray, base: ndarray, other: ndarray | None, clusters: Clusters,
) -> MetricEffects:  # fmt: skip
    """Effects of one metric: values [cells, B], base [B], other [B]. Without another run (ablations) the gap is the
    baseline itself, down to 0: the fraction is the share of the baseline that is lost."""
    change = clusters.means((values - base).T)
    shares = normalised(values.T, base, other if other is not None else base * 0, clusters)
    fraction = None if shares.intervals is None else shares.intervals.mean
    of = "fraction of the gap" if other is not None else "fraction of the baseline lost"
    before = clusters.means(base).estimate()
    gap = f"the gap between the runs, {shares.gap}," if other is not None else f"the baseline, {before},"
    return MetricEffects(
        metric=metric,
        unit=unit,
        base=before,
        other=None if other is None else clusters.means(other).estimate(),
        change=cells.fill(f"change of {metric}", unit, change.mean),
        low=_side(cells, f"lower end, change of {metric}", unit, change.low),
        high=_side(cells, f"upper end, change of {metric}", unit, change.high),
        fraction=_side(cells, of, of, fraction),
        withheld=None if shares.intervals is not None else f"no fractions are given, for {gap} has 0 in its interval.",
    )


def _side(cells: CellGrid, name: str, unit: str, values: ndarray | None) -> Grid | None:
    return None if values is None else cells.fill(name, unit, values)


def stand_out(
    names: Sequence[str], changes: ndarray, labels: Sequence[str], fractions: Grid | None, where: Sequence[int],
    *, seed: int,
) -> tuple[StandOut, ...]:  # fmt: skip
    """The largest cells that survive Holm at .05; with a single cluster the largest, without p. changes [B, cells]."""
    clusters = Clusters(labels, seed=seed)
    intervals = clusters.means(changes)
    adjusted = holm(sign_flip(changes, labels, seed=seed).tolist()) if clusters.count > 1 else None
    order = sorted(range(len(names)), key=lambda c: -abs(intervals.mean[c]))
    kept = [c for c in order if abs(intervals.mean[c]) > NEGLIGIBLE and (adjusted is None or adjusted[c] < SIGNIFICANT)]
    return tuple(_stand_out(c, names, intervals, fractions, where, adjusted) for c in kept[:LISTED])


def _stand_out(
    c: int, names: Sequence[str], intervals: Intervals, fractions: Grid | None, where: Sequence[int],
    adjusted: Sequence[float] | None,
) -> StandOut:  # fmt: skip
    values = fractions.values if fractions is not None else None
    return StandOut(
        cell=names[c],
        change=intervals.estimate(c),
        fraction=None if values is None else values[where[c]],
        p_holm=None if adjusted is None else adjusted[c],
    )


def in_words(found: Sequence[StandOut], cells: int, unit: str, clusters: int) -> str:
    """One sentence on the cells that stand out, and how that was judged."""
    listed = "; ".join(f"{f.cell} {f.change.mean:+.3g}" for f in found[:5])
    if clusters < 2:
        return f"Largest of {cells} cells ({unit}; one prompt, so no test): {listed or 'none moves the metric'}."
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return f"Stand out of {cells} cells ({unit}, Holm p < {SIGNIFICANT:g}): {listed}{more}."
    return f"No cell of {cells} stands out after Holm's correction over all cells ({clusters} clusters of prompts)."


def too_few(clusters: int, cells: int) -> tuple[str, ...]:
    """A warning where even the clearest effect could not survive the correction: the smallest p is 2 / 2**G."""
    if clusters < 2 or cells * 2.0 ** (1 - clusters) < SIGNIFICANT:
        return ()
    return (
        f"With {clusters} independent clusters of prompts the smallest possible p is {2.0 ** (1 - clusters):.2g}: none "
        f"of {cells} cells can survive Holm. Use more prompts or fewer cells for a test; the effects themselves stand.",
    )
