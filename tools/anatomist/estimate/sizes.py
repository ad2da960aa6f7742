"""The numbers of a model's shape that size and cost depend on, from a loaded model, a config.json, or plain numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..errors import CorruptFile
from ..model.offline import home
from ..model.protocol import ModelInfo
from ..result import Frozen

Dtype = Literal["float32", "float16", "bfloat16", "float64"]
ITEM_BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
WEIGHT_FILES = ("*.safetensors", "*.gguf")


class Sizes(Frozen):
    """The shape of a transformer."""

    layers: int = Field(ge=1, description="Blocks (L).")
    d_model: int = Field(ge=1, description="Width of the residual stream (d).")
    heads: int = Field(ge=1, description="Query heads per layer (H).")
    kv_heads: int = Field(ge=1, description="Key-value heads per layer (K).")
    d_head: int = Field(ge=1, description="Width of a head (h).")
    d_mlp: int = Field(ge=0, description="Width of the MLP (F); 0 for attention-only models.")
    d_vocab: int = Field(ge=1, description="Vocabulary (V).")
    gated: bool = Field(default=True, description="True when the MLP has a gate (three matrices), as in Llama.")
    tied: bool = Field(default=True, description="True when embedding and unembedding are one matrix.")
    parameters: int | None = Field(default=None, ge=1, description="Exact count; counted from the shape when absent.")
    item_bytes: int = Field(default=4, ge=1, le=8, description="Bytes per number: 4 for float32, 2 for bfloat16.")

    @property
    def attention_parameters(self) -> int:
        """Weight matrices of attention in one block: 2 d H h + 2 d K h."""
        return 2 * self.d_model * self.d_head * (self.heads + self.kv_heads)

    @property
    def block_parameters(self) -> int:
        """Weight matrices of one block."""
        return self.attention_parameters + (3 if self.gated else 2) * self.d_model * self.d_mlp

    @property
    def unembed_parameters(self) -> int:
        return self.d_vocab * self.d_model

    @property
    def n_parameters(self) -> int:
        """The exact count where it is known, else the matrices and two norms a block plus the last."""
        if self.parameters is not None:
            return self.parameters
        embeddings = self.unembed_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * (self.block_parameters + 2 * self.d_model) + self.d_model

    @classmethod
    def of_info(cls, info: ModelInfo) -> Sizes:
        """The shape of a loaded model; gate and tying follow from the count of parameters."""
        shape = cls(
            layers=info.n_layers, d_model=info.d_model, heads=info.n_heads, kv_heads=info.n_kv_heads,
            d_head=info.d_head, d_mlp=info.d_mlp, d_vocab=info.d_vocab, parameters=info.parameters,
            item_bytes=max(1, round(info.weight_bytes / max(1, info.parameters))),
        )  # fmt: skip
        return _nearest(shape)

    @classmethod
    def of_config(cls, config: Mapping[str, object], *, item_bytes: int = 4) -> Sizes:
        """The shape in a Hugging Face config.json (Llama, Qwen, Gemma, GPT-2 and GPT-NeoX spellings).

        Raises:
            CorruptFile: a needed number is missing.
        """
        d, heads = _number(config, "hidden_size", "n_embd"), _number(config, "num_attention_heads", "n_head")
        family = str(config.get("model_type", ""))
        return cls(
            layers=_number(config, "num_hidden_layers", "n_layer"),
            d_model=d,
            heads=heads,
            kv_heads=_number(config, "num_key_value_heads", default=heads),
            d_head=_number(config, "head_dim", default=d // heads),
            d_mlp=_number(config, "intermediate_size", "n_inner", default=4 * d),
            d_vocab=_number(config, "vocab_size"),
            gated=family not in ("gpt2", "gpt_neox", "opt", "phi"),
            tied=bool(config.get("tie_word_embeddings", family in ("gpt2", "gemma", "gemma2", "gemma3_text"))),
            item_bytes=item_bytes,
        )


def sizes_of_name(name: str, dtype: str | None = None) -> Sizes | None:
    """The shape of a model that is in a folder or was converted into the cache; None when its config is not here."""
    folder = folder_of(name)
    if folder is None or not (folder / "config.json").is_file():
        return None
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise CorruptFile(f"{folder / 'config.json'} is not JSON: {error}. Load or copy the model again.") from error
    return Sizes.of_config(config.get("text_config", config), item_bytes=ITEM_BYTES.get(dtype or "float32", 4))


def bytes_to_load(name: str, dtype: str | None = None) -> int | None:
    """Bytes of the weights of a model in a folder or the cache; None when it is not here yet."""
    folder = folder_of(name)
    if folder is None:
        return None
    sizes = sizes_of_name(name, dtype)
    if sizes is not None:
        return sizes.n_parameters * sizes.item_bytes
    return sum(f.stat().st_size for pattern in WEIGHT_FILES for f in folder.glob(pattern)) or None


def folder_of(name: str) -> Path | None:
    """The folder of a model that is on this machine: a local one, or a converted offline model."""
    here = Path(name).expanduser()
    if here.is_dir():
        return here
    return next(iter(sorted((home() / "models").glob(f"{name}-*/"))), None) if "/" not in name else None


def _number(config: Mapping[str, object], *names: str, default: int | None = None) -> int:
    for name in names:
        if isinstance(value := config.get(name), int):
            return value
    if default is None:
        raise CorruptFile(f"the model's config has no {' or '.join(names)}; give the sizes by numbers instead.")
    return default


def _nearest(shape: Sizes) -> Sizes:
    """The choice of gate and tying whose count of matrices comes nearest to the number of parameters."""
    forms: Sequence[Sizes] = [
        shape.model_copy(update={"gated": gated, "tied": tied}) for gated, tied in product((True, False), repeat=2)
    ]
    return min(forms, key=lambda s: abs(s.model_copy(update={"parameters": None}).n_parameters - s.n_parameters))
