"""The Dictionary protocol: all that a technique may ask of a sparse autoencoder or a transcoder.

A dictionary reads activations x at one site and explains those at a site (its own, or for a transcoder another) as a
sparse sum of directions:

    f(x) = encode(x)                                         [..., F]  zero or more active features a token
    x_hat = decode(f, x) = scale(x) * (f @ directions) + offset(x)

scale(x) is 1 and offset(x) the decoder's bias unless the dictionary normalises every token by itself (layer_norm,
constant_norm_rescale), reads centred activations, or has a skip connection: those need x. Everything constant
(norm factors, decoder norms) is folded into `directions`. So feature i adds exactly scale(x) f_i directions[i], and the
error term is what is left: x - x_hat.

Shapes: D_in and D_out widths of the sites read and written, F features. A head site is read with its heads side by
side: D = H * h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pydantic import Field

from ..model.sites import Site, parse_site
from ..result import Frozen

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Kind = Literal["sae", "transcoder"]
# What the dictionary is given of the site it reads: the activation as it stands; less its mean over the width (what
# TransformerLens leaves of a residual stream with centred writing weights); divided by the norm's scale, without the
# norm's weight; or through the whole norm that stands before the MLP.
Input = Literal["plain", "centred", "scaled", "normed"]


class ReleaseFigures(Frozen):
    """What the release itself says of the dictionary; absent where it is silent."""

    l0: float | None = Field(default=None, description="Mean number of active features a token.")
    explained_variance: float | None = Field(default=None, description="Share of the variance explained.")
    ce_recovered: float | None = Field(default=None, description="Share of the cross-entropy recovered.")
    dead_share: float | None = Field(default=None, description="Share of the features that never fired.")


class DictionaryInfo(Frozen):
    """What was loaded, and how it wants to be used."""

    name: str = Field(description="Handle: pass it as `sae`.")
    source: str = Field(description="Shipped name, folder, or release and id it came from.")
    kind: Kind
    architecture: str = Field(description="SAELens's name: standard, topk, jumprelu, gated, transcoder, ...")
    model: str | None = Field(description="Model it was trained on, as its metadata says; absent when they do not.")
    site: str = Field(description="Site it reads, e.g. 'blocks.15.resid_post'.")
    site_out: str = Field(description="Site it explains: the same for an SAE, another for a transcoder.")
    hook: str = Field(description="The hook's name in the metadata.")
    input: Input = Field(default="plain", description="What it is given of the site: plain, centred, scaled, normed.")
    d_in: int = Field(description="Width of the site it reads.")
    d_out: int = Field(description="Width of the site it explains.")
    d_dict: int = Field(description="Number of features.")
    dtype: str
    device: str
    normalisation: str = Field(default="none", description="How it normalises activations itself, before folding.")
    needs_input: bool = Field(default=False, description="Whether decode needs the activation x beside the features.")
    bos: bool | None = Field(default=None, description="Whether it was trained with BOS first; absent: unknown.")
    context_size: int | None = Field(default=None, description="Tokens a row in its training.")
    release: ReleaseFigures = Field(default=ReleaseFigures(), description="Figures the release states.")
    weights_hash: str = Field(description="Fingerprint of the weights (sha256, hexadecimal).")
    metadata: Mapping[str, str] = Field(default_factory=dict, description="All other metadata, as text.")
    cautions: tuple[str, ...] = Field(
        default=(), description="What was found amiss at load, in words; techniques pass these on as warnings."
    )

    @property
    def reads(self) -> Site:
        return parse_site(self.site)

    @property
    def writes(self) -> Site:
        return parse_site(self.site_out)

    @property
    def weight_bytes(self) -> int:
        """Bytes of encoder, decoder and biases."""
        width = {"float32": 4, "float64": 8}.get(self.dtype, 2)
        return width * (self.d_dict * (self.d_in + self.d_out + 1) + self.d_out)


@runtime_checkable
class Dictionary(Protocol):
    """A sparse autoencoder or transcoder. Differentiable in x and f where its own activation function is."""

    @property
    def info(self) -> DictionaryInfo: ...

    @property
    def directions(self) -> Float[Tensor, "f d_out"]:
        """The decoder's rows d_i: one unit of feature i adds scale(x) d_i."""
        ...

    def encode(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest f"]:
        """Feature activations of what stands at the site it reads (before `info.input` is applied: encode does it).

        Raises:
            BadArguments: another width.
        """
        ...

    def decode(
        self, f: Float[Tensor, "*rest f"], x: Float[Tensor, "*rest d_in"] | None = None
    ) -> Float[Tensor, "*rest d_out"]:
        """The reconstruction: scale(x) * (f @ directions) + offset(x).

        Raises:
            BadArguments: another number of features, or no x where `info.needs_input`.
        """
        ...

    def scale(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest 1"]:
        """What one unit of every feature is worth at each token: 1, or the token's own norm."""
        ...

    def offset(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest d_out"]:
        """The reconstruction when no feature is active."""
        ...

    def close(self) -> None:
        """Free the weights."""
        ...
