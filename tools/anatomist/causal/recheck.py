"""Estimates beside the exact values they stand for: correlation, signs, and what was scored about 0 but is not.

The k largest estimates are re-checked, a random sample of the rest (which shows what the estimates miss), and whatever
the caller has reason to doubt. Agreement of signs and misses are judged where the exact value is of some size: at least
a tenth of the largest that was re-checked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..figures import Scatter
from ..measures.statistics import Clusters, Intervals
from ..result import Estimate, Frozen

if TYPE_CHECKING:
    from numpy import ndarray

OF_SIZE = 0.1  # of the largest exact value
ABOUT_ZERO = 0.01  # of it
REAL = 1e-6  # exact effects below are those of parts that do nothing
FEW = 3  # points that a correlation needs
LISTED = 60


class Rechecked(Frozen):
    """One estimate and the exact value."""

    name: str = Field(description="Which cell, node or edge.")
    chosen: str = Field(description="Why it was re-checked: 'top', 'saturated' or 'random'.")
    estimate: float = Field(description="First-order estimate, mean over prompts, in the metric's unit.")
    exact: Estimate = Field(description="Exact change, mean over prompts with interval.")


class Recheck(Frozen):
    """How the estimates compare with exact patching."""

    cells: tuple[Rechecked, ...] = Field(description="At most 60 of those re-checked, the largest exact values first.")
    checked: int = Field(description="How many were computed exactly.")
    of: int = Field(description="How many there are.")
    pearson: float | None = Field(description="Correlation over all re-checked; absent where one side does not vary.")
    pearson_random: float | None = Field(description="Over the random sample alone: nothing was selected there.")
    sign_agreement: float | None = Field(
        description="Share with the same sign, of those whose exact value is at least a tenth of the largest; about 0 "
        "does not agree."
    )
    wrong_sign: tuple[str, ...] = Field(
        description="Estimate of the wrong sign: exact interval without 0, at least a hundredth of the largest."
    )
    missed: tuple[str, ...] = Field(
        description="Those of that size whose estimate is under a hundredth of the largest exact value: scored about 0."
    )
    auroc: float | None = Field(
        description="Chance that one with an exact effect (over 1e-6) is ranked above one without, by magnitude; "
        "absent unless both kinds were re-checked. It says nothing of sizes."
    )


def to_recheck(
    estimates: Sequence[float], *, top: int, sample: int, doubted: Sequence[int] = (), seed: int
) -> dict[int, str]:
    """Indices to compute exactly, with the reason; everything where top and sample together reach all."""
    order = sorted(range(len(estimates)), key=lambda i: -abs(estimates[i]))
    chosen = dict.fromkeys(order[:top], "top")
    chosen |= {i: "saturated" for i in doubted if i not in chosen}
    rest = [i for i in range(len(estimates)) if i not in chosen]
    chosen |= dict.fromkeys(random.Random(f"{seed} recheck").sample(rest, min(sample, len(rest))), "random")
    return dict(sorted(chosen.items()))


def compared(
    names: Sequence[str], chosen: Mapping[int, str], estimates: Sequence[float], exact: ndarray, clusters: Clusters
) -> Recheck:
    """Estimates [all] beside the exact changes [chosen, prompts] of some of them."""
    means = [float(row.mean()) for row in exact]
    guesses = [float(estimates[i]) for i in chosen]
    largest = max((abs(x) for x in means), default=0.0)
    sized = [j for j, x in enumerate(means) if largest > REAL and abs(x) >= OF_SIZE * largest]
    missed = [j for j in sized if abs(guesses[j]) < ABOUT_ZERO * largest]
    intervals = clusters.means(exact.T)
    sure = range(len(means)) if intervals.low is None else [j for j in range(len(means)) if _sure(intervals, j)]
    least = OF_SIZE if intervals.low is None else ABOUT_ZERO
    wrong = [j for j in sure if abs(means[j]) >= max(least * largest, REAL) and guesses[j] * means[j] < 0]
    wrong = [j for j in wrong if j not in missed]
    disagree = {*missed, *wrong} & set(sized)
    index, why = list(chosen), list(chosen.values())
    at_random = [j for j, reason in enumerate(why) if reason == "random"]
    order = sorted(range(len(index)), key=lambda j: -abs(means[j]))
    return Recheck(
        cells=tuple(
            Rechecked(
                name=names[index[j]], chosen=why[j], estimate=guesses[j], exact=intervals.estimate(j)
            )
            for j in order[:LISTED]
        ),
        checked=len(index),
        of=len(names),
        pearson=pearson(guesses, means),
        pearson_random=pearson([guesses[j] for j in at_random], [means[j] for j in at_random]),
        sign_agreement=1 - len(disagree) / len(sized) if sized else None,
        wrong_sign=tuple(names[index[j]] for j in sorted(wrong, key=lambda j: -abs(means[j]))),
        missed=tuple(names[index[j]] for j in sorted(missed, key=lambda j: -abs(means[j]))),
        auroc=auroc([abs(g) for g in guesses], [abs(x) > REAL for x in means]),
    )


def _sure(intervals: Intervals, j: int) -> bool:
    """Whether the interval of an exact value leaves out 0."""
    assert intervals.low is not None
    assert intervals.high is not None
    return not intervals.low[j] <= 0 <= intervals.high[j]


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Correlation; none with fewer than three points or where one side does not vary."""
    import numpy as np

    if len(a) < FEW or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def auroc(scores: Sequence[float], real: Sequence[bool]) -> float | None:
    """Area under the ROC curve: pairs of a real one and another that are ranked right, ties half."""
    yes, no = ([s for s, r in zip(scores, real, strict=True) if r is side] for side in (True, False))
    if not yes or not no:
        return None
    return sum((y > n) + (y == n) / 2 for y in yes for n in no) / (len(yes) * len(no))


