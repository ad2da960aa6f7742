"""How a dictionary is trained: one frozen record, the same for ours, for baselines and for the synthetic benchmark."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ...result import Frozen

if TYPE_CHECKING:
    from sae_lens import TrainingSAE, TrainingSAEConfig

Architecture = Literal["standard", "topk", "batchtopk", "jumprelu", "matryoshka", "gated"]
TOP_K: frozenset[str] = frozenset({"topk", "batchtopk", "matryoshka"})
WARM_UP, DECAY = 0.05, 0.2  # shares of the steps


class Recipe(Frozen):
    """Settings of a training. Those that an architecture does not have are left out of its card."""

    architecture: Architecture = Field(default="batchtopk", description="SAELens's training architecture.")
    d_dict: int = Field(ge=1, description="Number of features.")
    k: int = Field(default=32, ge=1, description="Active features a token (topk, batchtopk, matryoshka).")
    penalty: float = Field(
        default=5.0, gt=0, description="Weight of the sparsity loss: l1 (standard, gated) or l0 (jumprelu)."
    )
    widths: tuple[int, ...] = Field(
        default=(), description="Nested widths of a matryoshka dictionary, the last being d_dict; absent: halved twice."
    )
    batch: int = Field(default=2048, ge=8, description="Tokens a step.")
    steps: int = Field(default=2000, ge=1, description="Optimiser steps.")
    lr: float = Field(default=4e-4, gt=0, description="Adam's learning rate, warmed up over 5%, decayed over 20%.")
    normalise: bool = Field(
        default=True, description="Scale activations to a mean norm of sqrt(d) in training; folded into the weights."
    )
    dead_after: int = Field(default=200, ge=1, description="Steps without firing after which a feature counts as dead.")
    half_precision: bool = Field(
        default=False, description="Products in bfloat16 (autocast), weights in float32: several times faster where "
        "the processor has them."
    )
    freeze_decoder: bool = Field(
        default=False, description="Keep the random decoder: the baseline that learns no feature."
    )
    seed: int = Field(default=0, ge=0, description="Of the weights and of the order of the tokens.")

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.architecture in TOP_K and self.k > self.d_dict:
            raise ValueError(
                f"k is {self.k}, but there are {self.d_dict} features; choose a smaller k or more features"
            )
        if self.widths and (sorted(set(self.widths)) != list(self.widths) or self.widths[-1] != self.d_dict):
            raise ValueError(f"widths {self.widths} must rise and end with d_dict, {self.d_dict}")
        return self

    @property
    def fingerprint(self) -> str:
        """Of the settings: a checkpoint made with others is not resumed."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def warm_up(self) -> int:
        return int(WARM_UP * self.steps)

    @property
    def decay(self) -> int:
        return int(DECAY * self.steps)

    @property
    def nested(self) -> tuple[int, ...]:
        return self.widths or tuple(sorted({max(1, self.d_dict // 4), max(1, self.d_dict // 2), self.d_dict}))


def parameters(recipe: Recipe, d_in: int) -> int:
    """Numbers that are trained: encoder, decoder and their biases."""
    return 2 * d_in * recipe.d_dict + recipe.d_dict + d_in


def training_config(recipe: Recipe, d_in: int, device: str) -> TrainingSAEConfig:
    """SAELens's configuration of the training class."""
    import sae_lens as sl

    normalisation = "expected_average_only_in" if recipe.normalise else "none"
    common = {"d_in": d_in, "d_sae": recipe.d_dict, "device": device, "normalize_activations": normalisation}
    warm = recipe.warm_up
    match recipe.architecture:
        case "standard":
            return sl.StandardTrainingSAEConfig(l1_coefficient=recipe.penalty, l1_warm_up_steps=warm, **common)
        case "gated":
            return sl.GatedTrainingSAEConfig(l1_coefficient=recipe.penalty, l1_warm_up_steps=warm, **common)
        case "jumprelu":
            return sl.JumpReLUTrainingSAEConfig(l0_coefficient=recipe.penalty, l0_warm_up_steps=warm, **common)
        case "topk":
            return sl.TopKTrainingSAEConfig(k=recipe.k, **common)
        case "batchtopk":
            return sl.BatchTopKTrainingSAEConfig(k=recipe.k, **common)
        case "matryoshka":
            return sl.MatryoshkaBatchTopKTrainingSAEConfig(
                k=recipe.k, matryoshka_widths=list(recipe.nested), **common
            )


def untrained(recipe: Recipe, d_in: int, device: str) -> TrainingSAE:
    """The training dictionary with the weights that the seed gives."""
    import torch
    from sae_lens import TrainingSAE

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        sae = TrainingSAE.from_dict(training_config(recipe, d_in, device).to_dict())
    if recipe.freeze_decoder:
        sae.W_dec.requires_grad_(False)
    return sae
