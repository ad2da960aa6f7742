"""A toy model as one safetensors file: its weights by name, and in the header what else it is.

Trained toys and compiled programs are kept so. A folder that holds `toy.safetensors` is a model folder like any other:
`load_model(folder)` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...errors import CorruptFile, Unsupported
from .toy import NO_NORM, ToyBlock, ToyModel, ToyWeights
from .toy_words import Words

HEADER = "anatomist-toy"
_WHOLE = ("embedding", "positions", "unembedding", "unembedding_bias")


@dataclass(frozen=True)
class Form:
    """What a toy is besides its weights."""

    name: str
    source: str
    n_ctx: int
    strings: tuple[str, ...]
    bos: int | None = None
    readable: int | None = None
    activation: Literal["relu", "gelu_tanh"] = "relu"
    causal: bool = True
    learned: bool = False

    @property
    def words(self) -> Words:
        return Words(self.strings, self.bos, self.readable)

    def model(self, tensors: Mapping[str, Tensor]) -> ToyModel:
        """The model that these weights are."""
        weights = toy_weights(tensors, activation=self.activation, causal=self.causal)
        return ToyModel(
            weights, name=self.name, source=self.source, n_ctx=self.n_ctx, words=self.words, learned=self.learned
        )


def toy_weights(
    tensors: Mapping[str, Tensor], *, activation: Literal["relu", "gelu_tanh"] = "relu", causal: bool = True
) -> ToyWeights:
    """Weights by name ('embedding', 'blocks.0.q', ...) as a toy's; nothing is copied, so gradients reach the names."""
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    parts: list[dict[str, Any]] = [
        {name.split(".")[2]: x for name, x in tensors.items() if name.startswith(f"blocks.{i}.")} for i in range(layers)
    ]
    blocks = tuple(ToyBlock(**part) for part in parts)
    whole: dict[str, Any] = {name: tensors.get(name) for name in _WHOLE}
    return ToyWeights(**whole, blocks=blocks, activation=activation, causal=causal)


def named_tensors(weights: ToyWeights) -> dict[str, Tensor]:
    """A toy's weights by name.

    Raises:
        Unsupported: it has norms, which such a file does not hold.
    """
    norms = [weights.norm, *(n for b in weights.blocks for n in (b.attention_norm, b.mlp_norm))]
    if any(norm.kind != NO_NORM.kind for norm in norms):
        raise Unsupported("a toy with norms cannot be written to a toy file; save it as a Hugging Face model instead.")
    found = {name: getattr(weights, name) for name in _WHOLE}
    for i, block in enumerate(weights.blocks):
        found |= {f"blocks.{i}.{f.name}": getattr(block, f.name) for f in fields(block)}
    return {name: x.detach() for name, x in found.items() if isinstance(x, Tensor)}


def save_toy(file: Path, tensors: Mapping[str, Tensor], form: Form) -> None:
    """Write a toy file, whole or not at all."""
    written = save({name: x.detach().contiguous() for name, x in tensors.items()}, {HEADER: json.dumps(asdict(form))})
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    scratch.write_bytes(written)
    scratch.replace(file)


def load_toy(file: Path) -> ToyModel:
    """The model of a toy file.

    Raises:
        CorruptFile: it is damaged, or no toy.
    """
    try:
        with safe_open(file, "pt") as opened:
            header = (opened.metadata() or {}).get(HEADER)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        form = json.loads(header) if header else None
        if not isinstance(form, dict):
            raise ValueError("its header does not describe a toy")
        return Form(**{**form, "strings": tuple(form["strings"])}).model(tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{file} is no toy model: {error}. Train or convert it again.") from error


def untrained(shapes: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Fresh weights of the same shapes: normal, with the variance 1 / inputs for matrices and 1 / width for tables.

    Biases are 0. Training starts from these, and untrained twins are these.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: _fresh(name.rpartition(".")[2], x, generator) for name, x in shapes.items()}


def _fresh(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith("_bias"):
        return torch.zeros_like(like)
    drawn = torch.randn(like.shape, generator=generator)
    inputs = like.shape[-1] if name in ("embedding", "positions") else like.shape[-2]
    if name == "o":  # [H, h, D]: all heads write together
        inputs = like.shape[0] * like.shape[1]
    return drawn / inputs**0.5


def untrained_twin(model: ToyModel, seed: int) -> ToyModel:
    """A toy of the same form with weights that were never trained."""
    w = model.weights
    weights = toy_weights(untrained(named_tensors(w), seed), activation=w.activation, causal=w.causal)
    name = f"{model.info.name}-random-{seed}"
    return ToyModel(weights, name=name, source="untrained weights", n_ctx=model.n_ctx, words=model.words, learned=True)
