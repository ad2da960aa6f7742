"""Train a dictionary on cached activations: SAELens's trainer, step by step, with checkpoints and a record.

The arithmetic of a step (losses, optimiser, schedules, counting of dead features) is SAELens's `SAETrainer.step`; what
is ours is where batches come from, when the state is written, and what is told meanwhile. Weights & Biases is not
touched unless a `log` that does so is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import NotFinite
from ...model.quiet import quiet
from .checkpoint import latest, restore, save
from .order import Shuffled
from .recipe import Recipe, untrained

if TYPE_CHECKING:
    from sae_lens import SAETrainer, TrainingSAE
    from sae_lens.saes.sae import TrainStepOutput

TOLD = {
    "loss": "losses/overall_loss",
    "explained_variance": "metrics/explained_variance",
    "l0": "metrics/l0",
    "dead": "sparsity/dead_features",
}
_SCALED_ON = 16  # batches that the mean norm is taken over
Progress = Callable[[float, float, str], None]
Log = Callable[[int, Mapping[str, float]], None]


@dataclass
class Trained:
    """A dictionary that is trained, normalisation folded into its weights."""

    sae: TrainingSAE
    history: list[dict[str, float]]  # step, loss, explained_variance, l0, dead: on the batch of the step
    resumed_at: int | None  # step of the checkpoint it went on from


@dataclass(frozen=True)
class Keeping:
    """Where checkpoints go, and how often."""

    folder: Path
    every: int  # steps


@dataclass
class _Told:
    """What is said and recorded while it trains."""

    total: int
    every: int
    progress: Progress | None
    log: Log | None
    history: list[dict[str, float]] = field(default_factory=list)

    def hear(self, trainer: SAETrainer, output: TrainStepOutput) -> None:
        step = trainer.n_training_steps
        if step % self.every and step != self.total:
            return
        found = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
        line = {"step": float(step), **{name: float(found[key]) for name, key in TOLD.items()}}
        if line["loss"] != line["loss"]:
            raise NotFinite(
                f"the loss is NaN at step {step} of {self.total}: the learning rate is too high for these activations, "
                "or they hold massive-norm tokens. Use a smaller lr, or leave massive tokens out."
            )
        self.history.append(line)
        if self.log:
            self.log(step, line)
        if self.progress:
            self.progress(step, self.total, in_words(line))


def in_words(line: Mapping[str, float]) -> str:
    """A line of the record, for a person who waits."""
    return (
        f"training: step {line['step']:.0f}, loss {line['loss']:.3g}, explained variance "
        f"{line['explained_variance']:.3f}, L0 {line['l0']:.1f}, dead features {line['dead']:.0f}"
    )


def train(
    recipe: Recipe,
    batches: Shuffled,
    *,
    keeping: Keeping | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
    until: int | None = None,
) -> Trained:
    """Train to the recipe's last step, from the newest checkpoint of the same recipe where there is one.

    until: stop at this step instead (the schedules stay those of the whole), with a checkpoint where one is kept.

    Raises:
        NotFinite: the loss became NaN. CorruptFile: a damaged checkpoint.
        Cancelled: from `progress`; what was trained is kept.
    """
    import torch

    with quiet(), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # SAELens warns of defaults that are chosen here
        trainer = _trainer(recipe, batches)
        told = _Told(recipe.steps, max(1, min(25, recipe.steps // 20)), progress, log)
        resumed = _resume(trainer, recipe, keeping, told)
        if resumed is None:
            _start(trainer, batches, recipe)
        try:
            _steps(trainer, batches, told, keeping, recipe, min(until or recipe.steps, recipe.steps))
        except BaseException:
            if keeping and trainer.n_training_steps > (resumed or 0):
                save(trainer, keeping.folder, fingerprint=recipe.fingerprint, history=told.history)
            raise
        _finish(trainer)
    return Trained(trainer.sae, told.history, resumed)


def _start(trainer: SAETrainer, batches: Shuffled, recipe: Recipe) -> None:
    """Scale to a mean norm of sqrt(d) (Anthropic's update of April 2024), and begin with the bias at the mean.

    From a bias of zero, hundreds of steps go by in which the features do nothing but learn the mean.
    """
    parts = [batches.at(i) for i in range(min(_SCALED_ON, batches.steps_an_epoch))]
    n = sum(map(len, parts))
    mean = sum(part.double().sum(0) for part in parts) / n
    factor = 1.0
    if recipe.normalise:
        factor = batches.cached.d**0.5 / (sum(float(part.norm(dim=-1).double().sum()) for part in parts) / n)
        trainer.activation_scaler.scaling_factor = factor
    trainer.sae.b_dec.data.copy_(mean * factor)


def _steps(
    trainer: SAETrainer, batches: Shuffled, told: _Told, keeping: Keeping | None, recipe: Recipe, until: int
) -> None:
    order = batches.since(trainer.n_training_steps)
    while trainer.n_training_steps < until:
        trainer.maybe_reset_sparsity()
        output = trainer.step(next(order))
        trainer.n_training_steps += 1
        told.hear(trainer, output)
        if keeping and (trainer.n_training_steps % keeping.every == 0 or trainer.n_training_steps == until):
            save(trainer, keeping.folder, fingerprint=recipe.fingerprint, history=told.history)


def _trainer(recipe: Recipe, batches: Shuffled) -> SAETrainer:
    from sae_lens import SAETrainer
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    config = SAETrainerConfig(
        total_training_samples=recipe.steps * recipe.batch, train_batch_size_samples=recipe.batch, lr=recipe.lr,
        lr_end=recipe.lr, lr_warm_up_steps=recipe.warm_up, lr_decay_steps=recipe.decay, device=batches.device,
        dead_feature_window=recipe.dead_after, autocast=recipe.half_precision,
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    sae = untrained(recipe, batches.cached.d, batches.device)
    return SAETrainer(cfg=config, sae=sae, data_provider=batches.since(0))


def _resume(trainer: SAETrainer, recipe: Recipe, keeping: Keeping | None, told: _Told) -> int | None:
    """The step it goes on from, if a checkpoint of the same recipe is kept."""
    found: Mapping[str, Any] | None = latest(keeping.folder) if keeping else None
    if keeping is None or found is None or found["fingerprint"] != recipe.fingerprint:
        return None
    restore(trainer, keeping.folder, found["step"])
    told.history += found["history"]
    return found["step"]


def _finish(trainer: SAETrainer) -> None:
    """Fold the scale of the activations into the weights, and make the decoder's rows unit vectors."""
    sae, scaler = trainer.sae, trainer.activation_scaler
    trainer.set_final_sae_metadata()
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if not getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # those are folded when they are saved
        sae.fold_W_dec_norm()
