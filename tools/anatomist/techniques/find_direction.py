"""Find directions that tell two sets of texts apart: difference of means, principal component, logistic probe.

Idea: if a concept is written along a direction of the residual stream, texts with it and without it lie apart along
that direction. Three ways to find it, each tested on texts it was not fitted on, at every layer in one pass, and kept
as an array that `steer`, `edit_weights` and `erase_concept` take.

Source: Marks & Tegmark, arXiv 2310.06824, section 5 (difference of means against logistic probes); Zou et al., arXiv
2310.01405, section 3.1 (principal component of paired differences); Alain & Bengio, arXiv 1610.01644 (linear probes).
Formulas: `causal/direction_fits.py`. With B shuffles of the labels by group, p(layer) = (1 + b) / (1 + B), b of B
shuffles whose largest held-out AUROC over the layers is at least the layer's.

Does not show: that the model uses the direction, or that it stands for the concept rather than for something that goes
with it in these texts (length, a word, a topic). Steer with it, erase it, and test it on texts made another way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..causal.direction_fits import METHODS, Method, fit_directions
from ..causal.direction_layers import AtLayer, at_layer, corrected_p, cosine, part_of
from ..causal.labelled import Labelled, TwoSets, activations, few_examples, fit_and_held_out
from ..causal.units import chosen_layers
from ..errors import BadArguments
from ..figures import Figure, Lines, Series
from ..measures.linear import auroc
from ..model.sites import Site, check_site
from ..result import Estimate, Frozen, Grid, Result, grid
from ..technique import Arguments as Common
from ..technique import Bos, Context, Layers, PromptsArgument, Split

if TYPE_CHECKING:
    from numpy import ndarray

TITLE = "Directions of a concept"
QUESTIONS = (
    "Is there a direction in the residual stream for this concept?",
    "At which layer are these two kinds of text told apart linearly?",
    "Which vector should I steer with or erase?",
)
DirectionSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
STABLE = 0.8  # cosine between the directions of two halves; below, the direction is mostly noise
SEPARATES = 0.05


class Arguments(TwoSets, Common):
    """Arguments of find_direction."""

    prompts: PromptsArgument | None = Field(
        default=None, description="Prompt set whose clean texts are set against its corrupted ones; or give texts."
    )
    split: Split = "discovery"
    bos: Bos = None
    site: DirectionSite = Field(default="resid_post", description="Kind of place that is read, at each layer.")
    layers: Layers = None
    methods: tuple[Method, ...] = Field(
        default=METHODS, min_length=1, description="mean_difference, pca, logistic; each gives an array of the run."
    )
    penalty: float = Field(
        default=1.0, gt=0, le=1e6, description="L2 penalty of the logistic probe, on examples scaled to unit variance."
    )
    shuffles: int = Field(default=20, ge=0, le=1000, description="Fits with labels shuffled by group, as a null.")


class BestLayer(Frozen):
    """Where a method separates the held-out examples best."""

    method: Method = Field(description="How the direction was found.")
    layer: int = Field(description="The layer with the highest held-out AUROC.")
    auroc: Estimate = Field(description="Held-out AUROC there; the interval does not know that the layer was chosen.")
    accuracy: Estimate = Field(description="Held-out accuracy there, at the threshold of the fit.")
    p: float | None = Field(description="Against shuffled labels, corrected for the choice among the layers.")
    length: float = Field(description="Length of the kept vector, as a share of the median norm of the activations.")
    stability: float | None = Field(description="Cosine between the directions of two halves of the fit part.")


class DirectionsResult(Result):
    """Directions per method and layer, and how well they separate held-out examples."""

    best: tuple[BestLayer, ...] = Field(description="One per method.")
    site: str = Field(description="Kind of place that was read.")
    position: str = Field(description="Positions that were read.")
    layers: tuple[int, ...] = Field(description="The layers, in the order of every array and grid.")
    auroc: Grid = Field(description="Method by layer: held-out AUROC (0.5: no separation).")
    low: Grid | None = Field(description="Lower ends of its cluster-bootstrap intervals; absent with one cluster.")
    high: Grid | None = Field(description="Upper ends.")
    accuracy: Grid = Field(description="Method by layer: held-out accuracy at the threshold of the fit.")
    shuffled_auroc: Grid | None = Field(description="Mean held-out AUROC with shuffled labels; about 0.5.")
    shuffled_accuracy: Grid | None = Field(description="Mean held-out accuracy with shuffled labels; about 0.5.")
    p: Grid | None = Field(description="Method by layer: p against shuffled labels, corrected over the layers.")
    random_auroc: Grid = Field(description="Per layer: mean AUROC of 20 random directions, each on its better side.")
    embedding_auroc: tuple[float, ...] | None = Field(
        description="Per method: held-out AUROC at the embedding, before any layer; absent where it separates nothing."
    )
    length: Grid = Field(description="Method by layer: length of the kept vector over the median norm.")
    stability: Grid | None = Field(description="Method by layer: cosine between directions of two halves of the fit.")
    cosines: Grid | None = Field(description="Pair of methods by layer: cosine between their directions.")
    majority: float = Field(description="Share of the commoner label among the held-out examples.")
    fitted_on: int = Field(description="Examples of the fit part.")
    tested_on: int = Field(description="Examples of the held-out part.")
    arrays: tuple[str, ...] = Field(description="Arrays of the run: one per method [layer, d_model], and layers.")


def run(context: Context, arguments: Arguments) -> DirectionsResult:
    """Fit on one part, test on the other, at every layer.

    Raises:
        BadArguments: texts given twice or not at all, too few, or two sets that do not differ.
        BadSite, BadPosition, BadPrompts: from the places and the texts.
        WouldNotFit: one text's activations are over the budget.
    """
    model = context.model
    layers = chosen_layers(arguments.layers, model.info.shape)
    sites = [check_site(Site(arguments.site, layer), model.info.shape) for layer in layers]
    if len(set(arguments.methods)) < len(arguments.methods):
        raise BadArguments(f"methods {', '.join(arguments.methods)}: name each once.")
    parts = fit_and_held_out(
        model, arguments, context.prompts, context.held_out, bos=arguments.bos, seed=arguments.seed
    )
    rows = sum(p.tokens.n_rows for p in parts)
    total, done = rows + len(layers), 0
    read: list[dict[Site, ndarray]] = []
    for part in parts:
        def passed(d: int, _: int, start: int = done) -> None:
            context.progress(start + d, total, "texts read")

        read.append(activations(model, part, [Site("embed"), *sites], context.budget_bytes, progress=passed))
        done += part.tokens.n_rows
    found: list[AtLayer] = []
    for i, site in enumerate(sites):
        fit, test = (part_of(p, r[site]) for p, r in zip(parts, read, strict=True))
        found.append(
            at_layer(
                arguments.methods, fit, test, shuffles=arguments.shuffles, seed=arguments.seed,
                penalty=arguments.penalty,
            )
        )  # fmt: skip
        context.progress(done + i + 1, total, f"layer {layers[i]} fitted")
    _keep(context, arguments.methods, layers, found)
    return _result(arguments, layers, found, parts, _embedding(arguments, parts, read))


def plot(result: DirectionsResult) -> Figure:
    """Held-out AUROC over layers, and how long and how stable the directions are."""
    panels = [
        Lines(
            title="Separation of held-out examples", x_title="layer", x=tuple(map(float, result.layers)),
            y_title="AUROC", reference=0.5, series=(*_series(result), *_null_series(result)),
        ),
        Lines(
            title="Length of the kept vector", x_title="layer", x=tuple(map(float, result.layers)),
            y_title="share of the median norm", series=_rows(result.length),
        ),
    ]  # fmt: skip
    if result.stability is not None:
        panels.append(
            Lines(
                title="Agreement of two halves", x_title="layer", x=tuple(map(float, result.layers)),
                y_title="cosine", series=_rows(result.stability), reference=STABLE,
            )
        )
    return Figure(
        title=f"Directions between two sets of texts, at {result.site}",
        caption=f"Fitted on {result.fitted_on} examples, tested on {result.tested_on} others, read at "
        f"{result.position}; majority {result.majority:.2f}. Bands: 95% cluster bootstrap. Separation is not use.",
        panels=tuple(panels),
    )


def _series(result: DirectionsResult) -> list[Series]:
    lows = _rows(result.low) if result.low else None
    highs = _rows(result.high) if result.high else None
    return [
        Series(
            name=s.name, values=s.values, low=lows[i].values if lows else None, high=highs[i].values if highs else None
        )
        for i, s in enumerate(_rows(result.auroc))
    ]


def _null_series(result: DirectionsResult) -> list[Series]:
    values = result.random_auroc.values
    return [] if values is None else [Series(name="random direction", values=values)]


def _rows(found: Grid) -> tuple[Series, ...]:
    """One series per row of a grid."""
    names, width = found.axes[0].labels, len(found.axes[1].labels)
    values = found.values or (None,) * found.size
    return tuple(Series(name=n, values=values[i * width : (i + 1) * width]) for i, n in enumerate(names))


def _embedding(
    arguments: Arguments, parts: Sequence[Labelled], read: Sequence[dict[Site, ndarray]]
) -> tuple[float, ...] | None:
    """Held-out AUROC of each method at the embedding; None where the two sets are the same there."""
    fit, test = (part_of(p, r[Site("embed")]) for p, r in zip(parts, read, strict=True))
    try:
        found = fit_directions(arguments.methods, fit.x, fit.labels, fit.groups, penalty=arguments.penalty)
    except BadArguments:
        return None
    return tuple(auroc(found[m].project(test.x), test.labels) for m in arguments.methods)


def _keep(context: Context, methods: Sequence[Method], layers: Sequence[int], found: Sequence[AtLayer]) -> None:
    """One array per method [layer, d_model], and the layers that its rows stand for."""
    import numpy as np

    like = context.model.run(context.model.tokenize([[0]]), read=(Site("embed"),)).reads[Site("embed")]
    for method in methods:
        vectors = np.stack([f.separations[method].direction.vector for f in found])
        context.keep(method, like.new_tensor(vectors).float(), axes=("layer", "d_model"), unit="residual")
    context.keep("layers", like.new_tensor(list(layers)).long(), axes=("layer",), unit="layer")
    norms = like.new_tensor([f.norm for f in found]).float()
    context.keep("median_norm", norms, axes=("layer",), unit="residual")


def _result(
    arguments: Arguments, layers: tuple[int, ...], found: Sequence[AtLayer], parts: Sequence[Labelled],
    embedding: tuple[float, ...] | None,
) -> DirectionsResult:  # fmt: skip
    methods = arguments.methods
    axes = (("method", methods), ("layer", layers))

    def table(name: str, unit: str, values: Mapping[str, list[float]]) -> Grid:
        return grid(name, unit, axes, [v for m in methods for v in values[m]])

    def side(which: Literal["low", "high"]) -> Grid | None:
        ends = {m: [getattr(f.aurocs[m], which) for f in found] for m in methods}
        whole = all(v is not None for row in ends.values() for v in row)
        return table(f"{which} end of the AUROC", "AUROC", ends) if whole else None

    p = corrected_p(methods, found) if arguments.shuffles else None
    stable = [f.stability for f in found]
    lengths = {m: [f.length(m) for f in found] for m in methods}
    labels = parts[1].per_example()[0]
    best = tuple(_best(m, layers, found, p, lengths[m]) for m in methods)
    return DirectionsResult(
        summary=_summary(best, layers, arguments),
        warnings=_warnings(arguments, best, parts, embedding),
        best=best,
        site=arguments.site,
        position="every position" if arguments.position == "all" else f"position {arguments.position}",
        layers=layers,
        auroc=table("held-out AUROC", "AUROC", {m: [f.aurocs[m].mean for f in found] for m in methods}),
        low=side("low"),
        high=side("high"),
        accuracy=table(
            "held-out accuracy", "share correct", {m: [f.accuracies[m].mean for f in found] for m in methods}
        ),
        shuffled_auroc=None if p is None else table(
            "mean AUROC, labels shuffled", "AUROC",
            {m: [float(f.separations[m].shuffled_auroc.mean()) for f in found] for m in methods},
        ),
        shuffled_accuracy=None if p is None else table(
            "mean accuracy, labels shuffled", "share correct",
            {m: [float(f.separations[m].shuffled_accuracy.mean()) for f in found] for m in methods},
        ),
        p=None if p is None else table("p against shuffled labels, corrected over layers", "p", p),
        random_auroc=grid("AUROC of random directions", "AUROC", axes[1:], [f.random for f in found]),
        embedding_auroc=embedding,
        length=table("length over median norm", "share of the median norm", lengths),
        stability=None if any(s is None for s in stable) else table(
            "cosine of two halves", "cosine", {m: [s[m] for s in stable if s is not None] for m in methods}
        ),
        cosines=_cosines(methods, layers, found),
        majority=max(sum(labels), len(labels) - sum(labels)) / len(labels),
        fitted_on=len(parts[0].of_example),
        tested_on=len(labels),
        arrays=(*methods, "layers", "median_norm"),
    )  # fmt: skip


def _best(
    method: Method, layers: Sequence[int], found: Sequence[AtLayer], p: Mapping[str, list[float]] | None,
    lengths: Sequence[float],
) -> BestLayer:  # fmt: skip
    i = max(range(len(layers)), key=lambda j: found[j].aurocs[method].mean)
    stability = found[i].stability
    return BestLayer(
        method=method, layer=layers[i], auroc=found[i].aurocs[method], accuracy=found[i].accuracies[method],
        p=None if p is None else p[method][i], length=lengths[i],
        stability=None if stability is None else stability[method],
    )  # fmt: skip


def _cosines(methods: Sequence[Method], layers: Sequence[int], found: Sequence[AtLayer]) -> Grid | None:
    pairs = list(combinations(methods, 2))
    if not pairs:
        return None
    values = [cosine(f.separations[a].direction, f.separations[b].direction) for a, b in pairs for f in found]
    axes = (("pair", [f"{a} / {b}" for a, b in pairs]), ("layer", layers))
    return grid("cosine between methods", "cosine", axes, values)


def _summary(best: Sequence[BestLayer], layers: Sequence[int], arguments: Arguments) -> str:
    parts = "; ".join(
        f"{b.method} L{b.layer}: AUROC {b.auroc.mean:.3f}"
        + (f", p = {b.p:.3g}" if b.p is not None else "")
        + (f", halves agree {b.stability:.2f}" if b.stability is not None else "")
        for b in best
    )
    nothing = best and all(b.p is not None and b.p > SEPARATES for b in best)
    verdict = "No direction separates the held-out examples beyond shuffled labels. " if nothing else ""
    return (
        f"{verdict}Best of {len(layers)} layers of {arguments.site} on held-out examples: {parts}. The vectors are "
        "arrays of this run: give {run, array, layer} to steer, edit_weights or erase_concept. Separation shows that "
        "the sets can be told apart, not that the model uses the direction."
    )


def _warnings(
    arguments: Arguments, best: Sequence[BestLayer], parts: Sequence[Labelled], embedding: tuple[float, ...] | None
) -> tuple[str, ...]:
    found = [*few_examples(parts), *dict.fromkeys(w for p in parts for w in p.warnings)]
    if arguments.shuffles < 19:
        found.append(
            f"With {arguments.shuffles} shuffles p cannot be below {1 / (1 + arguments.shuffles):.2g}; 19 allow .05."
        )
    shaky = [f"{b.method} {b.stability:.2f}" for b in best if b.stability is not None and b.stability < STABLE]
    if shaky:
        found.append(
            f"Two halves of the texts give different directions ({', '.join(shaky)} cosine at the best layer): they "
            "can separate and still be mostly noise. Use more texts before steering with them."
        )
    near = [f"{b.method} {a:.2f}" for b, a in zip(best, embedding or (), strict=False) if _nearly(a, b.auroc.mean)]
    if near and any(b.auroc.mean > 0.6 for b in best):
        found.append(
            f"The embedding alone separates nearly as well ({', '.join(near)}): the direction may stand for words, not "
            "for the concept. Test it on texts with other words."
        )
    return tuple(found)


def _nearly(auroc_found: float, best: float) -> bool:
    """Whether an AUROC goes four fifths of the way from no separation to the best."""
    return auroc_found - 0.5 > 0.8 * (best - 0.5)
