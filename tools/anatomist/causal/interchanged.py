"""What interchanges at one place gave: the subspace, its parts and its controls, and what a reader must know of them.

Source: Geiger et al., arXiv 2303.02536, section 3 (interchange intervention accuracy); Makelov et al., arXiv 2311.17030
(row space and null space).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..result import Estimate, Frozen

MARGIN = 0.1  # of accuracy; smaller differences are not warned of
ROUNDING = 1e-9  # of accuracy; an interval that ends nearer to 0 ends at 0


class Interchange(Frozen):
    """What the model says after one kind of interchange, on prompts not learned from."""

    what: str = Field(description="Which part of the place was taken from the source run.")
    accuracy: Estimate = Field(description="Share of interchanges after which the wanted answer beats the base's own.")
    top1: Estimate = Field(description="Share after which the wanted answer is the likeliest token.")
    logit_diff: Estimate = Field(description="Wanted answer minus the base's own, in logits.")


class ClassMeans(Interchange):
    """The rival that needs no search: as many directions along which the answers' class means lie apart."""

    gain: Estimate = Field(
        description="Accuracy of the subspace minus that of the class means, interchange by interchange; above 0 the "
        "subspace does better."
    )
    cosine: float = Field(description="Mean cosine of the principal angles between it and the subspace.")
    classes: int = Field(description="Classes: different answers among the prompts learned from.")
    dimension: int = Field(description="Dimensions; fewer than the subspace's only where the prompts differ in fewer.")
    from_means: int = Field(
        description="Dimensions that the class means span (fewer than there are classes); the others are the principal "
        "directions of the paired differences between the runs."
    )
    array: str = Field(description="Name of the kept array with the basis [dimension, feature].")


class Search(Frozen):
    """One search."""

    seed: int = Field(description="Seed of the start and of the order of prompts.")
    loss: float = Field(description="Cross-entropy of the wanted answer over the last tenth of the steps, in nats.")
    discovery: float = Field(description="Interchange accuracy on the prompts learned from.")
    held_out: float = Field(description="Interchange accuracy on those kept back.")


class Place(Frozen):
    """One place: the subspace, its parts and its controls."""

    name: str = Field(description="Site, layer, head and position.")
    width: int = Field(description="Features of the place.")
    dimension: int = Field(description="Dimensions of the subspace.")
    array: str = Field(description="Name of the kept array with the basis, best seed first [seed, dimension, feature].")
    subspace: Interchange = Field(description="The learned (or given) subspace, averaged over seeds.")
    full: Interchange = Field(description="The whole place: the ceiling, unless other parts of it interfere.")
    none: Interchange = Field(description="Nothing interchanged: the floor.")
    random: Interchange | None = Field(description="Random subspaces of this dimension, averaged.")
    means: ClassMeans | None = Field(
        description="What differs between the answers' means over the prompts learned from, without a search; absent "
        "where a given subspace is judged on the only prompts there are."
    )
    random_model: Interchange | None = Field(description="The same search in an untrained model.")
    random_model_none: Interchange | None = Field(
        description="Nothing interchanged in the untrained model: its floor, near one half where it knows no answer."
    )
    row_space: Interchange | None = Field(
        description="The part of the subspace that what follows can read; absent for q and k, and if there is none."
    )
    null_space: Interchange | None = Field(description="The part that nothing reads; absent for q and k, and if none.")
    row_share: float | None = Field(description="Share of the subspace that lies in the row space; absent for q and k.")
    null_dimensions: int | None = Field(
        description="Dimensions of the place that nothing reads; where 0, the row space rules nothing out."
    )
    searches: tuple[Search, ...] = Field(description="Each seed; empty for a given subspace.")
    agreement: float | None = Field(
        description="Mean cosine of the principal angles between the seeds' subspaces; 1: the same one. Absent below "
        "two seeds."
    )


def judged_in_words(place: Place) -> list[str]:
    """What a careful reader must know of one place."""
    own = place.subspace.accuracy.mean
    found: list[str] = []
    if place.row_space is not None and own - place.row_space.accuracy.mean > MARGIN:
        found.append(
            f"{place.name}: cut down to what the rest of the model can read, the subspace falls from {own:.0%} to "
            f"{place.row_space.accuracy.mean:.0%}: the search leans on directions that nothing reads (an illusion)."
        )
    if place.row_space is None and place.row_share is not None:
        found.append(f"{place.name}: nothing after it reads this subspace at all.")
    if place.random_model is not None and place.random_model_none is not None:
        reached, floor = place.random_model.accuracy.mean, place.random_model_none.accuracy.mean
        if reached - floor > MARGIN and own - place.none.accuracy.mean - (reached - floor) < MARGIN:
            found.append(
                f"{place.name}: the same search in an untrained model lifts accuracy from {floor:.0%} to {reached:.0%} "
                f"(here {place.none.accuracy.mean:.0%} to {own:.0%}): the search itself may be what gives the answer."
            )
    if place.means is not None and compared(place.means) != "better":
        found.append(f"{place.name}: {_beside_means(place, place.means)}")
    if place.random is not None and own - place.random.accuracy.mean < MARGIN:
        found.append(f"{place.name}: no better than random subspaces of {place.dimension} dimension(s).")
    if place.full.accuracy.mean + MARGIN < own:
        found.append(
            f"{place.name}: the subspace does more than the whole place ({place.full.accuracy.mean:.0%}): other "
            "directions there work against the interchange."
        )
    gap = [s.discovery - s.held_out for s in place.searches]
    if gap and sum(gap) / len(gap) > MARGIN:
        more = f"{sum(gap) / len(gap):.0%} more on the prompts learned from"
        found.append(f"{place.name}: {more}: use more prompts, of more kinds.")
    return found


def compared(means: ClassMeans) -> Literal["better", "worse", "same"]:
    """How the subspace does beside the class means: by the interval of the paired difference; without one, the same."""
    low, high = means.gain.low, means.gain.high
    if low is not None and low > ROUNDING:
        return "better"
    return "worse" if high is not None and high < -ROUNDING else "same"


def gain_in_words(means: ClassMeans) -> str:
    """The paired difference in points of accuracy."""
    gain = means.gain
    if gain.low is None or gain.high is None:
        return f"{_points(gain.mean)} points, no interval"
    return f"{_points(gain.mean)} points [{_points(gain.low)}, {_points(gain.high)}]"


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0:+.1f}"  # + 0: no -0.0


def _beside_means(place: Place, means: ClassMeans) -> str:
    what = "the search" if place.searches else "the given subspace"
    verdict = "does worse than" if compared(means) == "worse" else "adds nothing over"
    return (
        f"{what} {verdict} the difference of class means, which needs none: {place.subspace.accuracy.mean:.1%} against "
        f"{means.accuracy.mean:.1%}, {gain_in_words(means)}. The plain directions are kept as {means.array}."
    )


def kinds_of(*places: Place) -> dict[str, Interchange]:
    """The kinds of interchange made at any of the places, floor to ceiling, each by its field and as it first was."""
    order = (
        "none", "random", "random_model_none", "random_model", "means", "null_space", "row_space", "subspace", "full",
    )  # fmt: skip
    found = ((field, getattr(place, field)) for field in order for place in reversed(places))
    return {field: one for field, one in found if one is not None}
