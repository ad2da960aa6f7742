"""Train a sparse autoencoder on a model's activations; the folder it leaves is loaded like any other.

Returns the folder (pass it as `sae`), the figures on held-out text of the same source (with and without massive-norm
tokens), the record of the training, and what it cost. SAELens's trainer does the steps. Activations are read once and
kept on disk for the next training; a call that was stopped or killed goes on from its last checkpoint when it is made
again with the same arguments. `estimate_only` says memory and time first. A long call: ask for it as a job. Judge the
result with evaluate_sae before any use: a high explained variance does not mean that the features are right.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..devices import existing, memory_available
from ..dictionaries.quality import MASSIVE, Quality, measure_quality
from ..dictionaries.training.folder import TRAINABLE, Card, Text, write, write_figures
from ..dictionaries.training.plan import TrainingCost, training_cost
from ..dictionaries.training.recipe import Architecture, Recipe
from ..errors import BadArguments, WouldNotFit
from ..estimate.cost import in_bytes
from ..estimate.formulas import block_flops
from ..estimate.sizes import Sizes
from ..host import Host
from ..model.protocol import Model
from ..model.sites import Site, check_site, parse_site
from ..model.tokens import Tokens
from ..operation import Outcome, Where
from ..prompts.corpus import Corpus, corpus_of, rows
from ..provenance import versions
from ..result import Frozen
from ..technique import Bos, ModelHandle, Progress, Seed, TextArgument

if TYPE_CHECKING:
    from ..dictionaries.training.order import Shuffled
    from ..dictionaries.training.trainer import Log

TITLE = "Train a sparse autoencoder"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False
HELD_OUT = 0.05  # share of the documents
HELD_OUT_TOKENS = 4096  # that the figures are measured on, at most
POOR_EV, MANY_DEAD, MANY_EPOCHS, MUCH_CE = 0.5, 0.2, 10.0, 0.8


class Arguments(Frozen):
    model: ModelHandle
    site: str = Field(description="Place to read, e.g. 'blocks.15.resid_post' (middle layers are the usual choice).")
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=80, description="Folder it is kept under.")
    text: TextArgument = "python"
    architecture: Architecture = Field(default="batchtopk", description="SAELens's training architecture.")
    features: int = Field(ge=2, le=2**20, description="Number of features: usually 4 to 32 times the width.")
    k: int = Field(default=32, ge=1, le=4096, description="Active features a token (topk, batchtopk, matryoshka).")
    penalty: float | None = Field(
        default=None, gt=0, description="Weight of l1 (standard, gated; default 5) or l0 (jumprelu; default 1)."
    )
    tokens: int = Field(default=200_000, ge=64, le=10**9, description="Tokens to read of the text.")
    width: int = Field(default=128, ge=4, le=8192, description="Tokens a row.")
    bos: Bos = None
    steps: int = Field(default=1000, ge=1, le=10**7, description="Optimiser steps.")
    batch: int = Field(default=2048, ge=8, le=2**17, description="Tokens a step.")
    lr: float = Field(default=4e-4, gt=0, le=1, description="Adam's learning rate.")
    massive: Literal["leave_out", "keep"] = Field(
        default="leave_out", description="Tokens whose norm is over five times the median, in training."
    )
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between checkpoints.")
    half_precision: bool = Field(
        default=False, description="Products in bfloat16: faster where the processor has them, a little less exact."
    )
    seed: Seed = 0
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="Number format of the stored weights."
    )
    wandb: str | None = Field(
        default=None, description="Weights & Biases project to log to; nothing is sent if absent."
    )
    estimate_only: bool = Field(default=False, description="Say what it would take, and train nothing.")


class TrainedSae(Outcome):
    """A dictionary that was trained, or what training it would take."""

    folder: str | None = Field(description="Pass it as `sae`; absent for an estimate.")
    cost: TrainingCost = Field(description="Estimated before it began.")
    quality: Quality | None = Field(description="On held-out documents of the same text; absent for an estimate.")
    history: tuple[dict[str, float], ...] = Field(
        default=(), description="step, loss, explained_variance, l0, dead, on the batch of the step."
    )
    resumed_at: int | None = Field(default=None, description="Step of the checkpoint it went on from.")
    seconds: float | None = Field(default=None, description="Of the steps in this call.")
    tokens_per_second: float | None = Field(default=None, description="Trained on, in this call.")


def run(host: Host, arguments: Arguments, progress: Progress) -> TrainedSae:
    site = _site(arguments.site)
    model = host.model(arguments.model, progress)
    check_site(site, model.info.shape)
    recipe = _recipe(arguments)
    corpus = corpus_of(arguments.text, host.roots)
    cost = _cost(host, arguments, recipe, model, site)
    if arguments.estimate_only:
        return TrainedSae(summary=_plan_in_words(cost, recipe), folder=None, cost=cost, quality=None)
    _check_room(cost, host)
    held, training = corpus.split(HELD_OUT, arguments.seed)
    judged = _held_out(model, held, arguments)
    folder = host.workspace / "saes" / arguments.name
    batches, text = _batches(host, arguments, recipe, model, site, training, judged, progress)
    trained, seconds, steps = _train(host, arguments, recipe, batches, text, progress)
    write(
        trained.sae, folder, model=model.info, site=site, text=corpus.name, width=arguments.width, bos=text.bos,
        dtype=None if arguments.dtype == "float32" else arguments.dtype,
    )  # fmt: skip
    quality = _measured(model, folder, judged, progress)
    text = text.model_copy(update={"held_out_sha256": _digest(held)})
    card = Card(
        name=arguments.name, model=model.info.name, model_hash=model.info.weights_hash, site=str(site), text=text,
        recipe=recipe, quality=quality, history=tuple(trained.history), seconds=seconds, versions=versions(),
        limits=_limits(text, quality),
    )  # fmt: skip
    write_figures(folder, quality, card)
    warnings = _warnings(quality, cost, text)
    return TrainedSae(
        summary=_summary(arguments, folder, quality, recipe, seconds), warnings=warnings, folder=str(folder), cost=cost,
        quality=quality, history=tuple(trained.history), resumed_at=trained.resumed_at, seconds=seconds,
        tokens_per_second=steps * recipe.batch / seconds if steps else None,
    )  # fmt: skip


def _site(text: str) -> Site:
    site = parse_site(text)
    if site.kind not in TRAINABLE or site.index is not None:
        kinds = ", ".join(TRAINABLE)
        raise BadArguments(f"no dictionary is trained at {site}; choose one of {kinds}, all heads at once.")
    return site


def _recipe(arguments: Arguments) -> Recipe:
    """The settings.

    Raises:
        BadArguments: k and the number of features do not agree.
    """
    penalty = arguments.penalty or (1.0 if arguments.architecture == "jumprelu" else 5.0)
    try:
        return Recipe(
            architecture=arguments.architecture, d_dict=arguments.features, k=arguments.k, penalty=penalty,
            batch=arguments.batch, steps=arguments.steps, lr=arguments.lr, seed=arguments.seed,
            dead_after=max(20, min(200, arguments.steps // 5)), half_precision=arguments.half_precision,
        )  # fmt: skip
    except ValueError as error:
        raise BadArguments(f"these settings do not agree: {str(error).splitlines()[-2].strip()}") from error


def _cost(host: Host, arguments: Arguments, recipe: Recipe, model: Model, site: Site) -> TrainingCost:
    sizes = Sizes.of_info(model.info)
    blocks = 0 if site.layer is None else site.layer + (site.kind != "resid_pre")
    loaded = next((m for m in host.loaded() if arguments.model in (m.handle, m.request.name)), host.loaded()[-1])
    return training_cost(
        recipe, model.info, site, tokens=arguments.tokens, held_out=min(HELD_OUT_TOKENS, arguments.tokens // 10),
        flops_per_token=blocks * block_flops(sizes, arguments.width) / arguments.width,
        flops_per_second=loaded.rate.flops_per_second,
    )  # fmt: skip


def _check_room(cost: TrainingCost, host: Host) -> None:
    free, disk = memory_available(), shutil.disk_usage(existing(host.workspace)).free
    if cost.memory_bytes > free or cost.disk_bytes > disk:
        raise WouldNotFit(
            f"training needs {in_bytes(cost.memory_bytes)} of memory and {in_bytes(cost.disk_bytes)} of disk; "
            f"{in_bytes(free)} and {in_bytes(disk)} are free. Use fewer features, a smaller batch or fewer tokens."
        )


def _batches(
    host: Host, arguments: Arguments, recipe: Recipe, model: Model, site: Site, training: Corpus, held: Tokens,
    progress: Progress,
) -> tuple[Shuffled, Text]:  # fmt: skip
    """The activations, read now or before, and the record of the text."""
    import numpy as np

    from ..dictionaries.training.cache import cached
    from ..dictionaries.training.order import Shuffled, ordinary

    tokens = rows(training, model, width=arguments.width, n_tokens=arguments.tokens, bos=arguments.bos)
    found = cached(
        model, site, tokens, host.workspace / "activations", budget=host.budget_bytes, progress=progress
    )
    kept = ordinary(found.norms, MASSIVE) if arguments.massive == "leave_out" else np.arange(found.tokens)
    text = Text(
        name=training.name, sha256=_digest(training), tokens=found.tokens, trained_on=len(kept), width=tokens.width,
        bos=tokens.bos, held_out_tokens=sum(held.lengths),
    )  # fmt: skip
    return Shuffled(found, kept, batch=recipe.batch, seed=recipe.seed, device=model.info.device), text


def _train(host: Host, arguments: Arguments, recipe: Recipe, batches: Shuffled, text: Text, progress: Progress):
    """The trained dictionary, seconds and steps of this call."""
    from ..dictionaries.training.cache import Cached
    from ..dictionaries.training.trainer import Keeping, train

    assert isinstance(batches.cached, Cached)
    key = hashlib.sha256(f"{batches.cached.folder.name} {len(batches.kept)}".encode()).hexdigest()[:8]
    keeping = Keeping(
        host.workspace / "checkpoints" / f"{arguments.name}-{recipe.fingerprint}-{key}", arguments.checkpoint_every
    )
    started = time.perf_counter()
    with _logging(arguments, recipe) as log:
        trained = train(recipe, batches, keeping=keeping, progress=progress, log=log)
    return trained, time.perf_counter() - started, recipe.steps - (trained.resumed_at or 0)


@contextmanager
def _logging(arguments: Arguments, recipe: Recipe) -> Iterator[Log | None]:
    """Weights & Biases for the time of the training, where it was asked for."""
    if arguments.wandb is None:
        yield None
        return
    import wandb

    run = wandb.init(project=arguments.wandb, name=arguments.name, config=recipe.model_dump())
    try:
        yield lambda step, line: run.log(dict(line), step=step)
    finally:
        run.finish()


def _held_out(model: Model, held: Corpus, arguments: Arguments) -> Tokens:
    n = max(arguments.width, min(HELD_OUT_TOKENS, arguments.tokens // 10))
    return rows(held, model, width=arguments.width, n_tokens=n, bos=arguments.bos)


def _measured(model: Model, folder: Path, held: Tokens, progress: Progress) -> Quality:
    """The figures of what was written, loaded as any caller loads it."""
    from ..dictionaries.saelens import load_dictionary

    found = load_dictionary(str(folder), model=model)
    try:
        return measure_quality(model, found, held, progress=progress)
    finally:
        found.close()


def _digest(corpus: Corpus) -> str:
    return hashlib.sha256("\0".join(corpus.documents).encode()).hexdigest()


def _limits(text: Text, quality: Quality) -> tuple[str, ...]:
    """What the record itself says it is not good for."""
    apart = (
        f"Trained without tokens whose norm is over {MASSIVE:.0f} times the median: it does not rebuild those."
        if text.trained_on < text.tokens
        else ""
    )
    words = (
        f"Trained on {text.trained_on:,} tokens of {text.name!r}: features of other text are missing.",
        apart,
        "One seed: another seed finds partly other features.",
        f"{quality.ordinary.dead_share:.0%} of the features are silent on the held-out text.",
    )
    return tuple(word for word in words if word)


def _warnings(quality: Quality, cost: TrainingCost, text: Text) -> tuple[str, ...]:
    told, words = quality.ordinary, []
    if told.explained_variance < POOR_EV:
        ev = f"{told.explained_variance:.0%}"
        words.append(f"It explains {ev} of the variance: train longer, or allow more features.")
    if told.ce_recovered is not None and told.ce_recovered < MUCH_CE:
        ce = f"{told.ce_recovered:.0%}"
        words.append(f"Only {ce} of the cross-entropy comes back: what it misses matters to the model.")
    if told.dead_share > MANY_DEAD:
        dead = f"{told.dead_share:.0%}"
        words.append(f"{dead} of the features are silent on held-out text: fewer features, or more text.")
    if cost.epochs > MANY_EPOCHS:
        words.append(f"The text was gone through {cost.epochs:.0f} times: more text is worth more than more steps.")
    if told.l0 > 0.25 * quality.features:
        words.append(f"L0 is {told.l0:.0f} of {quality.features} features: this is not sparse; raise the penalty.")
    if text.trained_on < text.tokens:
        words.append(
            f"{text.tokens - text.trained_on} massive-norm tokens were left out of the training; the figures "
            "'everywhere' contain them."
        )
    return tuple(words)


def _plan_in_words(cost: TrainingCost, recipe: Recipe) -> str:
    return (
        f"Training {recipe.d_dict:,} features ({recipe.architecture}) for {recipe.steps} steps of {recipe.batch} "
        f"tokens takes about {cost.reading_seconds:.0f} s to read activations and "
        f"{cost.training_seconds:.0f} s to train, "
        f"{in_bytes(cost.memory_bytes)} of memory and {in_bytes(cost.disk_bytes)} of disk; the text is gone through "
        f"{cost.epochs:.1f} times. Nothing was run."
    )


def _summary(arguments: Arguments, folder: Path, quality: Quality, recipe: Recipe, seconds: float) -> str:
    told = quality.ordinary
    recovered = "" if told.ce_recovered is None else f", {told.ce_recovered:.0%} of the cross-entropy recovered"
    return (
        f"Trained {arguments.name}: {recipe.architecture}, {recipe.d_dict:,} features at {arguments.site}, in "
        f"{seconds:.0f} s. On held-out text, massive-norm tokens left out: L0 {told.l0:.1f}, explained variance "
        f"{told.explained_variance:.3f}{recovered}, {told.dead_share:.0%} of the features silent. These figures do not "
        f"show that the features are the right ones. Next: evaluate_sae(sae={str(folder)!r}) against its baselines."
    )
