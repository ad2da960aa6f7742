"""Show how embeddings or activations lie in space: cosines, principal components, effective dimension, outliers.

Idea: points of one space (token embeddings, or activations at a layer) may all point one way, use a few of the model's
dimensions, or hold a structure such as a ring of months. Similarities mean something only against these: a cosine of .9
is nothing where the mean cosine is .9. So each place comes with its mean cosine, raw and with the mean taken away, its
effective dimension, the points and the dimensions that stand out, and the same of an untrained model.

Source: Ethayarajh, arXiv 1909.00512 (anisotropy); Mu & Viswanath, arXiv 1702.01417 (mean removed); Timkey & van
Schijndel, arXiv 2109.04404, equation 3 (a dimension's share of the mean cosine); Sun et al., arXiv 2402.17762 (massive
activations at the first position); Engels et al., arXiv 2405.14860 (rings of days and months). Formulas:
`measures/geometry.py`.

Does not show: that the model uses what is seen. Principal components are directions of variance, not of meaning; a ring
of twelve points in two of hundreds of dimensions needs its null, and an intervention, before it is called a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..causal.clouds import Geometry, Untrained, geometry, orderings, outlying, sums_agree, untrained_of
from ..causal.measured import failed
from ..causal.points import Chosen, lone_tokens, of_prompts, of_text, read_points, sampled_ids, table_points
from ..causal.units import chosen_layers
from ..causal.vocabulary import token_choice, token_labels
from ..errors import BadArguments
from ..figures import Bars, Figure, Heatmap, Lines, Scatter, Series
from ..measures.geometry import Order, cosines, participation_of_noise, principal
from ..model.protocol import Model
from ..model.sites import Site, check_site
from ..model.tokens import PositionSpec
from ..result import Grid, Result, SelfTest, grid
from ..technique import Context, Layers, OnText, PromptsArgument, Split

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "Geometry of embeddings"
QUESTIONS = (
    "How are the token embeddings arranged: do the months form a ring?",
    "How similar are activations, and how many dimensions do they use?",
    "Are there outlier dimensions or massive activations?",
)
Space = Literal["embedding", "unembedding", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "final_norm"]
TABLES = ("embedding", "unembedding")
MASSIVE = 0.2  # share of the squared norm from which one dimension stands out
MOST_COSINES = 40  # points up to which all cosines are shown
NARROW = 0.5  # mean cosine from which a cosine is said to tell little
COMPONENTS = 3


class Arguments(OnText):
    """Arguments of embedding_geometry."""

    space: Space = Field(default="embedding", description="A table of token vectors, or a place in the model.")
    layers: Layers = Field(default=None, description="Layers of a place; all when absent.")
    shown_layer: int | None = Field(default=None, description="Layer shown point by point; the middle one when absent.")
    tokens: tuple[str | int, ...] | None = Field(
        default=None, max_length=500, description="Tokens, texts or ids: the points; at a place each stands alone."
    )
    prompts: PromptsArgument | None = Field(
        default=None, description="Prompts whose clean texts are a point each; absent: `tokens`, or `text`."
    )
    split: Split = "discovery"
    position: PositionSpec = Field(default="last", description="Where prompts are read: 'last', an integer, a role.")
    points: int = Field(default=400, ge=3, le=5000, description="Points drawn at random where none are named.")
    order: Order | None = Field(
        default=None, description="Tests whether the points, in the order given, lie along a line or around a cycle."
    )
    untrained: bool = Field(default=True, description="Set an untrained model of the same configuration beside it.")


class EmbeddingGeometryResult(Result):
    """How points lie at each place."""

    places: tuple[Geometry, ...] = Field(description="One per layer, or the table.")
    source: str = Field(description="What the points are.")
    n: int = Field(description="Number of points.")
    width: int = Field(description="Dimensions of the space.")
    participation_of_noise: float = Field(description="Effective dimension of as many points of a round cloud.")
    shown: str = Field(description="The place shown point by point.")
    left_out: int = Field(description="Outliers left out of what is shown, where points were drawn at random.")
    explained: tuple[float, ...] = Field(description="Variance shares of the first ten components there.")
    coordinates: Grid = Field(description="Points by their first principal components there.")
    cosines: Grid | None = Field(description="Cosines with the mean taken away, up to 40 points.")
    raw_cosines: Grid | None = Field(description="Cosines as they are, up to 40 points.")
    self_tests: tuple[SelfTest, ...] = Field(description="The sums against all pairs written out.")


def run(context: Context, arguments: Arguments) -> EmbeddingGeometryResult:
    """Describe the points of every place, and one place point by point.

    Raises:
        BadArguments: fewer than three points, tokens and prompts together, or a layer that is not among the layers.
        BadSite, BadPosition, BadPrompts: from the place and the prompts.
        WouldNotFit: one prompt's activations, or the untrained model, are over the budget.
    """
    labels, source, here = _points(context, context.model, arguments)
    n = len(labels)
    if n < 3:
        raise BadArguments(f"{n} points have no geometry; give at least three.")
    twin, no_twin = _untrained(context, arguments)
    fits = orderings(here, arguments.order, arguments.seed) if arguments.order else {}
    places = tuple(geometry(place, x, labels, twin.get(place), fits.get(place)) for place, x in here.items())
    shown = _shown(list(here), arguments)
    x, kept_labels, left_out = _without_outliers(here[shown], labels, arguments)
    pca, few = principal(x), len(kept_labels) <= MOST_COSINES
    context.keep("points", _tensor(here[shown]), axes=("point", "d_model"), unit="activation")
    context.keep("components", _tensor(pca.components[:10]), axes=("component", "d_model"), unit="1")
    columns = [f"PC{i + 1}" for i in range(min(COMPONENTS, pca.coordinates.shape[1]))]
    tests = sums_agree(x, pca.variances)
    return EmbeddingGeometryResult(
        summary=_summary(places, shown, source, arguments),
        warnings=(*failed(tests), *no_twin, *_warnings(context.model, places, arguments, left_out)),
        places=places,
        source=source,
        n=n,
        width=context.model.info.d_model,
        participation_of_noise=participation_of_noise(n, context.model.info.d_model),
        shown=shown,
        left_out=left_out,
        explained=tuple(map(float, pca.shares[:10])),
        coordinates=grid(
            "coordinates", "activation", [("point", kept_labels), ("component", columns)],
            map(float, pca.coordinates[:, : len(columns)].flatten()),
        ),
        cosines=_cosines(x - x.mean(0), kept_labels, "cosine, mean taken away") if few else None,
        raw_cosines=_cosines(x, kept_labels, "cosine") if few else None,
        self_tests=tests,
    )  # fmt: skip


def plot(result: EmbeddingGeometryResult) -> Figure:
    """The points along two principal components, their cosines, and the figures over the layers."""
    first, second = result.explained[0], result.explained[1] if len(result.explained) > 1 else 0.0
    points = result.coordinates.axes[0].labels
    panels: list[Scatter | Heatmap | Lines | Bars] = [
        Scatter(
            title=f"{result.shown}: {len(points)} points", x_title=f"PC1 ({first:.0%} of the variance)",
            y_title=f"PC2 ({second:.0%})", labels=points, x=_column(result, 0), y=_column(result, 1),
        )
    ]  # fmt: skip
    if result.cosines is not None:
        panels.append(Heatmap(title="cosines, mean taken away", grid=result.cosines, domain=(-1.0, 1.0)))
    panels += _over_places(result) if len(result.places) > 1 else [_explained(result)]
    return Figure(
        title=f"Geometry of {result.shown}",
        caption=f"{result.source}. Components are directions of variance, not of meaning; compare with the untrained "
        f"model and with the {result.participation_of_noise:.0f} dimensions that noise of so many points would show."
        + (f" {result.left_out} points of outlying norm are not drawn." if result.left_out else ""),
        panels=tuple(panels),
        columns=2,
    )


def _column(result: EmbeddingGeometryResult, i: int) -> tuple[float, ...]:
    n, k = result.coordinates.shape
    values = result.coordinates.values or ()
    return tuple(float(values[row * k + i] or 0.0) if i < k else 0.0 for row in range(n))


def _explained(result: EmbeddingGeometryResult) -> Bars:
    return Bars(
        title="principal components", value_title="share of the variance", values=result.explained,
        labels=tuple(f"PC{i + 1}" for i in range(len(result.explained))),
    )  # fmt: skip


def _over_places(result: EmbeddingGeometryResult) -> list[Lines]:
    places = tuple(p.place.removeprefix("blocks.").split(".")[0] for p in result.places)
    own = [("as it is", [p.mean_cosine for p in result.places])]
    if any(p.n_outliers for p in result.places):
        rest = [p.mean_cosine if p.mean_cosine_rest is None else p.mean_cosine_rest for p in result.places]
        own.append(("without outliers", rest))
    own.append(("mean taken away", [p.mean_cosine_centred for p in result.places]))
    dimension = [("trained", [p.participation for p in result.places])]
    if any(p.n_outliers for p in result.places):
        spare = [p.participation if p.participation_rest is None else p.participation_rest for p in result.places]
        dimension.append(("without outliers", spare))
    if all(p.untrained for p in result.places):
        own.append(("untrained", [p.untrained.mean_cosine for p in result.places if p.untrained]))
        dimension.append(("untrained", [p.untrained.participation for p in result.places if p.untrained]))
    return [
        Lines(
            title=title, x_title="layer", x=places, y_title=y, reference=reference,
            series=tuple(Series(name=name, values=tuple(values)) for name, values in series),
        )
        for title, y, series, reference in (
            ("mean cosine of pairs", "cosine", own, None),
            ("effective dimension", "dimensions", dimension, result.participation_of_noise),
        )
    ]  # fmt: skip


def _points(
    context: Context, model: Model, arguments: Arguments
) -> tuple[tuple[str, ...], str, Mapping[str, ndarray]]:
    """Labels, what the points are, and the points of every place."""
    if arguments.tokens is not None and context.prompts is not None:
        raise BadArguments("give `tokens` or `prompts`, not both.")
    ids = None if arguments.tokens is None else token_choice(model, arguments.tokens, "tokens")
    if arguments.space in TABLES:
        if context.prompts is not None:
            raise BadArguments(f"the {arguments.space} has a row per token: give `tokens`, or another `space`.")
        chosen = ids or sampled_ids(model, arguments.points, arguments.seed)
        source = f"{len(chosen)} tokens" + ("" if ids else " of the vocabulary at random")
        return token_labels(model, chosen), source, {arguments.space: table_points(model, arguments.space, chosen)}
    sites = _sites(model, arguments)
    at = _chosen(context, model, arguments, ids)
    rows = at.tokens.n_rows
    read = read_points(model, at, sites, context.budget_bytes, lambda done: context.progress(done, rows, "rows read"))
    return at.labels, at.source, {str(site): x for site, x in read.items()}


def _chosen(context: Context, model: Model, arguments: Arguments, ids: tuple[int, ...] | None) -> Chosen:
    if ids is not None:
        return lone_tokens(model, ids, arguments.bos)
    if context.prompts is not None:
        return of_prompts(model, context.prompts, arguments.position, arguments.bos)
    if context.text is None:
        raise BadArguments("name `tokens`, give `prompts`, or give `text`.")
    return of_text(model, context.text, arguments.points, arguments.seed, arguments.bos)


def _sites(model: Model, arguments: Arguments) -> list[Site]:
    if arguments.space == "final_norm":
        return [check_site(Site("final_norm"), model.info.shape)]
    layers = chosen_layers(arguments.layers, model.info.shape)
    return [check_site(Site(arguments.space, layer), model.info.shape) for layer in layers]  # type: ignore[arg-type]


def _shown(places: Sequence[str], arguments: Arguments) -> str:
    if arguments.shown_layer is None:
        return places[len(places) // 2]
    found = [p for p in places if p.startswith(f"blocks.{arguments.shown_layer}.")]
    if not found:
        raise BadArguments(f"layer {arguments.shown_layer} is not among the places read ({', '.join(places)}).")
    return found[0]


def _untrained(context: Context, arguments: Arguments) -> tuple[dict[str, Untrained], tuple[str, ...]]:
    """The same points of an untrained model; or what to say where there is none."""
    info = context.model.info
    if not arguments.untrained or context.random_twin is None or info.configuration is None:
        return {}, ("No untrained model stands beside it: what any such network would show is not known here.",)
    twin = context.random_twin(arguments.seed + 1)
    try:
        _, _, points = _points(context, twin, arguments)
        return {place: untrained_of(x) for place, x in points.items()}, ()
    finally:
        twin.close()


def _without_outliers(
    x: ndarray, labels: tuple[str, ...], arguments: Arguments
) -> tuple[ndarray, tuple[str, ...], int]:
    """Points drawn at random are shown without outliers, which would be the first component; named ones all."""
    import numpy as np

    out = outlying(np.linalg.norm(x, axis=1))
    if arguments.tokens is not None or arguments.prompts is not None or not out.any() or (~out).sum() < 3:
        return x, labels, 0
    return x[~out], tuple(label for label, gone in zip(labels, out, strict=True) if not gone), int(out.sum())


def _tensor(x: ndarray) -> Tensor:
    """As it is kept with the run, in single precision."""
    import torch

    return torch.from_numpy(x.astype("float32"))


def _cosines(x: ndarray, labels: Sequence[str], name: str) -> Grid:
    values = cosines(x).clip(-1, 1)
    return grid(name, "cosine", [("point", labels), ("with", labels)], map(float, values.flatten()))


def _summary(places: Sequence[Geometry], shown: str, source: str, arguments: Arguments) -> str:
    at = next(p for p in places if p.place == shown)
    beside = f" (untrained {at.untrained.mean_cosine:.2f})" if at.untrained else ""
    dimension = f" (untrained {at.untrained.participation:.1f})" if at.untrained else ""
    text = (
        f"{source}, {shown}: mean cosine {at.mean_cosine:.2f}{beside}, {at.mean_cosine_centred:.2f} with the mean "
        f"taken away; effective dimension {at.participation:.1f}{dimension}, {at.components_90} component(s) hold 90% "
        "of the variance"
    )
    if at.outliers:
        first = at.outliers[0]
        text += f"; {at.n_outliers} points stand out by norm, first {first.point!r} ({first.times:.0f} x the median)"
    if at.ordering:
        o = at.ordering
        text += f"; the {arguments.order} in the order given explains {o.share:.0%} of the variance (by chance "
        text += f"{o.by_chance:.0%}, p = {o.p:.3g})"
    return text + ". Where points lie is description: it does not show that the model uses it."


def _warnings(
    model: Model, places: Sequence[Geometry], arguments: Arguments, left_out: int
) -> tuple[str, ...]:
    told: list[str] = []
    narrow = [p.place for p in places if p.mean_cosine > NARROW]
    if narrow:
        told.append(
            f"The mean cosine is above {NARROW} at {_listed(narrow)}: a high cosine between two points there is no "
            "likeness; use the ones with the mean taken away."
        )
    if stand_out := [p for p in places if p.n_outliers]:
        worst = max(stand_out, key=lambda p: p.outliers[0].times)
        first = worst.outliers[0]
        told.append(
            f"Massive norms at {_listed([p.place for p in stand_out])}: {first.point!r} has {first.times:.0f} times "
            f"the median norm at {worst.place}. Means and variances there are theirs; read the figures without them."
        )
    if massive := [(p, d) for p in places for d in p.dimensions if d.of_square > MASSIVE]:
        p, d = max(massive, key=lambda pair: pair[1].of_square)
        told.append(
            f"Dimension {d.dimension} alone holds {d.of_square:.0%} of the squared norm at {p.place} (an equal share "
            f"is {1 / model.info.d_model:.1%}) and adds {d.of_cosine:.2f} to the mean cosine of {p.mean_cosine:.2f}."
        )
    if arguments.tokens is not None and arguments.space not in TABLES and not _has_bos(model, arguments):
        told.append(
            "Each token stands alone at position 0, where models keep outliers that say nothing of the token: take "
            "`prompts` that end in it, or bos=true."
        )
    if left_out:
        told.append(f"{left_out} points of outlying norm are left out of the components and of the picture.")
    return tuple(told)


def _has_bos(model: Model, arguments: Arguments) -> bool:
    return model.info.adds_bos if arguments.bos is None else arguments.bos


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
