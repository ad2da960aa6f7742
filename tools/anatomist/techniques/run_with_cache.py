"""Read activations at any places of the model: statistics in the result, the arrays kept with the run.

Idea: one forward pass over the prompts; every place that is named is read, nothing else is kept, and the pass stops
after the last layer that is needed.

Source: caching activations at named places, as in Nanda & Bloom 2022, TransformerLens,
https://github.com/TransformerLensOrg/TransformerLens. With x the vectors of a place at the chosen positions of all
prompts (for patterns and scores: the entries of a query's row that it can see): norm = mean of |x| (Euclidean),
mean, std, min and max over all numbers, zeros = share of numbers that are exactly 0.

Does not show: what an activation means or whether anything reads it. A large norm is not importance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..causal.units import chosen_layers
from ..errors import BadPrompts
from ..figures import Figure, Lines, Series
from ..measures.metrics import widened
from ..model.batches import batches
from ..model.sites import KINDS, WHOLE_MODEL, Shape, Site, check_site, list_sites, parse_site
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts, encode
from ..result import Frozen, Result
from ..technique import ArrayStream, Context, Layers, OnPrompts, Positions

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TITLE = "Read activations"
QUESTIONS = (
    "What are the activations at this layer?",
    "How large is the residual stream, and where are activations sparse or extreme?",
    "Save activations for a probe or a dictionary.",
)
QUERY_ROWS = frozenset({"pattern", "scores"})
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class Arguments(OnPrompts):
    """What to read, where, and how to keep it."""

    sites: tuple[str, ...] = Field(
        default=("resid_post",),
        min_length=1,
        description="Places: a kind (resid_post, attn_out, head, pattern, ...) read at `layers`, or a full name like "
        "blocks.3.head.7.",
    )
    layers: Layers = None
    positions: Positions = "all"
    side: Literal["clean", "corrupted"] = Field(default="clean", description="Which side of the prompts is read.")
    keep: bool = Field(default=True, description="Keep the arrays with the run; false gives statistics alone.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(default="float32", description="Dtype of kept arrays.")


class SiteStatistics(Frozen):
    """One place over all prompts and chosen positions."""

    site: str = Field(description="Name of the place.")
    kind: str = Field(description="Its kind.")
    layer: int | None = Field(description="Its layer; absent for whole-model places.")
    norm: float = Field(description="Mean Euclidean norm of the vectors (a head's, a query's row, or the whole width).")
    mean: float = Field(description="Mean of all numbers, in the activation's own units.")
    std: float = Field(description="Standard deviation of all numbers.")
    min: float = Field(description="Smallest number.")
    max: float = Field(description="Largest number.")
    zeros: float = Field(description="Share of numbers that are exactly 0, between 0 and 1.")
    shape: tuple[int, ...] = Field(description="Shape of the array: prompts, positions, then the place's own axes.")
    axes: tuple[str, ...] = Field(description="What runs along each axis of the array.")


class CacheResult(Result):
    """Statistics of everything that was read."""

    sites: tuple[SiteStatistics, ...] = Field(description="One per place, in the order computed.")
    n: int = Field(description="Number of prompts.")
    positions: tuple[str, ...] = Field(description="Positions read, with their tokens ('all': of the longest prompt).")
    bos: bool = Field(description="Whether a BOS token stands at position 0.")
    arrays: tuple[str, ...] = Field(description="Names of the kept arrays; read them with get_run.")
    array_bytes: int = Field(description="Size of the kept arrays, bytes.")


def chosen_sites(names: Sequence[str], layers: Sequence[int] | None, shape: Shape) -> tuple[Site, ...]:
    """Kinds spelled out over the layers, full names as they are, each once, in the order computed.

    Raises:
        BadSite: no such place.
    """
    found: list[Site] = []
    for name in names:
        if name in KINDS and name not in WHOLE_MODEL:
            found += [check_site(Site(name, layer), shape) for layer in chosen_layers(layers, shape)]
        else:
            found.append(check_site(parse_site(name), shape))
    order = {site: i for i, site in enumerate(list_sites(shape))}
    return tuple(sorted(dict.fromkeys(found), key=lambda s: (order[s.whole], -1 if s.index is None else s.index)))


@dataclass
class Moments:
    """Statistics that are added to batch by batch."""

    count: int = 0
    total: float = 0.0
    centre: float = 0.0  # sum of squares about the running mean, merged as Chan, Golub & LeVeque 1983
    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0
    vectors: int = 0
    norms: float = 0.0

    def add(self, x: Float[Tensor, " n"], norms: Float[Tensor, " m"]) -> None:
        """Numbers, and the norms of the vectors they belong to."""
        n, mean = x.numel(), float(x.mean())
        if self.count:
            self.centre += (mean - self.total / self.count) ** 2 * self.count * n / (self.count + n)
        self.centre += float((x - mean).square().sum())
        self.total += mean * n
        self.count += n
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self.zeros += int((x == 0).sum())
        self.vectors += norms.numel()
        self.norms += float(norms.sum())

    def statistics(self, site: Site, shape: tuple[int, ...], axes: tuple[str, ...]) -> SiteStatistics:
        return SiteStatistics(
            site=str(site), kind=site.kind, layer=site.layer, norm=self.norms / self.vectors,
            mean=self.total / self.count, std=math.sqrt(self.centre / self.count), min=self.low, max=self.high,
            zeros=self.zeros / self.count, shape=shape, axes=axes,
        )  # fmt: skip


def positions_first(x: Tensor, site: Site) -> Float[Tensor, "B T *feature"]:
    """A read with rows and (query) positions as its first two axes."""
    return x.movedim(-2, 1) if site.kind in QUERY_ROWS and x.ndim == 4 else x


def axes_of(site: Site) -> tuple[str, ...]:
    """What runs along the axes of a kept array."""
    unit = () if site.index is not None else (("kv_head",) if site.kind in ("k", "v") else ("head",))
    inner = {
        "head": (*unit, "d_head"), "q": (*unit, "d_head"), "k": (*unit, "d_head"), "v": (*unit, "d_head"),
        "scores": (*unit, "key"), "pattern": (*unit, "key"), "logits": ("token",),
        "neuron": ("neuron",) if site.index is None else (),
    }.get(site.kind, ("d_model",))  # fmt: skip
    return ("prompt", "position", *inner)


@dataclass
class Places:
    """The positions read of each row: `index` [B, P], padded with the last one, and which of them are real."""

    index: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def width(self) -> int:
        return len(self.index[0])


def places_of(encoded: EncodedPrompts, tokens: Tokens, positions: object) -> Places:
    """All positions of every row (shorter rows padded), or chosen columns."""
    if positions == "all":
        width = tokens.width
        index = tuple((*range(n), *[n - 1] * (width - n)) for n in tokens.lengths)
        longest = tokens.lengths.index(width)
        return Places(index, tokens.lengths, tuple(tokens.label(longest, p) for p in range(width)))
    columns = encoded.columns(positions)  # type: ignore[arg-type]
    index = tuple(zip(*(c.positions for c in columns), strict=True))
    return Places(index, (len(columns),) * tokens.n_rows, tuple(c.label for c in columns))


@dataclass
class Reading:
    """One place while it is being read: its moments, and where its array goes."""

    site: Site
    moments: Moments = field(default_factory=Moments)
    stream: ArrayStream | None = None
    pieces: list[Tensor] = field(default_factory=list)
    feature: tuple[int, ...] = ()

    def put(self, piece: Tensor) -> None:
        if self.stream is None:
            self.pieces.append(piece)
        else:
            self.stream.append(piece)


def run(context: Context, arguments: Arguments) -> CacheResult:
    """Read the places on all prompts.

    Raises:
        BadSite, BadPosition: a place or position that is not there.
        BadPrompts: no prompts, or no corrupted side where it is asked for.
        WouldNotFit: one prompt alone is over the memory budget.
    """
    encoded = _encoded(context, arguments)
    info, tokens = context.model.info, encoded.clean
    readings = [Reading(site) for site in chosen_sites(arguments.sites, arguments.layers, info.shape)]
    places = places_of(encoded, tokens, arguments.positions)
    sites, done = [r.site for r in readings], 0
    for rows in batches(info, tokens, sites, context.budget_bytes, in_order=True):
        reads = context.model.run(tokens.rows(rows), read=sites).reads
        for reading in readings:
            _take(context, arguments, reading, reads[reading.site], rows, places, tokens.width)
        done += len(rows)
        context.progress(done, tokens.n_rows, "prompts read")
    _close(context, readings)
    return _result(arguments, encoded, readings, places)


def _encoded(context: Context, arguments: Arguments) -> EncodedPrompts:
    if context.prompts is None:
        raise BadPrompts("run_with_cache needs prompts; pass a handle from make_prompts, or a list of texts.")
    encoded = encode(context.prompts, context.model, bos=arguments.bos)
    return encoded.swapped() if arguments.side == "corrupted" else encoded


def _take(
    context: Context, arguments: Arguments, reading: Reading, read: Tensor, rows: Sequence[int], places: Places,
    width: int,
) -> None:  # fmt: skip
    """Add a batch to the moments, and to the array where it is kept."""
    x = positions_first(read, reading.site)
    for i, row in enumerate(rows):
        index = list(places.index[row][: places.lengths[row]])
        chosen = widened(x[i, index])
        _measure(reading, chosen, index)
    if arguments.keep:
        piece = _cast(_padded(x, reading.site, rows, places, width), arguments.dtype)
        reading.feature = tuple(piece.shape[2:])
        if context.stream is not None and reading.stream is None:
            reading.stream = context.stream(
                str(reading.site), shape=(len(places.index), *piece.shape[1:]), dtype=arguments.dtype,
                axes=axes_of(reading.site), unit="activation",
            )  # fmt: skip
        reading.put(piece)
    reading.feature = reading.feature or tuple(x.shape[2:])


def _measure(reading: Reading, chosen: Float[Tensor, "P *feature"], index: list[int]) -> None:
    """Moments of one row; of a query's row only the keys that it can see."""
    if reading.site.kind not in QUERY_ROWS:
        vectors = chosen.reshape(len(index), 1, -1) if chosen.ndim == 1 else chosen
        reading.moments.add(chosen.reshape(-1), vectors.norm(dim=-1).reshape(-1))
        return
    for x, position in zip(chosen, index, strict=True):
        seen = x[..., : position + 1]
        reading.moments.add(seen.reshape(-1), seen.norm(dim=-1).reshape(-1))


