"""What interchanges at one place gave: the subspace, its parts and its controls, and what a reader must know of them.

Source: Geiger et al., arXiv 2303.02536, section 3 (interchange intervention accuracy); Makelov et al., arXiv 2311.17030
(row space and null space).
"""

from __future__ import annotations

from pydantic import Field

from ..result import Estimate, Frozen

MARGIN = 0.1  # of accuracy; smaller differences are not warned of


class Interchange(Frozen):
    """What the model says after one kind of interchange, on prompts not learned from."""

    what: str = Field(description="Which part of the place was taken from the source run.")
    accuracy: Estimate = Field(description="Share of interchanges after which the wanted answer beats the base's own.")
    top1: Estimate = Field(description="Share after which the wanted answer is the likeliest token.")
    logit_diff: Estimate = Field(description="Wanted answer minus the base's own, in logits.")


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


def kinds_of(*places: Place) -> dict[str, Interchange]:
    """The kinds of interchange made at any of the places, floor to ceiling, each by its field and as it first was."""
    order = (
        "none", "random", "random_model_none", "random_model", "null_space", "row_space", "subspace", "full",
    )  # fmt: skip
    found = ((field, getattr(place, field)) for field in order for place in reversed(places))
    return {field: one for field, one in found if one is not None}
