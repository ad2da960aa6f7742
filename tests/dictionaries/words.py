"""A small random model that reads text of words 'w0' to 'w96', and dictionaries whose figures can be worked out."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from anatomist.dictionaries.protocol import DictionaryInfo
from anatomist.model.loading import wrap_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.backends.families import FAMILIES, VOCABULARY

if TYPE_CHECKING:
    from anatomist.model.protocol import Model
    from torch import Tensor


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w1")


def reader(*, heavy_word: int | None = None) -> Model:
    """heavy_word: a token whose embedding is a hundred times as long as the others."""
    hf = FAMILIES["llama"]()
    if heavy_word is not None:
        hf.get_input_embeddings().weight.data[heavy_word] *= 100
    return wrap_model(hf, tokenizer(), name="llama")


def documents(n: int, words: int = 24, seed: int = 0) -> tuple[str, ...]:
    draw = random.Random(seed)
    return tuple(" ".join(f"w{draw.randrange(1, VOCABULARY)}" for _ in range(words)) for _ in range(n))


class Both:
    """Every coordinate as two features, its positive and its negative part: rebuilds exactly."""

    def __init__(self, d: int, site: str, like: Tensor) -> None:
        eye = like.new_zeros(d, d).fill_diagonal_(1.0)
        self.directions = eye.repeat(2, 1)
        self.directions[d:] *= -1
        self.bias = like.new_zeros(d)
        self.info = DictionaryInfo(
            name="both", source="test", kind="sae", architecture="test", model=None, site=site, site_out=site, hook="",
            d_in=d, d_out=d, d_dict=2 * d, dtype="float32", device="cpu", weights_hash="",
        )  # fmt: skip

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.directions.T).relu()

    def decode(self, f: Tensor, x: Tensor | None = None) -> Tensor:
        return f @ self.directions + self.bias

    def scale(self, x: Tensor) -> Tensor:
        return x.new_ones((*x.shape[:-1], 1))

    def offset(self, x: Tensor) -> Tensor:
        return self.bias.expand(x.shape)

    def close(self) -> None:
        return None


class Nothing(Both):
    """No feature ever fires: every token becomes the bias."""

    def encode(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], len(self.directions))


class Broken(Both):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x) * float("nan")
