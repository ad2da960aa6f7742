"""The Model protocol: all that a technique may ask of a model.

Glossary of shapes: B rows, T positions (width of the widest row), D model width, H query heads, K key-value heads,
h head width, F MLP width, V vocabulary. Tensors are on the model's device, in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from ..result import Frozen
from .edits import Edit
from .sites import Shape, Site, SiteKind
from .tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Backend = Literal["toy", "local", "nnsight"]


class Parity(Frozen):
    """How far the loaded model is from its plain Hugging Face reference."""

    max_logprob_difference: float = Field(description="Largest absolute difference of log-probabilities (nats).")
    tolerance: float = Field(description="Largest difference accepted at load.")
    text: str = Field(description="The text it was measured on.")


class ModelInfo(Frozen):
    """What was loaded, and how."""

    name: str = Field(description="Handle: pass it as `model`.")
    source: str = Field(description="Offline name, folder or hub id it came from.")
    backend: Backend
    architecture: str = Field(description="Class of the plain model, e.g. LlamaForCausalLM.")
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int = Field(description="MLP width; 0 for attention-only models.")
    d_vocab: int
    n_ctx: int = Field(description="Longest sequence, in tokens.")
    parameters: int
    weight_bytes: int
    positional: Literal["rotary", "learned", "none"]
    norm: Literal["rms", "layer", "none"]
    parallel: bool = Field(description="True when attention and MLP read the same residual (no resid_mid).")
    qk_norm: bool = Field(description="True when queries and keys are normalised (no static QK matrix).")
    post_norms: bool = Field(description="True when attention and MLP outputs are normalised before they are added.")
    dtype: str
    device: str
    attention: str = Field(description="Attention implementation, e.g. eager.")
    tokenizer: str | None = Field(description="Class of the tokenizer; absent for models that take ids only.")
    adds_bos: bool = Field(description="Whether the tokenizer itself puts a BOS token first.")
    causal: bool = Field(default=True, description="False where every position sees the whole row.")
    sites: tuple[SiteKind, ...] = Field(description="Kinds of place this model has on this backend.")
    weights_hash: str = Field(description="Fingerprint of the weights (sha256, hexadecimal).")
    configuration: str | None = Field(
        default=None, description="Fingerprint of the configuration the weights belong to; absent for toys."
    )
    revision: str | None = Field(default=None, description="Hub revision, where there is one.")
    parity: Parity | None = Field(default=None, description="Absent where there is no plain reference.")
    load_seconds: float

    @property
    def shape(self) -> Shape:
        return Shape(self.n_layers, self.n_heads, self.n_kv_heads, self.d_mlp, self.sites, self.backend)


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass: what was read, the logits that were asked for, and how often each edit fired."""

    reads: Mapping[Site, Tensor]  # shapes of `sites.py`, without the head or neuron axis where an index was given
    logits: Tensor | None  # [B, V] at one position a row, or [B, T, V]
    fired: tuple[int, ...]  # per edit: how many (row, position) places it wrote


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm as linear map given its scale: y = centred(x) / scale(x) * weight + bias."""

    kind: Literal["rms", "layer", "none"]
    weight: Tensor | None  # [D]; the effective multiplier (Gemma's 1 + w is already added)
    bias: Tensor | None  # [D]
    eps: float

    def scale(self, x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest 1"]:
        """The divisor: root mean square (rms) or standard deviation (layer) with eps inside the root."""
        if self.kind == "none":
            return x.new_ones((*x.shape[:-1], 1))
        return (self._centred(x).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def frozen(self, part: Float[Tensor, "*rest d"], scale: Float[Tensor, "*rest2 1"]) -> Float[Tensor, "*rest3 d"]:
        """A part of the input through the norm with the whole input's scale; the bias is left out (a component)."""
        out = self._centred(part) / scale
        return out if self.weight is None else out * self.weight

    def __call__(self, x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest d"]:
        """The whole norm."""
        out = self.frozen(x, self.scale(x))
        return out if self.bias is None else out + self.bias

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x


class AttentionRule(NamedTuple):
    """How a layer turns the product of queries and keys into scores."""

    scaling: float  # factor on the product
    window: int | None  # a query sees this many positions, itself included; None: all before it
    score_cap: float | None  # scores become cap * tanh(scores / cap)


@runtime_checkable
class Weights(Protocol):
    """Weights in one orientation for every architecture: activations multiply from the left (x @ W); views."""

    def embed(self) -> Float[Tensor, "V D"]: ...
    def position_embed(self) -> Float[Tensor, "N D"] | None: ...
    def unembed(self, tokens: Sequence[int] | None = None) -> Float[Tensor, "D n"]:
        """Columns of the unembedding: all, or those of the given token ids."""
        ...

    def unembed_bias(self, tokens: Sequence[int] | None = None) -> Float[Tensor, " n"] | None: ...
    def q(self, layer: int) -> Float[Tensor, "H D h"]: ...
    def k(self, layer: int) -> Float[Tensor, "K D h"]: ...
    def v(self, layer: int) -> Float[Tensor, "K D h"]: ...
    def qkv_bias(self, layer: int, which: Literal["q", "k", "v"]) -> Float[Tensor, "n h"] | None: ...
    def o(self, layer: int) -> Float[Tensor, "H h D"]: ...
    def o_bias(self, layer: int) -> Float[Tensor, " D"] | None: ...
    def mlp_in(self, layer: int) -> Float[Tensor, "D F"] | None: ...
    def mlp_gate(self, layer: int) -> Float[Tensor, "D F"] | None: ...
    def mlp_out(self, layer: int) -> Float[Tensor, "F D"] | None: ...
    def mlp_out_bias(self, layer: int) -> Float[Tensor, " D"] | None: ...
    def attention_rule(self, layer: int) -> AttentionRule: ...
    def rotated(self, layer: int, x: Float[Tensor, "*rest h"], position: int) -> Float[Tensor, "*rest h"]:
        """Queries or keys as they stand at a position: turned by rotary models, as they are in all others."""
        ...

    def attention_norm(self, layer: int) -> Norm: ...
    def mlp_norm(self, layer: int) -> Norm: ...
    def post_attention_norm(self, layer: int) -> Norm | None:
        """The norm between the attention output matrix and the residual (Gemma), where there is one."""
        ...

    def post_mlp_norm(self, layer: int) -> Norm | None: ...
    def final_norm(self) -> Norm: ...
    def logit_softcap(self) -> float | None: ...


@runtime_checkable
class Model(Protocol):
    """A language model that can be read and edited at named places."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def weights(self) -> Weights: ...

    def tokenize(self, prompts: Sequence[str | Sequence[int]], *, bos: bool | None = None) -> Tokens:
        """Texts or ready ids to tokens. `bos`: None does what the tokenizer itself does, True and False force it.

        Raises:
            BadPrompts: an empty prompt, an id outside the vocabulary, text for a model without a tokenizer, or a
                prompt longer than the context.
        """
        ...

    def token_ids(self, text: str) -> tuple[int, ...]:
        """The ids of a text as it stands (leading space kept, no BOS)."""
        ...

    def token_strings(self, ids: Sequence[int]) -> tuple[str, ...]: ...

    def run(
        self,
        tokens: Tokens,
        *,
        read: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        logits_at: Sequence[int] | Literal["all"] | None = None,
        gradients: bool = False,
    ) -> Run:
        """One forward pass over all rows, with edits made in the order the places are computed.

        Edits at one place are made in the order given; a read gives the value after them. `logits_at`: one position a
        row, all, or none; with none the pass stops after the last block that is read or edited. With `gradients`
        the graph is kept: reads and logits can be differentiated with respect to reads and edit values.

        Raises:
            BadSite, BadPosition, BadArguments: from the checks of `edits.py` and `sites.py`, before anything runs.
            EditDidNotFire: an edit's place was not computed.
            NotFinite: the logits or a read hold NaN or infinity (masked scores excepted).
        """
        ...

    def generate(
        self, tokens: Tokens, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0,
        edits: Sequence[Edit] = (),
    ) -> tuple[tuple[int, ...], ...]:
        """New ids for each row, greedy at temperature 0; edits without positions act at every position."""
        ...  # fmt: skip

    def chat(self, text: str) -> str:
        """The text in the model's chat template.

        Raises:
            Unsupported: the tokenizer has no chat template.
        """
        ...

    def close(self) -> None:
        """Free the weights."""
        ...
