"""What a training leaves: SAELens's folder (`cfg.json`, `sae_weights.safetensors`), figures and a card beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ...model.protocol import ModelInfo
from ...model.sites import Site
from ...result import Frozen
from ..agreement import Agreement
from ..protocol import ReleaseFigures
from ..quality import Figures, Quality
from ..sources import CONFIG, FIGURES, WEIGHTS
from .recipe import Recipe

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

CARD = "card.json"
_HOOKS = {
    "embed": "hook_embed", "resid_pre": "blocks.{}.hook_resid_pre", "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post", "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out", "head": "blocks.{}.attn.hook_z", "neuron": "blocks.{}.mlp.hook_post",
}  # fmt: skip
TRAINABLE = tuple(_HOOKS)


class Text(Frozen):
    """What it was trained and judged on."""

    name: str = Field(description="Corpus, file or folder.")
    sha256: str = Field(description="Of the documents.")
    tokens: int = Field(description="Tokens read for training, massive-norm tokens included.")
    trained_on: int = Field(description="Of them, those that were trained on.")
    width: int = Field(description="Tokens a row.")
    bos: bool = Field(description="Whether each row begins with BOS.")
    held_out_tokens: int = Field(description="Tokens of other documents, which the figures are measured on.")
    held_out_sha256: str | None = Field(default=None, description="Of those documents.")


class Beside(Frozen):
    """The same training with another seed, sparsity or number of steps."""

    quality: Quality = Field(description="On the same held-out tokens.")
    agreement: Agreement | None = Field(default=None, description="This dictionary's features looked for in that one.")


class Card(Frozen):
    """The record of a training."""

    name: str
    model: str = Field(description="Model it belongs to.")
    model_hash: str = Field(description="Fingerprint of that model's weights.")
    site: str
    text: Text
    recipe: Recipe
    quality: Quality = Field(description="Of the stored weights, on held-out text of the same source.")
    before_rounding: Quality | None = Field(
        default=None, description="The same with the weights in float32, where they are stored in fewer bits."
    )
    baselines: dict[str, Quality] = Field(default_factory=dict, description="The same figures of the baselines.")
    beside: dict[str, Beside] = Field(default_factory=dict, description="Other trainings on the same text.")
    history: tuple[dict[str, float], ...] = Field(description="step, loss, explained_variance, l0, dead, as trained.")
    seconds: float = Field(description="Of training, the reading of activations left out.")
    versions: dict[str, str]
    limits: tuple[str, ...] = Field(description="What it must not be used for, in words.")


def hook_name(site: Site) -> str:
    """TransformerLens's name of a place, as SAELens writes it."""
    return _HOOKS[site.kind].format(site.layer)


def write(
    sae: TrainingSAE, folder: Path, *, model: ModelInfo, site: Site, text: str, width: int, bos: bool,
    dtype: str | None = None,
) -> None:  # fmt: skip
    """Weights and configuration, whole or not at all; a folder that is there is replaced.

    dtype: of the stored numbers ('float16' halves the file); those of the training when absent.
    """
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    meta = sae.cfg.metadata
    meta.model_name, meta.hook_name = model.name, hook_name(site)
    meta.context_size, meta.prepend_bos, meta.dataset_path = width, bos, text
    sae.save_inference_model(half)
    if dtype:
        _recast(half, dtype)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(half, folder)


def write_figures(folder: Path, quality: Quality, card: Card | None = None) -> None:
    """The figures that a later load is held against (massive-norm tokens left out), and the card."""
    told: Figures = quality.ordinary
    stated = ReleaseFigures(
        l0=told.l0, explained_variance=told.explained_variance, ce_recovered=told.ce_recovered,
        dead_share=told.dead_share,
    )  # fmt: skip
    (folder / FIGURES).write_text(stated.model_dump_json(indent=1) + "\n")
    if card is not None:
        (folder / CARD).write_text(card.model_dump_json(indent=1) + "\n")


def _recast(folder: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    kind = getattr(torch, dtype)
    save_file({k: v.to(kind).contiguous() for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "dtype": dtype}, indent=1) + "\n")