def in_words(found: Recheck) -> str:
    """How far the estimates can be trusted, in a sentence."""
    how = "all" if found.checked == found.of else f"{found.checked} of {found.of}"
    r = "" if found.pearson is None else f", Pearson {found.pearson:.2f}"
    signs = "" if found.sign_agreement is None else f", sign right on {found.sign_agreement:.0%} of the large ones"
    return f"Exact re-check of {how}{r}{signs}."


def doubts(found: Recheck) -> tuple[str, ...]:
    """Warnings: wrong signs and misses by name, and a rank that hides them."""
    warnings: list[str] = []
    if found.wrong_sign:
        values = {c.name: f" (exact {c.exact.mean:+.2g}, estimated {c.estimate:+.2g})" for c in found.cells}
        named = [f"{name}{values.get(name, '')}" for name in found.wrong_sign]
        warnings.append(f"The estimate has the WRONG SIGN for {_some(named)}; use the exact values.")
    if found.missed:
        ranked = "" if found.auroc is None or found.auroc < 1 else (
            " The ranking alone hides this: AUROC is 1.000, for tiny numbers still rank above exact zeros."
        )  # fmt: skip
        warnings.append(
            f"The estimate is about 0 for {_some(found.missed)}, whose exact effect is large (saturation or cancelling "
            f"paths): others that were not re-checked may be missed too.{ranked}"
        )
    if found.pearson is not None and found.pearson < 0.8:
        warnings.append(
            f"Estimates and exact values correlate at {found.pearson:.2f} only: rank by exact patching before "
            "claiming anything."
        )
    return tuple(warnings)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def beside_exact(found: Recheck, unit: str) -> Scatter:
    """Estimates against exact values."""
    return Scatter(
        title="estimate against exact value, re-checked ones",
        x_title=f"exact change ({unit})",
        y_title=f"estimate ({unit})",
        x=tuple(c.exact.mean for c in found.cells),
        y=tuple(c.estimate for c in found.cells),
        labels=tuple(c.name for c in found.cells),
        groups=tuple(c.chosen for c in found.cells),
        diagonal=True,
    )
