"""A direction as an argument: kept by an earlier run, between tokens, a dictionary's feature, or plain numbers.

All are vectors of the model's width D, in the space of the residual stream, in the units they come in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from pydantic import Field

from ..dictionaries.logits import residual_directions
from ..dictionaries.protocol import Dictionary
from ..errors import BadArguments, UnknownName, Unsupported
from ..model.protocol import Model
from ..model.sites import Site
from ..result import Frozen
from .vocabulary import token_choice, token_labels

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class FromRun(Frozen):
    """An array that an earlier run kept, such as find_direction's."""

    run: str = Field(description="Run id, like r-0012.")
    array: str = Field(description="Array's name: mean_difference, pca, logistic, ...")
    layer: int | None = Field(default=None, description="Layer whose row is meant; needed where there are several.")


class FromTokens(Frozen):
    """The difference of token vectors."""

    tokens: tuple[str | int, ...] = Field(min_length=1, description="Exact tokens, leading space included, or ids.")
    minus: tuple[str | int, ...] = Field(default=(), description="Tokens whose mean vector is taken away.")
    side: Literal["unembedding", "embedding"] = Field(
        default="unembedding",
        description="unembedding: raises the tokens' logits (final norm's weight folded in); embedding: input vectors.",
    )


class FromValues(Frozen):
    """A vector written out."""

    values: tuple[float, ...] = Field(min_length=1, description="One number per unit of the model's width.")


class FromFeature(Frozen):
    """What one feature of a loaded dictionary writes."""

    sae: str = Field(description="Handle of a loaded dictionary, or a name load_sae accepts.")
    feature: int = Field(ge=0, description="Number of the feature.")


DirectionRef = FromRun | FromTokens | FromValues | FromFeature


class Saved(Protocol):
    """An array of an earlier run."""

    @property
    def tensor(self) -> Tensor: ...


class Sources(Protocol):
    """Where directions come from: what a technique's context offers."""

    @property
    def model(self) -> Model: ...
    @property
    def saved(self) -> Callable[[str, str], Saved] | None: ...
    @property
    def dictionary(self) -> Dictionary | None: ...


class Vector(NamedTuple):
    """A direction that was looked up."""

    vector: Tensor  # [D], float32 or wider, on the model's device
    name: str  # in words


def direction_of(sources: Sources, ref: DirectionRef) -> Vector:
    """Look a direction up.

    Raises:
        BadArguments: of another width, zero, not finite, a layer that is missing, or tokens that are no tokens.
        UnknownName, CorruptFile: no such run or array.
        Unsupported: nothing is stored here, no dictionary is loaded, or tokens of a model whose weights are not known.
    """
    if isinstance(ref, FromRun):
        found = _from_run(sources, ref)
    elif isinstance(ref, FromTokens):
        found = _from_tokens(sources.model, ref)
    elif isinstance(ref, FromValues):
        found = Vector(like(sources.model).new_tensor(ref.values), f"{len(ref.values)} given numbers")
    else:
        found = _from_feature(sources.model, sources.dictionary, ref)
    return Vector(checked(sources.model, found.vector, found.name), found.name)


def like(model: Model) -> Float[Tensor, " d_model"]:
    """A float32 vector of the model's width on its device, to make others from."""
    embed = Site("embed")
    return model.run(model.tokenize([[0]]), read=(embed,)).reads[embed][0, 0].float()


def checked(model: Model, vector: Tensor, name: str) -> Float[Tensor, " d_model"]:
    """The vector on the model's device, if it can be a direction.

    Raises:
        BadArguments: of another width, zero, or not finite.
    """
    width = model.info.d_model
    if tuple(vector.shape) != (width,):
        raise BadArguments(f"the direction ({name}) has shape {list(vector.shape)}; this model's width is {width}.")
    if not vector.isfinite().all() or not vector.norm() > 0:
        raise BadArguments(f"the direction ({name}) is zero or holds NaN or infinity; give one with a length.")
    return vector.to(like(model))


