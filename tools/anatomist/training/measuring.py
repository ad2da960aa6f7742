"""What the trained toys learned, measured on the finished weights and on every checkpoint."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..causal.attention_scores import TARGETS
from ..causal.head_scores import repeated_tokens, score_heads
from ..model.backends.toy_file import load_toy
from ..model.protocol import Model
from ..model.sites import head_name
from ..model.trained import TOY_FILE, checkpoints
from ..result import Grid, grid
from .addition import AdditionTask
from .fourier import excluded, key_frequencies, loss_on, restricted, shares, table_power
from .induction import InductionTask
from .learned import FORMED, GENERALISED, AdditionLearned, FeatureGeometry, InductionLearned
from .loop import Progress, Tensors, Trained
from .superposition import SuperpositionTask, geometry

ROWS, SEEDS = 32, (1001, 1002, 1003)  # of the tokens that heads are scored on
RANDOM_SETS = 20
BUDGET = 2**28  # bytes a pass of scoring may take
UNDER = 0.1  # nats


def induction_learned(
    task: InductionTask, trained: Trained, folder: Path, progress: Progress
) -> InductionLearned:
    """Loss and heads of the finished model, and the heads at every checkpoint."""
    kept = checkpoints(folder)
    over: dict[int, Mapping[str, Tensor]] = {}
    for i, (step, place) in enumerate(kept.items()):
        progress(i, len(kept), f"scoring the heads at step {step}")
        over[step] = _scores(load_toy(place / TOY_FILE))
    last = over[max(over)]
    heads = [head_name(layer, h) for layer in range(2) for h in range(last["induction"].shape[1])]
    losses = trained.curves.values["loss, later copies"]
    return InductionLearned(
        loss=losses[-1],
        first_copy=trained.curves.values["loss, first copy"][-1],
        under=_first(trained, losses, UNDER),
        scores=grid(
            "attention scores", "share of attention", [("score", TARGETS), ("head", heads)],
            [float(x) for name in TARGETS for x in last[name].flatten()],
        ),
        previous_token=_named(last["previous_token"], 0),
        induction=_named(last["induction"], 1),
        over_training=grid(
            "highest score in the layer", "share of attention",
            [("score", ("previous token, layer 0", "induction, layer 1")), ("step", kept)],
            [float(s[name][layer].max()) for name, layer in (("previous_token", 0), ("induction", 1))
             for s in over.values()],
        ),
    )  # fmt: skip


def _scores(model: Model) -> Mapping[str, Tensor]:
    """Score -> [L, H], the mean over seeds."""
    sets = repeated_tokens(model, SEEDS, ROWS, model.info.n_ctx // 2, None)
    found = score_heads(model, sets, BUDGET, copying=False).attention
    return {name: torch.from_numpy(values).mean(0) for name, values in found.items()}


def _named(scores: Tensor, layer: int) -> tuple[str, ...]:
    """Heads of a layer above the level, the highest first."""
    order = scores[layer].argsort(descending=True).tolist()
    return tuple(head_name(layer, h) for h in order if scores[layer, h] >= FORMED)


def addition_learned(task: AdditionTask, trained: Trained, folder: Path, progress: Progress) -> AdditionLearned:
    """Key frequencies of the finished model, and what they carry, at the end and at every checkpoint."""
    logits = task.grid(trained.weights)
    share = shares(logits)
    keys = key_frequencies(share)
    held = table_power(trained.weights["embedding"][: task.settings.modulus])
    train = task.trained_on
    others = [k for k in range(1, len(share) + 1) if k not in keys]
    drawn = random.Random(task.settings.seed)
    sets = [drawn.sample(others, len(keys)) for _ in range(RANDOM_SETS)] if len(others) >= len(keys) else []
    names = ("trained pairs", "other pairs", "key waves alone (all pairs)", "without key waves (trained pairs)")
    over = _progress_measures(task, folder, keys, progress)
    return AdditionLearned(
        generalised=_first(trained, trained.curves.values["loss, other pairs"], GENERALISED),
        accuracy=trained.curves.values["accuracy, other pairs"][-1],
        key_frequencies=keys,
        key_share=float(share[[k - 1 for k in keys]].sum()),
        full_loss=loss_on(logits),
        restricted_loss=loss_on(restricted(logits, keys)),
        train_loss=loss_on(logits, train),
        excluded_loss=loss_on(excluded(logits, keys), train),
        random_loss=max((loss_on(excluded(logits, some), train) for some in sets), default=0.0),
        random_sets=len(sets),
        frequencies=grid(
            "variance by frequency", "share of variance",
            [("of", ("logits", "embedding")), ("frequency", range(1, len(share) + 1))],
            [*share.tolist(), *held.tolist()],
        ),
        over_training=grid("loss", "nats", [("loss", names), ("step", over)], _by_name(over.values())),
    )  # fmt: skip


def _progress_measures(
    task: AdditionTask, folder: Path, keys: Sequence[int], progress: Progress
) -> dict[int, Sequence[float]]:
    """Step -> the four losses."""
    train, kept = task.trained_on, checkpoints(folder)
    found: dict[int, Sequence[float]] = {}
    for i, (step, place) in enumerate(kept.items()):
        progress(i, len(kept), f"progress measures at step {step}")
        logits = task.grid(load_file(place / TOY_FILE))
        found[step] = (
            loss_on(logits, train), loss_on(logits, ~train), loss_on(restricted(logits, keys)),
            loss_on(excluded(logits, keys), train),
        )  # fmt: skip
    return found


def superposition_learned(
    task: SuperpositionTask, trained: Trained, folder: Path, progress: Progress
) -> tuple[FeatureGeometry, ...]:
    """The best start of every sparsity."""
    with torch.no_grad():
        losses = task.tested(trained.weights)
    return tuple(_geometry(task, trained.weights, losses, g) for g in range(len(task.settings.sparsities)))


def _geometry(task: SuperpositionTask, weights: Tensors, losses: Tensor, g: int) -> FeatureGeometry:
    settings, best = task.settings, int(losses[g].argmin())
    w = weights["W"][g, best].detach()
    found = geometry(w)
    figures = [geometry(other.detach()).figure for other in weights["W"][g]]
    labels = [f"feature {i} ({x:.2f})" for i, x in enumerate(settings.importances)]
    return FeatureGeometry(
        sparsity=settings.sparsities[g],
        importances=settings.importances,
        loss=float(losses[g, best]),
        median_loss=float(losses[g].median()),
        same=figures.count(found.figure),
        starts=settings.starts,
        figure=found.figure,
        dimensionality=found.dimensionality,
        norms=found.norms,
        angles=found.angles,
        vectors=grid(
            "feature vectors", "length", [("feature", labels), ("dimension", range(settings.dimensions))],
            w.T.flatten().tolist(),
        ),
    )  # fmt: skip


def curves_grid(trained: Trained, unit: str) -> Grid:
    """The curves of training."""
    curves = trained.curves
    return grid(
        "training", unit,
        [("curve", curves.values), ("step", curves.steps)], [v for values in curves.values.values() for v in values],
    )  # fmt: skip


def _first(trained: Trained, values: Sequence[float], level: float) -> int | None:
    """The first measured step from which on a curve stays below a level at the end."""
    return next((step for step, v in zip(trained.curves.steps, values, strict=True) if v < level), None)


def _by_name(rows: Iterable[Sequence[float]]) -> list[float]:
    """Rows of values, one a step, as one list by name."""
    return [v for values in zip(*rows, strict=True) for v in values]
