"""The kinds of toys that can be trained: their settings, their task, and what is measured of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..model.backends.toy_file import save_toy
from ..model.threads import use_threads
from ..model.trained import TOY_FILE
from .addition import AdditionSettings, AdditionTask
from .induction import InductionSettings, InductionTask
from .loop import Progress, Trained, train
from .measuring import addition_learned, induction_learned, superposition_learned
from .superposition import SuperpositionSettings, SuperpositionTask


@dataclass(frozen=True)
class Kind:
    """One kind of toy."""

    settings: type
    task: Callable[..., Any]
    learned: Callable[..., Any]
    unit: str  # of the curves
    caption: str  # what a reader of the picture must know

    def defaults(self) -> dict[str, Any]:
        """Every setting but the name."""
        return {f.name: f.default for f in fields(self.settings) if f.name != "name"}

    def train(self, settings: Mapping[str, Any], folder: Path, progress: Progress) -> tuple[Trained, Any]:
        """Train in a folder, measure, and write the finished model where it is a transformer.

        Raises:
            Cancelled, Unavailable, CorruptFile, NotFinite: see `loop.train`.
        """
        use_threads()
        task = self.task(self.settings(**settings))
        trained = train(task, folder, progress)
        learned = self.learned(task, trained, folder, progress)
        if hasattr(task, "form"):
            save_toy(folder / TOY_FILE, trained.weights, task.form)
        return trained, learned


KINDS: Mapping[str, Kind] = {
    "induction": Kind(
        InductionSettings, InductionTask, induction_learned, "nats",
        "Loss in nats on rows that no step drew; heads scored by attention on repeated random tokens.",
    ),
    "modular_addition": Kind(
        AdditionSettings, AdditionTask, addition_learned, "nats; accuracy as a share",
        "Loss in nats. Key frequencies carry 1% of the finished model's logit variance or more; waves are taken from "
        "the logits.",
    ),
    "superposition": Kind(
        SuperpositionSettings, SuperpositionTask, superposition_learned, "importance-weighted squared error",
        "The best of all starts at each sparsity, by importance-weighted squared error on fresh samples; importances "
        "in brackets.",
    ),
}
