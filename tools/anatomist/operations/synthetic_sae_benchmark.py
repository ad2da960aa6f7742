"""Train sparse autoencoders on synthetic data with known features, and see whether they find them.

Returns for each seed the match with the true features (MCC) beside that of random dictionaries, explained variance and
L0, and a verdict in words. Use it before trusting settings on a model, where no one knows the features: a setting can
explain .97 of the variance and find none of them. No model is needed; train_sae trains on one.
"""

from __future__ import annotations

from pydantic import Field

from ..dictionaries.synthetic import SyntheticRow, World, synthetic_row, verdict
from ..dictionaries.training.recipe import Architecture, Recipe
from ..errors import BadArguments
from ..host import Host
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Progress

TITLE = "Synthetic benchmark of sparse autoencoders"
WHERE: Where = "worker"
READ_ONLY = True
DESTRUCTIVE = False
FEWEST_SEEDS = 3


class Arguments(Frozen):
    features: int = Field(default=32, ge=2, le=4096, description="True features.")
    width: int = Field(default=16, ge=2, le=1024, description="Dimensions they are squeezed into.")
    probability: float = Field(default=0.04, gt=0, lt=1, description="Chance that a feature is active in a sample.")
    learned: int | None = Field(
        default=None, ge=2, le=8192, description="Features of the dictionary; as many when absent."
    )
    architecture: Architecture = Field(default="standard", description="SAELens's training architecture.")
    penalty: float = Field(default=0.15, gt=0, description="Weight of l1 (standard, gated) or l0 (jumprelu).")
    k: int = Field(default=1, ge=1, le=4096, description="Active features (topk, batchtopk, matryoshka).")
    steps: int = Field(default=3000, ge=10, le=10**6, description="Optimiser steps of 512 samples.")
    lr: float = Field(default=3e-3, gt=0, le=1, description="Adam's learning rate.")
    seeds: int = Field(default=3, ge=1, le=20, description="Worlds and weights, from 0 on.")


class SyntheticBenchmark(Outcome):
    """What was found of what is there."""

    rows: tuple[SyntheticRow, ...] = Field(description="One a seed.")
    verdict: str = Field(description="GOOD, PARTLY or BAD, and why.")


def run(host: Host, arguments: Arguments, progress: Progress) -> SyntheticBenchmark:
    world = World(arguments.features, arguments.width, arguments.probability)
    total, found = arguments.seeds, []
    for seed in range(total):

        def say(done: float, of: float, what: str, seed: int = seed) -> None:
            progress(seed + done / of, total, f"seed {seed}: {what}")

        found.append(synthetic_row(world, _recipe(arguments, seed), say))
    rows = tuple(found)
    short = f"{total} seed(s): at least {FEWEST_SEEDS} are needed to call a setting good."
    few = (short,) if total < FEWEST_SEEDS else ()
    told = verdict(rows)
    return SyntheticBenchmark(
        summary=f"{arguments.features} features in {arguments.width} dimensions, {arguments.architecture}. {told}",
        warnings=few, rows=rows, verdict=told,
    )  # fmt: skip


def _recipe(arguments: Arguments, seed: int) -> Recipe:
    try:
        return Recipe(
            architecture=arguments.architecture, d_dict=arguments.learned or arguments.features, k=arguments.k,
            penalty=arguments.penalty, batch=512, steps=arguments.steps, lr=arguments.lr, normalise=False, seed=seed,
        )  # fmt: skip
    except ValueError as error:
        raise BadArguments(f"these settings do not agree: {str(error).splitlines()[-2].strip()}") from error