def _padded(x: Tensor, site: Site, rows: Sequence[int], places: Places, width: int) -> Tensor:
    """The chosen positions of a batch, zeros after a row's end; keys padded to the widest of all prompts."""
    feature = (*x.shape[2:-1], width) if site.kind in QUERY_ROWS else tuple(x.shape[2:])
    out = x.new_zeros((len(rows), places.width, *feature))
    keys = x.shape[-1] if site.kind in QUERY_ROWS else None
    for i, row in enumerate(rows):
        n = places.lengths[row]
        out[i, :n, ..., :keys] = x[i, list(places.index[row][:n])]
    return out


def _cast(piece: Tensor, dtype: str) -> Tensor:
    return {"float32": piece.float, "float16": piece.half, "bfloat16": piece.bfloat16}[dtype]()


def _close(context: Context, readings: Sequence[Reading]) -> None:
    """Arrays that were not streamed are handed over whole."""
    for reading in readings:
        if reading.pieces:
            whole = reading.pieces[0].new_zeros((sum(map(len, reading.pieces)), *reading.pieces[0].shape[1:]))
            start = 0
            for piece in reading.pieces:
                whole[start : start + len(piece)] = piece
                start += len(piece)
            context.keep(str(reading.site), whole, axes=axes_of(reading.site), unit="activation")


