"""A training loop that can be stopped at any step, by a caller or a kill, and comes to the same numbers all the same.

Everything a step uses follows from the seed and the step's number: the batch, the learning rate. What follows from
earlier steps (weights, the optimizer's moments, the curves) is written together in one file, replaced in one move.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import Cancelled, CorruptFile, NotFinite, Unavailable

Progress = Callable[[float, float, str], None]
Tensors = dict[str, Tensor]
STATE, WEIGHTS = "state.safetensors", "weights.safetensors"
SAVE_EVERY = 5.0  # seconds of work that a kill may cost
_HEADER = "training"


@dataclass(frozen=True)
class Recipe:
    """How the weights are moved (AdamW)."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    warm_up: int = 10  # steps over which the learning rate grows to its value
    cosine: bool = False  # whether it falls to 0 at the end
    log_every: int = 10
    keep: int = 20  # checkpoints, evenly spaced, the untrained and the last among them

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / max(1, self.warm_up))
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.cosine else 1.0
        return self.learning_rate * rise * fall

    def kept(self) -> frozenset[int]:
        """Steps after which the weights are kept."""
        return frozenset(round(self.steps * i / max(1, self.keep - 1)) for i in range(self.keep)) | {self.steps}


class Task(Protocol):
    """What is trained."""

    @property
    def recipe(self) -> Recipe: ...
    def fresh(self) -> Tensors:
        """Weights to begin with."""
        ...

    def loss(self, weights: Tensors, step: int) -> Float[Tensor, ""]: ...
    def measure(self, weights: Tensors) -> Mapping[str, float]:
        """What the curves show; the same names every time."""
        ...

    def keep(self, folder: Path, weights: Tensors, step: int) -> None:
        """Write a checkpoint into a folder of its own."""
        ...


@dataclass(frozen=True)
class Curves:
    """What was measured while training."""

    steps: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Trained:
    """Weights after the last step."""

    weights: Tensors
    curves: Curves
    resumed_from: int | None  # the step an earlier call had reached
    seconds: float  # of this call


@dataclass
class _State:
    step: int
    weights: Tensors
    moments: Tensors  # '<name>.exp_avg' and '<name>.exp_avg_sq'; empty before the first step
    history: list[dict[str, float]]


def train(task: Task, folder: Path, progress: Progress) -> Trained:
    """Train to the last step of the recipe, from where an earlier call or a killed process left it.

    Raises:
        Cancelled: the caller asked to stop; what was reached is kept.
        Unavailable: another process is training in this folder. CorruptFile: the state there cannot be read.
        NotFinite: the loss became NaN or infinite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):  # a killed holder's lock is released by the system
            return _train(task, folder, progress)
    except Timeout:
        raise Unavailable(
            f"{folder.name} is being trained by another process; wait for it, or give this model another name."
        ) from None


def _train(task: Task, folder: Path, progress: Progress) -> Trained:
    started, state = time.perf_counter(), _read(folder) or _State(0, task.fresh(), {}, [])
    resumed = state.step or None
    optimizer = _optimizer(task.recipe, state)
    saved = time.perf_counter()
    while True:
        _note(task, folder, state)
        _ask(folder, state, optimizer, task.recipe.steps, progress)
        if state.step == task.recipe.steps:
            break
        _step(task, state, optimizer)
        if time.perf_counter() - saved > SAVE_EVERY:
            _write(folder, state, optimizer)
            saved = time.perf_counter()
    _write(folder, state, optimizer)
    names = [name for name in state.history[0] if name != "step"]
    curves = Curves(
        tuple(int(h["step"]) for h in state.history), {n: tuple(h[n] for h in state.history) for n in names}
    )
    weights = {name: x.detach() for name, x in state.weights.items()}
    return Trained(weights, curves, resumed, time.perf_counter() - started)


def _ask(folder: Path, state: _State, optimizer: torch.optim.AdamW, steps: int, progress: Progress) -> None:
    """Tell how far it is; when the caller asks to stop, keep what was reached."""
    shown = ", ".join(f"{name} {value:.3g}" for name, value in list(state.history[-1].items())[:3] if name != "step")
    try:
        progress(state.step, steps, f"training {folder.name}: step {state.step} of {steps}, {shown}")
    except BaseException as error:
        _write(folder, state, optimizer)
        if isinstance(error, Cancelled):
            raise Cancelled(
                f"training of {folder.name} was stopped at step {state.step} of {steps}; what was reached is kept, and "
                "the same call goes on from there."
            ) from error
        raise


def _note(task: Task, folder: Path, state: _State) -> None:
    """Measure and keep, where it is time; what a resumed run has already done is not done again."""
    recipe, step = task.recipe, state.step
    with torch.no_grad():
        if (step % recipe.log_every == 0 or step == recipe.steps) and not _logged(state):
            state.history.append({"step": step, **task.measure(state.weights)})
        place = folder / "checkpoints" / f"step-{step:06d}"
        if step in recipe.kept() and not place.is_dir():
            scratch = place.with_name(f".{place.name}.{os.getpid()}")
            scratch.mkdir(parents=True, exist_ok=True)
            task.keep(scratch, state.weights, step)
            scratch.replace(place)


def _logged(state: _State) -> bool:
    return bool(state.history) and state.history[-1]["step"] == state.step


def _step(task: Task, state: _State, optimizer: torch.optim.AdamW) -> None:
    for group in optimizer.param_groups:
        group["lr"] = task.recipe.rate(state.step)
    optimizer.zero_grad()
    loss = task.loss(state.weights, state.step)
    if not bool(loss.isfinite()):
        raise NotFinite(
            f"the loss became {float(loss.detach())} at step {state.step}; use a smaller learning rate, under another "
            "name."
        )
    loss.backward()
    optimizer.step()
    state.step += 1


def _optimizer(recipe: Recipe, state: _State) -> torch.optim.AdamW:
    weights = [x.requires_grad_() for x in state.weights.values()]
    optimizer = torch.optim.AdamW(
        weights, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    if state.moments:
        for name, x in state.weights.items():
            moments = {m: state.moments[f"{name}.{m}"] for m in ("exp_avg", "exp_avg_sq")}
            optimizer.state[x] = {"step": torch.tensor(float(state.step)), **moments}
    return optimizer


def _write(folder: Path, state: _State, optimizer: torch.optim.AdamW) -> None:
    """Everything a later process needs, in one file that is there whole or not at all."""
    tensors = {f"weight {name}": x.detach().contiguous() for name, x in state.weights.items()}
    for name, x in state.weights.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimizer.state[x]:
                tensors[f"moment {name}.{moment}"] = optimizer.state[x][moment].contiguous()
    header = {_HEADER: json.dumps({"step": state.step, "history": state.history})}
    scratch = folder / f".{STATE}.{os.getpid()}"
    scratch.write_bytes(save(tensors, header))
    scratch.replace(folder / STATE)


def _read(folder: Path) -> _State | None:
    """What an earlier call left.

    Raises:
        CorruptFile: the file is damaged.
    """
    file = folder / STATE
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            told = json.loads((opened.metadata() or {})[_HEADER])
        tensors = load_file(file)
        parts = {part: _named(tensors, part) for part in ("weight", "moment")}
        return _State(int(told["step"]), parts["weight"], parts["moment"], list(told["history"]))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CorruptFile(
            f"{file} cannot be read: {error}. Remove {folder}, or train under another name."
        ) from error


def _named(tensors: Mapping[str, Tensor], part: str) -> Tensors:
    return {name.partition(" ")[2]: x for name, x in tensors.items() if name.startswith(f"{part} ")}
