"""More features than dimensions: x' = relu(W^T W x + b), trained to give sparse features back.

Features are uniform on 0 to 1, and 0 with probability `sparsity`; the loss is the importance-weighted squared error.
Every sparsity is trained from many starts at once, all of them one batched tensor, and the start with the least loss on
fresh data is taken: single starts end in local minima.

Source: Elhage et al., "Toy models of superposition" (2022), https://transformer-circuits.pub/2022/toy_model: the model
and its loss; dimensionality D_i = |W_i|^2 / sum over j of (W_i/|W_i| . W_j)^2, the share of a dimension a feature has.
Shapes: G sparsities, K starts, m dimensions, n features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from .loop import WEIGHTS, Recipe, Tensors

BATCH, TESTED = 1024, 2**16  # samples of a step, and of the choice among the starts
TEST_STREAM = 2**40
HELD = 0.5  # length of a feature's vector from which it counts as represented
FIGURE_DEGREES = 2.0  # how far a regular figure's angles may be off


@dataclass(frozen=True)
class SuperpositionSettings:
    """What is trained."""

    name: str
    seed: int = 0
    steps: int = 2000
    features: int = 5
    dimensions: int = 2
    sparsities: tuple[float, ...] = (0.0, 0.7, 0.95)
    importance_decay: float = 0.9  # feature i counts decay^i
    starts: int = 16
    learning_rate: float = 1e-2

    @property
    def importances(self) -> tuple[float, ...]:
        return tuple(self.importance_decay**i for i in range(self.features))


class SuperpositionTask:
    """The task, for the loop."""

    def __init__(self, settings: SuperpositionSettings, keep: int = 11) -> None:
        self.settings = settings
        s = settings
        self.recipe = Recipe(
            s.steps, s.learning_rate, betas=(0.9, 0.999), cosine=True, log_every=max(1, s.steps // 60), keep=keep
        )
        self._importance = torch.tensor(s.importances)

    def fresh(self) -> Tensors:
        s, generator = self.settings, torch.Generator().manual_seed(self.settings.seed)
        groups = (len(s.sparsities), s.starts)
        drawn = torch.randn(*groups, s.dimensions, s.features, generator=generator) / s.dimensions**0.5
        return {"W": drawn, "b": torch.zeros(*groups, s.features)}

    def loss(self, weights: Tensors, step: int) -> Float[Tensor, ""]:
        # A sum, so that each start moves as if it were alone.
        return self.losses(weights, self.samples(BATCH, (self.settings.seed << 20) + step)).sum()

    def measure(self, weights: Tensors) -> Mapping[str, float]:
        best = self.tested(weights).amin(1)
        return {f"sparsity {s:g}": float(x) for s, x in zip(self.settings.sparsities, best, strict=True)}

    def keep(self, folder: Path, weights: Tensors, step: int) -> None:
        save_file({name: x.detach().contiguous() for name, x in weights.items()}, folder / WEIGHTS)

    def samples(self, n: int, stream: int) -> Float[Tensor, "G N n"]:
        s, generator = self.settings, torch.Generator().manual_seed(stream)
        shape = (len(s.sparsities), n, s.features)
        values, present = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
        return values * (present >= torch.tensor(s.sparsities)[:, None, None])

    def losses(self, weights: Tensors, x: Float[Tensor, "G N n"]) -> Float[Tensor, "G K"]:
        """Mean weighted squared error of every start."""
        w, b = weights["W"], weights["b"]
        hidden = torch.einsum("gbn,gkmn->gkbm", x, w)
        out = (torch.einsum("gkbm,gkmn->gkbn", hidden, w) + b[:, :, None]).relu()
        return (self._importance * (x[:, None] - out).square()).sum(-1).mean(-1)

    def tested(self, weights: Tensors) -> Float[Tensor, "G K"]:
        """Losses of every start on samples that no step draws."""
        total = torch.zeros(weights["b"].shape[:2])
        parts = 16
        for part in range(parts):
            total += self.losses(weights, self.samples(TESTED // parts, TEST_STREAM + self.settings.seed + part))
        return total / parts


@dataclass(frozen=True)
class Geometry:
    """How the features lie in the hidden space."""

    norms: tuple[float, ...]
    dimensionality: tuple[float, ...]  # 0 for a feature that is not represented
    represented: tuple[int, ...]  # features, by direction round the plane where there are two dimensions
    angles: tuple[float, ...]  # degrees between neighbours, in that order; empty but in two dimensions
    figure: str


def geometry(w: Float[Tensor, "m n"]) -> Geometry:
    """Lengths, dimensionalities and, in the plane, the figure that the represented features make."""
    norms = w.norm(dim=0)
    unit = w / norms.clamp(min=1e-12)
    shared = (unit.T @ w).square().sum(1)
    held = norms > HELD
    dims = torch.where(held, norms.square() / shared.clamp(min=1e-12), torch.zeros_like(norms))
    features = held.nonzero()[:, 0].tolist()
    angles: tuple[float, ...] = ()
    if w.shape[0] == 2 and len(features) > 1:
        turn = torch.rad2deg(torch.atan2(w[1], w[0])) % 360
        features.sort(key=lambda i: float(turn[i]))
        around = turn[features]
        angles = tuple(((around.roll(-1) - around) % 360).tolist())
    return Geometry(tuple(norms.tolist()), tuple(dims.tolist()), tuple(features), angles, _figure(features, angles))


def _figure(features: Sequence[int], angles: Sequence[float]) -> str:
    """The name of a regular figure; the number of features where there is none."""
    n = len(features)
    if n == 2 and angles and math.isclose(min(angles), 90, abs_tol=FIGURE_DEGREES):
        return "two orthogonal features"
    regular = n > 1 and bool(angles) and all(abs(a - 360 / n) <= FIGURE_DEGREES for a in angles)
    names = {2: "one antipodal pair", 3: "regular triangle", 4: "two antipodal pairs", 5: "regular pentagon"}
    return names.get(n, f"regular {n}-gon") if regular else f"{n} features, no regular figure"
