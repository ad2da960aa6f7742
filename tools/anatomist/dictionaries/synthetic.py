"""Dictionaries on data whose features are known: the only place where it can be seen whether they are found.

SAELens's generator makes x = sum of active features; a dictionary is trained on x alone, and its decoder is matched one
to one with the true features: MCC, the mean absolute cosine over the best matching. A random dictionary has an MCC well
over zero (in few dimensions something is always near), so it stands beside.

Source: Chanin & Garriga-Alonso, SAELens `synthetic`; O'Neill et al., arXiv 2505.20254 (MCC of dictionaries); Korznikov
et al., arXiv 2602.14111 (random dictionaries; explained variance without recovery).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from pydantic import Field

from ..model.quiet import quiet
from ..result import Frozen
from .training.recipe import Recipe

SAMPLES = 100_000  # of training data, drawn once and gone through again
JUDGED = 20_000  # samples that the figures are measured on
RANDOM = 10  # random dictionaries whose MCC is averaged
FOUND, NEAR = 0.95, 0.05  # MCC from which features are found; distance from random that means nothing was learned
RECONSTRUCTS = 0.9  # explained variance that alone would look good
Progress = Callable[[float, float, str], None]


class World(NamedTuple):
    """Known features and how they fire."""

    features: int
    width: int
    probability: float


class SyntheticRow(Frozen):
    """One seed."""

    seed: int
    mcc: float = Field(description="Mean absolute cosine of decoder rows with the true features, matched one to one.")
    random_mcc: float = Field(description=f"The same of random dictionaries, mean of {RANDOM}.")
    explained_variance: float = Field(description="On samples that were not trained on.")
    l0: float = Field(description="Active features a sample.")
    true_l0: float = Field(description="True features active a sample.")
    dead: int = Field(description="Features that never fire.")
    unique: float = Field(description="Share of the true features that are the nearest of some feature.")


def synthetic_row(world: World, recipe: Recipe, progress: Progress | None = None) -> SyntheticRow:
    """Draw a world by the recipe's seed, train on it, and match what was found with what is there."""
    import numpy as np
    import torch
    from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, feature_uniqueness

    from .baselines import for_inference
    from .training.order import InMemory, Shuffled
    from .training.trainer import train

    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(recipe.seed)
        truth = FeatureDictionary(world.features, world.width, seed=recipe.seed)
        draw = ActivationGenerator(world.features, world.probability)
        x = truth(draw.sample(SAMPLES)).detach()
        active = draw.sample(JUDGED)
        judged = truth(active).detach()
        others = [torch.randn(recipe.d_dict, world.width) for _ in range(RANDOM)]
    order = Shuffled(InMemory(x), np.arange(SAMPLES), batch=recipe.batch, seed=recipe.seed, device="cpu")
    with torch.no_grad():
        sae = for_inference(train(recipe, order, progress=progress).sae)
        features = truth.feature_vectors.detach()
        f = sae.encode(judged)
        left = (judged - sae.decode(f)).square().sum()
        return SyntheticRow(
            seed=recipe.seed, mcc=matched(sae.W_dec.detach(), features),
            random_mcc=sum(matched(other, features) for other in others) / RANDOM,
            explained_variance=1 - float(left / (judged - judged.mean(0)).square().sum()),
            l0=float((f > 0).float().sum(-1).mean()), true_l0=float((active > 0).float().sum(-1).mean()),
            dead=int((f > 0).any(0).logical_not().sum()),
            unique=feature_uniqueness(sae.W_dec.detach(), features) * recipe.d_dict / world.features,
        )  # fmt: skip


def matched(found, true) -> float:
    """MCC of two sets of directions: [n, d] and [m, d]."""
    from sae_lens.synthetic import mean_correlation_coefficient

    return mean_correlation_coefficient(found, true)


def verdict(rows: tuple[SyntheticRow, ...]) -> str:
    """What the figures say, recovery first: reconstruction never makes up for it."""
    mcc, random, ev = (
        sum(getattr(row, name) for row in rows) / len(rows) for name in ("mcc", "random_mcc", "explained_variance")
    )
    l0, true = sum(row.l0 for row in rows) / len(rows), sum(row.true_l0 for row in rows) / len(rows)
    told = (
        f"MCC {mcc:.3f} (random dictionaries {random:.3f}), explained variance {ev:.3f}, L0 {l0:.1f} where {true:.1f} "
        "are active"
    )
    spread = min(row.mcc for row in rows)
    if spread >= FOUND:
        return f"GOOD: the true features are found on every seed. {told}."
    if mcc - random < NEAR:
        return f"BAD: no nearer to the true features than random directions. {told}."
    gained = (mcc - random) / (1 - random)
    good = " Its explained variance alone would look good: it says nothing of the features."
    trap = good if ev >= RECONSTRUCTS else ""
    why = " Too many features are active: raise the penalty." if l0 > 2 * true else ""
    if gained < 0.8:
        part = f"{gained:.0%} of the way from random to exact"
        return f"BAD: the true features are not found ({part}). {told}.{trap}{why}"
    return f"PARTLY: most but not all true features are found on every seed. {told}.{trap}{why}"
