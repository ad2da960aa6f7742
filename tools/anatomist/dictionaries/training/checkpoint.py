"""Checkpoints of a training: weights, optimiser, schedules and counters, as safetensors and JSON, never pickled.

A checkpoint is a folder that `latest.json` names only once it is whole, so a kill at any moment leaves a good one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CorruptFile

if TYPE_CHECKING:
    from sae_lens import SAETrainer
    from torch import Tensor

LATEST = "latest.json"
_COUNTERS = ("n_training_samples", "n_training_steps", "n_frac_active_samples")
_VECTORS = ("act_freq_scores", "n_forward_passes_since_fired")


def save(trainer: SAETrainer, folder: Path, *, fingerprint: str, history: list[dict[str, float]]) -> Path:
    """Write where the training stands, and forget the checkpoint before."""
    from safetensors.torch import save_file

    step = trainer.n_training_steps
    place = folder / f"step-{step:08d}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    save_file(_tensors(trainer), place / "state.safetensors")
    (place / "state.json").write_text(json.dumps(_numbers(trainer)))
    half = folder / (LATEST + ".half")
    half.write_text(json.dumps({"step": step, "fingerprint": fingerprint, "history": history}))
    os.replace(half, folder / LATEST)
    for old in folder.glob("step-*"):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)
    return place


def latest(folder: Path) -> Mapping[str, Any] | None:
    """What stands of the newest whole checkpoint: step, fingerprint, history; None where there is none.

    Raises:
        CorruptFile: the file that names it cannot be read.
    """
    if not (folder / LATEST).is_file():
        return None
    try:
        return json.loads((folder / LATEST).read_text())
    except ValueError as error:
        raise CorruptFile(
            f"{folder / LATEST} cannot be read ({error}); delete {folder} to train from the start."
        ) from error


def restore(trainer: SAETrainer, folder: Path, step: int) -> None:
    """Put a trainer where the checkpoint of a step stood.

    Raises:
        CorruptFile: the checkpoint is damaged.
    """
    from safetensors.torch import load_file

    place = folder / f"step-{step:08d}"
    try:
        tensors = load_file(place / "state.safetensors", device=trainer.cfg.device)
        numbers = json.loads((place / "state.json").read_text())
        _put(trainer, tensors, numbers)
    except Exception as error:  # whatever is wrong with the files, the next step is the same
        raise CorruptFile(
            f"the checkpoint {place} cannot be read ({type(error).__name__}: {str(error)[:200]}); delete {folder} to "
            "train from the start."
        ) from error


def _tensors(trainer: SAETrainer) -> dict[str, Tensor]:
    found = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    for i, slots in trainer.optimizer.state_dict()["state"].items():
        found |= {f"adam.{i}.{name}": value for name, value in slots.items()}
    found |= {name: getattr(trainer, name) for name in _VECTORS}
    return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}


def _numbers(trainer: SAETrainer) -> dict[str, Any]:
    groups = [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.state_dict()["param_groups"]]
    return {
        "counters": {name: getattr(trainer, name) for name in _COUNTERS},
        "rates": [{"lr": float(g["lr"]), "initial_lr": float(g["initial_lr"])} for g in groups],
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
        "coefficients": {name: c.state_dict() for name, c in trainer.coefficient_schedulers.items()},
        "scaling_factor": trainer.activation_scaler.scaling_factor,
    }


def _put(trainer: SAETrainer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    trainer.sae.load_state_dict({k.removeprefix("sae."): v for k, v in tensors.items() if k.startswith("sae.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, i, slot = name.split(".")
            state.setdefault(int(i), {})[slot] = value.cpu() if slot == "step" else value
    groups = trainer.optimizer.state_dict()["param_groups"]
    groups = [{**group, **rates} for group, rates in zip(groups, numbers["rates"], strict=True)]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    trainer.lr_scheduler.load_state_dict(numbers["lr_scheduler"])
    for name, value in numbers["coefficients"].items():
        trainer.coefficient_schedulers[name].load_state_dict(value)
    trainer.activation_scaler.scaling_factor = numbers["scaling_factor"]
    for name in _COUNTERS:
        setattr(trainer, name, numbers["counters"][name])
    for name in _VECTORS:
        setattr(trainer, name, tensors[name])
