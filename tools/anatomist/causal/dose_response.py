"""The response of a metric to the strength of an edit: data, numbers and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..figures import Lines, Series
from ..measures.statistics import Clusters, control_p
from ..result import Estimate, Frozen

if TYPE_CHECKING:
    from numpy import ndarray


class Dose(Frozen):
    """One strength."""

    strength: float = Field(description="As given, in the unit given.")
    length: float = Field(description="Length of the vector that was added.")
    value: Estimate = Field(description="The metric, steered.")
    change: Estimate = Field(description="Change of the metric by adding the direction.")
    wrong_sign: Estimate = Field(description="Change by subtracting it.")
    random: tuple[float, ...] = Field(description="Mean change of each random direction of the same length.")
    p: float | None = Field(description="Against the random directions; not corrected for the strengths.")
    beside: tuple[Estimate, ...] = Field(description="Change of each direction of `beside`, at the same length.")
    loss_added: float = Field(description="Added loss on neutral text, nats a token.")
    loss_added_random: float | None = Field(description="The same, mean of at most three random directions.")


class SteeredAt(Frozen):
    """One place."""

    where: str = Field(description="The place, or places together.")
    median_norm: float = Field(description="Median length of the activations there on these prompts.")
    cosine: float = Field(description="Mean cosine between the direction and the activations it is added to.")
    doses: tuple[Dose, ...] = Field(description="From the weakest on.")
    p: float | None = Field(
        description="Against the random directions, corrected for the strengths: each strength's change is divided by "
        "what any direction does at it, and the largest counts."
    )


def dose(
    strength: float, size: float, value: ndarray, changes: ndarray, others: int, clusters: Clusters,
    added: Sequence[float],
) -> Dose:  # fmt: skip
    """One strength: changes [conditions, prompts]: the direction, its opposite, those beside, random ones."""
    random = tuple(float(c) for c in changes[2 + others :].mean(1))
    return Dose(
        strength=strength,
        length=size,
        value=clusters.means(value).estimate(),
        change=clusters.means(changes[0]).estimate(),
        wrong_sign=clusters.means(changes[1]).estimate(),
        random=random,
        p=control_p(float(changes[0].mean()), random) if random else None,
        beside=tuple(clusters.means(c).estimate() for c in changes[2 : 2 + others]),
        loss_added=added[0],
        loss_added_random=average(added[1:]) if added[1:] else None,
    )


def corrected_p(own: ndarray, random: ndarray) -> float:
    """p of the largest change over S strengths, [S] against [S, B], each strength in its own unit.

    The unit is the root mean square over all B + 1 directions, so that the strength at which every direction breaks the
    model does not decide alone, and the directions stay exchangeable.
    """
    import numpy as np

    both = np.concatenate([own[:, None], random], axis=1)
    unit = np.sqrt((both**2).mean(1, keepdims=True))
    largest = abs(both / np.where(unit > 0, unit, 1.0)).max(0)
    return control_p(float(largest[0]), largest[1:].tolist())


def response(
    place: SteeredAt, base: Estimate, metric: str, unit: str, beside: Sequence[str], instruction: Estimate | None
) -> Lines:
    """The metric over strengths of both signs, with the whole range of the random directions."""
    doses = place.doses
    down = [(-d.strength, _shifted(base, d.wrong_sign)) for d in reversed(doses)]
    points = [*down, (0.0, base), *((d.strength, d.value) for d in doses)]
    x = tuple(s for s, _ in points)
    series = [
        Series(
            name="direction", values=tuple(e.mean for _, e in points),
            low=tuple(e.low for _, e in points), high=tuple(e.high for _, e in points),
        )
    ]  # fmt: skip
    empty: tuple[float | None, ...] = (None,) * len(down)
    if doses[0].random:
        means, lows, highs = (
            (*empty, base.mean, *(base.mean + f(d.random) for d in doses)) for f in (average, min, max)
        )
        series.append(Series(name="random directions", values=means, low=lows, high=highs))
    for i, name in enumerate(beside):
        series.append(Series(name=name, values=(*empty, base.mean, *(base.mean + d.beside[i].mean for d in doses))))
    if instruction is not None:
        series.append(Series(name="instruction", values=(base.mean + instruction.mean,) * len(x)))
    return Lines(
        title=f"{metric} at {place.where}", x_title="strength", x=x, y_title=f"{metric} ({unit})",
        series=tuple(series), reference=base.mean,
    )  # fmt: skip


def loss_response(place: SteeredAt) -> Lines:
    """Added loss over strengths."""
    series = [Series(name="direction", values=(0.0, *(d.loss_added for d in place.doses)))]
    if any(d.loss_added_random is not None for d in place.doses):
        series.append(Series(name="random directions", values=(0.0, *(d.loss_added_random for d in place.doses))))
    return Lines(
        title=f"cost at {place.where}", x_title="strength", x=(0.0, *(d.strength for d in place.doses)),
        y_title="added loss (nats a token)", series=tuple(series), reference=0.0,
    )  # fmt: skip


def _shifted(base: Estimate, change: Estimate) -> Estimate:
    """The metric after a change, with the change's interval."""
    ends = {end: None if (v := getattr(change, end)) is None else base.mean + v for end in ("low", "high")}
    return change.model_copy(update={"mean": base.mean + change.mean, **ends})


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
