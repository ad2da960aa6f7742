"""Features of a dictionary as the parts of an ablation: one by one, together, and random sets of other active features.

A feature is taken away by adding -scale(x) f_i d_i, or set to another activation g by adding scale(x) (g - f_i) d_i:
its mean at matched positions over the half of the prompts that shares no names with the prompt, or that of another
prompt. All else, what the dictionary does not explain (its error) included, stays.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..dictionaries.protocol import Dictionary
from ..dictionaries.reading import encode_tokens
from ..errors import BadArguments
from ..model.protocol import Model
from ..model.sites import Site
from ..model.sweep_plan import Cell
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts
from .alignment import layout_of, matched
from .features import (
    FeatureValues,
    Positions,
    ablation_cells,
    feature_name,
    feature_values,
    massive_tokens,
    parse_features,
)
from .grids import CellGrid
from .joint import JointCells
from .replacements import deranged, halves

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Ablation = Literal["zero", "mean", "resample"]
BECOMES: Mapping[Ablation, str] = {
    "zero": "0",
    "mean": "its mean at matched positions over the prompts that share no names with the prompt",
    "resample": "that of another prompt of the same template at matched positions",
}
TRIES = 20  # draws for each random set that is wanted


class FeatureGrid(CellGrid):
    """Features in a row; a cell is called by its feature."""

    def name(self, cell: int) -> str:
        return self.labels(cell)[0]


class FeatureParts(NamedTuple):
    """The cells of an ablation of features, and what rule 'add' writes."""

    singles: FeatureGrid
    together: JointCells
    values: Mapping[Site, Tensor]
    warnings: tuple[str, ...]
    name: Callable[[int], str]  # of a feature
    away: Callable[[Sequence[tuple[int, ...]]], tuple[tuple[Cell, ...], Mapping[Site, Tensor]]]  # cells of other sets


def feature_parts(
    model: Model, dictionary: Dictionary, prompts: EncodedPrompts, named: Sequence[int | str], positions: Positions, *,
    ablation: Ablation, together: bool, controls: int, seed: int, budget_bytes: int,
) -> FeatureParts:  # fmt: skip
    """Each feature as a cell, then (where asked for) all of them, and random sets beside.

    Raises:
        BadArguments: features that do not exist, or none of them is active on these tokens.
        BadPrompts: no other prompt to take a mean or sample from.
        WouldNotFit: the values are over half of the budget.
    """
    tokens, name = prompts.clean, partial(feature_name, dictionary.info.writes)
    chosen = parse_features(named, dictionary)
    active = active_features(model, dictionary, tokens, positions, budget_bytes)
    if not set(chosen) & set(active):
        raise BadArguments(
            f"none of {', '.join(map(name, chosen))} is active at these positions: taking them away changes nothing. "
            "encode_sae lists the features that are."
        )
    others = [f for f in active if f not in set(chosen)]
    drawn = _drawn(others, len(chosen), controls, seed) if together else []
    places = _replacements(others, len(chosen), controls, seed) if together and drawn and len(chosen) > 1 else ()
    sets = [*((f,) for f in chosen), *([chosen] if together else []), *drawn]
    every = sorted({f for one in (*sets, *places) for f in one})
    found = feature_values(model, dictionary, tokens, every, budget_bytes)
    warnings = massive_tokens(found, positions)
    found = replace(found, values=found.values - becomes(prompts, found, ablation, seed))

    def away(sets: Sequence[tuple[int, ...]]) -> tuple[tuple[Cell, ...], Mapping[Site, Tensor]]:
        return ablation_cells(model, dictionary, found, sets, positions, budget_bytes)

    cells, values = away(sets)
    labels, n = tuple(map(name, chosen)), len(chosen)
    note = f"random sets of other features active on these prompts ({len(active)} are)"
    few = "" if len(drawn) == controls else f"; no more than {len(drawn)} could be drawn"
    singles = FeatureGrid((("feature", labels),), cells[:n], tuple(range(n)))
    joint = JointCells(cells[n:], note + few if together else "", chosen, labels, places)
    return FeatureParts(singles, joint, values, warnings, name, away)


def becomes(prompts: EncodedPrompts, found: FeatureValues, ablation: Ablation, seed: int) -> Float[Tensor, "B T n"]:
    """What each feature's activation becomes at every position.

    Raises:
        BadPrompts: no other prompt to take a mean or sample from.
    """
    out = found.values * 0
    if ablation == "zero":
        return out
    if ablation == "resample":
        references = {row: [other] for row, other in enumerate(deranged(prompts, seed))}
    else:
        pairs = halves(prompts, seed)
        references = {row: b for pair in pairs for a, b in (pair, pair[::-1]) for row in a}
    for row, others in references.items():
        own = layout_of(prompts, row)
        for other in others:
            at = matched(own, layout_of(prompts, other))
            out[row, : own.length] += found.values[other, at] / len(others)
    return out


def active_features(
    model: Model, dictionary: Dictionary, tokens: Tokens, positions: Positions, budget_bytes: int
) -> tuple[int, ...]:
    """Features active on at least one prompt, at the positions."""
    import numpy as np

    encoded = encode_tokens(model, dictionary, tokens, budget_bytes=budget_bytes)
    if positions is None:
        return tuple(np.unique(encoded.feature).tolist())
    here = np.array([p in positions[r] for r, p in zip(encoded.rows, encoded.positions, strict=True)])
    return tuple(np.unique(encoded.feature[here[encoded.token]]).tolist())


def _drawn(others: Sequence[int], size: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """Distinct random sets of other features."""
    if len(others) < size:
        return []
    rng = random.Random(f"{seed} feature controls")
    sets: dict[tuple[int, ...], None] = {}
    for _ in range(TRIES * count):
        if len(sets) == count:
            break
        sets[tuple(sorted(rng.sample(others, size)))] = None
    return list(sets)


def _replacements(others: Sequence[int], parts: int, count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each of the chosen features, others to put in its place."""
    rng = random.Random(f"{seed} features in place")
    return tuple(tuple(sorted(rng.sample(others, min(count, len(others))))) for _ in range(parts))