def _from_run(sources: Sources, ref: FromRun) -> Vector:
    if sources.saved is None:
        raise Unsupported("no earlier runs can be read here; give the direction as `values` or as `tokens`.")
    kept = sources.saved(ref.run, ref.array).tensor
    name = f"{ref.array} of {ref.run}"
    if kept.dim() == 1:
        return Vector(kept, name)
    if kept.dim() != 2:
        raise BadArguments(f"array {name} has shape {list(kept.shape)}; a direction is one row of [layer, d_model].")
    row = _row(sources, ref, kept)
    return Vector(kept[row], f"{name}, layer {ref.layer}" if ref.layer is not None else name)


def _row(sources: Sources, ref: FromRun, kept: Tensor) -> int:
    """The row that stands for the layer; the run's array `layers` says which layers there are."""
    layers = _layers(sources, ref, len(kept))
    if ref.layer is None and len(kept) == 1:
        return 0
    if ref.layer not in layers:
        raise BadArguments(
            f"array {ref.array!r} of run {ref.run} has rows for layers {layers}; `layer` must be one of them, not "
            f"{ref.layer}."
        )
    return layers.index(ref.layer)


def _layers(sources: Sources, ref: FromRun, rows: int) -> list[int]:
    assert sources.saved is not None
    try:
        found = [int(n) for n in sources.saved(ref.run, "layers").tensor.tolist()]
    except UnknownName:
        found = list(range(rows))  # a row for every layer
    return found


def _from_tokens(model: Model, ref: FromTokens) -> Vector:
    vector = _mean_vector(model, ref.tokens, "tokens", ref.side)
    names = " ".join(map(repr, token_labels(model, token_choice(model, ref.tokens, "tokens"))))
    if ref.minus:
        vector = vector - _mean_vector(model, ref.minus, "minus", ref.side)
        names += " minus " + " ".join(map(repr, token_labels(model, token_choice(model, ref.minus, "minus"))))
    return Vector(vector, f"{ref.side} of {names}")


def _mean_vector(model: Model, tokens: tuple[str | int, ...], what: str, side: str) -> Float[Tensor, " d_model"]:
    ids = token_choice(model, tokens, what)
    try:
        model.weights.embed()
    except Unsupported as error:
        raise Unsupported(f"{error} Or give the direction as `values`, or by `run` of find_direction.") from None
    if side == "embedding":
        return model.weights.embed()[list(ids)].float().mean(0)
    vector, norm = model.weights.unembed(ids).float().mean(1), model.weights.final_norm()
    vector = vector if norm.weight is None else vector * norm.weight.float()
    return vector - vector.mean() if norm.kind == "layer" else vector


def _from_feature(model: Model, dictionary: Dictionary | None, ref: FromFeature) -> Vector:
    """What one unit of the feature adds to the residual stream, whatever the site it is of."""
    if dictionary is None:
        raise Unsupported(f"the direction names the dictionary {ref.sae!r}, but none is loaded here; call load_sae.")
    if ref.feature >= dictionary.info.d_dict:
        raise BadArguments(f"{ref.sae} has features 0 to {dictionary.info.d_dict - 1}; {ref.feature} is none of them.")
    (direction,) = residual_directions(model, dictionary, [ref.feature])
    return Vector(direction.float(), f"feature {ref.feature} of {ref.sae}, {dictionary.info.writes}")


def dictionary_named(refs: Iterable[DirectionRef | None]) -> str | None:
    """The one dictionary that some directions name; None where none does.

    Raises:
        BadArguments: they name several.
    """
    names = sorted({ref.sae for ref in refs if isinstance(ref, FromFeature)})
    if len(names) > 1:
        raise BadArguments(f"directions of one call come from one dictionary; these name {', '.join(names)}.")
    return names[0] if names else None