def _result(
    arguments: Arguments, encoded: EncodedPrompts, readings: Sequence[Reading], places: Places
) -> CacheResult:
    tokens = encoded.clean
    found = tuple(
        r.moments.statistics(r.site, (tokens.n_rows, places.width, *r.feature), axes_of(r.site)) for r in readings
    )
    names = tuple(str(r.site) for r in readings) if arguments.keep else ()
    size = sum(math.prod(s.shape) * BYTES[arguments.dtype] for s in found) if arguments.keep else 0
    return CacheResult(
        summary=_summary(found, encoded.n, arguments, size),
        warnings=encoded.warnings,
        sites=found,
        n=encoded.n,
        positions=places.labels,
        bos=tokens.bos,
        arrays=names,
        array_bytes=size,
    )


def _summary(found: Sequence[SiteStatistics], n: int, arguments: Arguments, size: int) -> str:
    largest = max(found, key=lambda s: s.norm)
    kept = f"{len(found)} arrays kept ({size / 2**20:.1f} MiB, {arguments.dtype})" if arguments.keep else "nothing kept"
    return (
        f"Read {len(found)} places on {n} prompts ({arguments.side} side); {kept}. Largest mean norm: {largest.site} "
        f"{largest.norm:.3g}. A large norm is not importance: these numbers describe, they do not explain."
    )


def plot(result: CacheResult) -> Figure:
    """Mean norm and spread by layer, one line per kind of place."""
    kinds = list(dict.fromkeys(s.kind for s in result.sites))
    layers = sorted({s.layer for s in result.sites if s.layer is not None})
    x = tuple(map(str, layers)) or ("whole model",)
    panels = tuple(
        Lines(
            title=title, x_title="layer", x=x, y_title="activation units",
            series=tuple(Series(name=kind, values=_by_layer(result, kind, layers, what)) for kind in kinds),
        )
        for title, what in (("Mean norm", "norm"), ("Standard deviation", "std"))
    )  # fmt: skip
    return Figure(
        title="Activations",
        caption=f"Over {result.n} prompts and {len(result.positions)} positions, {'with' if result.bos else 'without'} "
        "BOS. Heads and neurons read one by one are averaged within their layer.",
        panels=panels,
    )


def _by_layer(result: CacheResult, kind: str, layers: Sequence[int], what: str) -> tuple[float | None, ...]:
    found = [[getattr(s, what) for s in result.sites if s.kind == kind and s.layer == layer] for layer in layers]
    if not layers:
        found = [[getattr(s, what) for s in result.sites if s.kind == kind]]
    return tuple(sum(values) / len(values) if values else None for values in found)
