"""Distributed alignment search: a subspace of one place whose interchange between two runs changes the answer.

Idea: a variable need not sit in single neurons or whole layers. Learn an orthonormal basis of k directions at a place
so that putting the source run's part along them into the base run gives the answer that the source would have; the rest
of the place keeps the base run's value. Judged on prompts that were not learned from, beside random subspaces, an
untrained model put through the same search, the whole place as ceiling, the same subspace cut down to what the rest of
the model can read, and the plain rival: as many directions along which the answers' class means lie apart, found
without a search. With a subspace given nothing is learned: a subspace interchange.

Source: Geiger et al., arXiv 2303.02536, section 3 (distributed alignment search, interchange intervention accuracy);
Makelov et al., arXiv 2311.17030, sections 3 and 4 (the interpretability illusion of subspace patching). With B [k, f]
orthonormal: x' = x + (s - x) B^T B; accuracy = share of interchanges after which the wanted answer beats the
base's own.

Does not show: that the model uses the subspace by itself (a search can build a path that the model leaves alone: look
at the row space, the class means and the untrained model), that it is the only one, or what its directions mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..causal.interchange import Split, Spot, measure_place, split_of
from ..causal.interchanged import Place, compared, gain_in_words, kinds_of
from ..causal.measured import encoded
from ..causal.subspaces import directions_of
from ..causal.units import LETTERS, chosen_layers, chosen_units
from ..errors import BadArguments, Unsupported, WouldNotFit
from ..figures import Bars, Figure, Heatmap
from ..model.protocol import Model
from ..model.sites import Shape, Site, check_site
from ..model.tokens import PositionSpec
from ..result import Result, grid
from ..technique import Context, Heads, Layers, OnPrompts

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Distributed alignment search"
QUESTIONS = (
    "Is there a direction or subspace that carries this variable?",
    "Which layer and position hold the variable, if it is spread over many neurons?",
    "Does interchanging this subspace give the counterfactual answer?",
    "Is a subspace patch an illusion?",
)
DasSite = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head", "q", "k", "v", "neuron"
]
MOST_PLACES = 64
ENOUGH_SEEDS = 3
WAYS = {
    "both": "clean into corrupted and back", "denoising": "clean into corrupted", "noising": "corrupted into clean",
}  # fmt: skip
OWN = ("subspace", "row_space", "null_space")  # kinds of interchange that the claim is about
BESIDE_MEANS = {
    "better": "It does better than the class means, which need no search",
    "worse": "The class means, which need no search, do better",
    "same": "Nothing shows it better than the class means, which need no search",
}


class Arguments(OnPrompts):
    """Arguments of das."""

    site: DasSite = Field(default="resid_post", description="Kind of place; head, q, k and v take one head each.")
    layers: Layers = None
    heads: Heads = Field(
        default=None, description="Heads L23H3 (k, v: L23KV1), each a place; all of `layers` when absent."
    )
    positions: tuple[PositionSpec, ...] = Field(
        default=("last",), description="Positions (roles, integers, 'last', token texts), each a place."
    )
    dimension: int = Field(default=1, ge=1, description="Dimensions of the subspace that is learned.")
    subspace: str | tuple[tuple[float, ...], ...] | None = Field(
        default=None,
        description="Interchange this one and learn nothing: directions as lists of numbers, or 'run/array' of an "
        "earlier run (its first, where it kept several seeds).",
    )
    direction: Literal["both", "denoising", "noising"] = Field(
        default="both",
        description="denoising: the clean run's part into the corrupted one, wanted is `answer`; noising: the other "
        "way, wanted is `wrong`; both: each prompt both ways.",
    )
    seeds: int = Field(default=3, ge=1, le=20, description="Searches from different starts.")
    steps: int = Field(default=100, ge=1, le=10_000, description="Steps of gradient descent.")
    batch: int = Field(default=16, ge=1, le=256, description="Interchanges in a step.")
    rate: float = Field(default=0.1, gt=0, le=10, description="Learning rate at the first step, falling to 0.")
    controls: int = Field(default=5, ge=0, le=100, description="Random subspaces of the same dimension.")
    random_model: bool = Field(
        default=True, description="Also search in an untrained model of the same configuration."
    )


class DasResult(Result):
    """Interchange accuracy of a subspace at each place."""

    learned: bool = Field(description="False where the subspace was given.")
    direction: str = Field(description="both, denoising or noising.")
    places: tuple[Place, ...] = Field(description="Every place, in the order asked for.")
    best: str = Field(description="The place with the highest accuracy of the subspace.")
    discovery: int = Field(description="Interchanges learned from.")
    held_out: int = Field(description="Interchanges judged on.")
    kept_back: str = Field(description="Where the prompts judged on are from.")
    tokens: tuple[str, ...] = Field(description="Tokens of the first prompt judged on.")


def spots_of(arguments: Arguments, shape: Shape) -> tuple[Spot, ...]:
    """Every place asked for.

    Raises:
        BadArguments: heads of a site that has none, neither heads nor layers named, or too many places.
        BadSite: a place the model does not have.
    """
    check_site(Site(arguments.site, 0), shape)
    if arguments.layers is None and arguments.heads is None:
        raise BadArguments("name `layers` (or `heads`): every place is searched on its own, which takes a while.")
    if arguments.site in LETTERS and arguments.site != "neuron":
        sites = chosen_units(arguments.site, arguments.heads, arguments.layers, shape)
    elif arguments.heads is not None:
        raise BadArguments(f"{arguments.site} has no heads: choose `layers`, or site 'head'.")
    else:
        sites = tuple(Site(arguments.site, layer) for layer in chosen_layers(arguments.layers, shape))
    if len(set(arguments.positions)) < len(arguments.positions) or not arguments.positions:
        raise BadArguments(f"positions {list(arguments.positions)}: name at least one, each once.")
    spots = tuple(Spot(site, position) for site in sites for position in arguments.positions)
    if len(spots) > MOST_PLACES:
        raise BadArguments(f"{len(spots)} places, at most {MOST_PLACES}: each is searched on its own. Name fewer.")
    return spots


def run(context: Context, arguments: Arguments) -> DasResult:
    """Search (or take) a subspace at every place and judge it on prompts kept back.

    Raises:
        BadPrompts: see `split_of`; a corrupted side, answer or wrong answer is absent.
        BadArguments, BadSite, BadPosition: see `spots_of`; a dimension over the width of the place.
        Unsupported: a backend without gradients.
        WouldNotFit: the untrained model, or one gradient, is over the budget.
    """
    spots, split = spots_of(arguments, context.model.info.shape), _split(context, arguments)
    given = _given(context, arguments)
    twin, no_twin = _twin(context, arguments) if given is None else (None, ())
    places: list[Place] = []
    notes: list[str] = []
    try:
        for i, spot in enumerate(spots):

            def progress(share: float, i: int = i, name: str = spot.name) -> None:
                context.progress(i + share, len(spots), name)

            progress(0)
            array = "subspace" if len(spots) == 1 else f"subspace-{i}"
            found = measure_place(
                context.model, arguments, spot, split, given, twin, array, context.budget_bytes, progress
            )
            places.append(found.place)
            notes += found.notes
            context.keep(array, found.bases, axes=("seed", "dimension", "feature"), unit="unit length")
            if found.means is not None:
                context.keep(f"{array}-means", found.means, axes=("dimension", "feature"), unit="unit length")
            if found.losses:
                losses = found.bases.new_tensor(found.losses)
                context.keep(f"{array}-loss", losses, axes=("seed", "step"), unit="nats")
    finally:
        if twin is not None:
            twin.close()
    context.progress(1, 1, "searched")
    best = max(places, key=lambda p: (p.subspace.accuracy.mean, p.subspace.logit_diff.mean))
    ways = 2 if arguments.direction == "both" else 1
    return DasResult(
        summary=_summary(best, places, given is None),
        warnings=(
            *no_twin, *notes, *_all_read(places), *_warnings(arguments, split, given is None), *split.held_out.warnings,
        ),
        learned=given is None,
        direction=arguments.direction,
        places=tuple(places),
        best=best.name,
        discovery=split.discovery.n * ways if given is None else 0,
        held_out=split.held_out.n * ways,
        kept_back=split.words,
        tokens=split.held_out.clean.strings[0],
    )


def _split(context: Context, arguments: Arguments) -> Split:
    model, bos, kept = context.model, arguments.bos, context.held_out
    prompts = encoded(context.prompts, model, bos, ("logit_diff",), corrupted=True)
    held_out = None if kept is None else encoded(kept, model, bos, ("logit_diff",), corrupted=True)
    return split_of(prompts, held_out, seed=arguments.seed, learned=arguments.subspace is None)


def _given(context: Context, arguments: Arguments) -> Tensor | None:
    """The directions that were given, [k, f].

    Raises:
        BadArguments: not 'run/array', no run can be read here, or an array of too many axes.
    """
    if arguments.subspace is None:
        return None
    if not isinstance(arguments.subspace, str):
        return directions_of(arguments.subspace)
    named = re.fullmatch(r"([^/]+)/(.+)", arguments.subspace)
    if not named:
        raise BadArguments(f"subspace {arguments.subspace!r}: write 'run/array', a run's id and the name of its array.")
    if context.saved is None:
        raise BadArguments("no stored runs can be read here: give the subspace's directions as lists of numbers.")
    kept = context.saved(named[1], named[2]).tensor
    if not 1 <= kept.ndim <= 3:
        raise BadArguments(
            f"{arguments.subspace} has {kept.ndim} axes; a subspace is [dimension, feature], or one more axis of seeds "
            "before these."
        )
    return kept[0] if kept.ndim == 3 else kept.reshape(-1, kept.shape[-1])


def _twin(context: Context, arguments: Arguments) -> tuple[Model | None, tuple[str, ...]]:
    """An untrained model of the same configuration; what to say where there is none.

    Raises:
        WouldNotFit: one more model of this size is over the budget.
    """
    info = context.model.info
    if not arguments.random_model:
        return None, ("No search in an untrained model was made: a search can build what the model does not use.",)
    if info.weight_bytes > context.budget_bytes:
        raise WouldNotFit(
            f"an untrained model like {info.name} needs {info.weight_bytes / 2**20:,.0f} MiB beside it; "
            f"{context.budget_bytes / 2**20:,.0f} MiB may be used. Pass random_model=false to go without."
        )
    try:
        if context.random_twin is not None:
            return context.random_twin(arguments.seed + 1), ()
    except Unsupported:
        pass  # weights that were written by hand have no untrained state: said below
    return None, (f"{info.name} has no untrained model to search in: that control is missing.",)


def _warnings(arguments: Arguments, split: Split, learned: bool) -> tuple[str, ...]:
    said = (
        (learned and arguments.seeds < ENOUGH_SEEDS, f"{arguments.seeds} search(es): use {ENOUGH_SEEDS} or more seeds "
         "to see whether they find the same."),
        (len(set(split.held_out.clusters)) < 2, "There is one cluster of prompts to judge on: no intervals."),
        (not arguments.controls, "No random subspaces were tried."),
    )  # fmt: skip
    return tuple(text for wanted, text in said if wanted)


def _all_read(places: Sequence[Place]) -> tuple[str, ...]:
    names = [p.name for p in places if p.null_dimensions == 0]
    if not names:
        return ()
    where = names[0] if len(names) == 1 else f"{len(names)} places"
    return (f"{where}: every direction is read by what follows, so that the row space rules no illusion out.",)


def plot(result: DasResult) -> Figure:
    """Accuracy of each kind of interchange; one place as bars, several as a map."""
    one, searches = len(result.places) == 1, len(result.places[0].searches)
    dimensions = f"{result.places[0].dimension} of {result.places[0].width} dimensions"
    learned = f", mean of {searches} searches" if searches > 1 else ""
    whiskers = " Whiskers: 95% intervals over clusters of prompts. Dashed: the whole place." if one else ""
    plain = _plain(result.places[0]) if one else ""
    return Figure(
        title="Distributed alignment search" if result.learned else "Subspace interchange",
        caption=f"Share of {result.held_out} interchanges ({WAYS[result.direction]}) after which the wanted answer "
        f"beats the base run's own. Judged on {result.kept_back}. The subspace: {dimensions}{learned}."
        f"{plain}{whiskers}",
        panels=(_bars(result.places[0]) if one else _map(result.places),),
    )


def _bars(place: Place) -> Bars:
    kinds = kinds_of(place)
    found = [k.accuracy for k in kinds.values()]
    return Bars(
        title=place.name, value_title="interchange accuracy (share)", labels=tuple(k.what for k in kinds.values()),
        values=tuple(e.mean for e in found), low=tuple(e.low for e in found), high=tuple(e.high for e in found),
        groups=tuple(_group(field) for field in kinds),
        reference=place.full.accuracy.mean, domain=(0.0, 1.0),
    )  # fmt: skip


def _group(field: str) -> str:
    if field == "means":
        return "class means"
    return "the subspace" if field in OWN else "to compare with"


def _plain(place: Place) -> str:
    means = place.means
    if means is None:
        return ""
    rest = means.dimension - means.from_means
    filled = f", {rest} of {means.dimension} dimensions filled from paired differences" if rest else ""
    return f" Subspace minus class means ({means.classes} classes{filled}): {gain_in_words(means)}."


def _map(places: Sequence[Place]) -> Heatmap:
    kinds = kinds_of(*places)
    cells = [kinds_of(place).get(field) for place in places for field in kinds]
    values = [None if cell is None else cell.accuracy.mean for cell in cells]
    axes = [("place", [p.name for p in places]), ("interchanged", [k.what for k in kinds.values()])]
    return Heatmap(
        title="Interchange accuracy", grid=grid("interchange accuracy", "share", axes, values), diverging=False,
        domain=(0.0, 1.0), text=tuple("" if v is None else f"{v:.0%}" for v in values),
    )  # fmt: skip


def _summary(best: Place, places: Sequence[Place], learned: bool) -> str:
    words = ", ".join(f"{k.what} {k.accuracy.mean:.0%}" for k in kinds_of(best).values())
    where = best.name if len(places) == 1 else f"{best.name}, the best of {len(places)} places"
    agree = "" if best.agreement is None else f" Seeds agree to a mean cosine of {best.agreement:.2f}."
    what = "found by search" if learned else "given"
    rival = ""
    if best.means is not None:
        rival = f" {BESIDE_MEANS[compared(best.means)]}: subspace minus class means {gain_in_words(best.means)}."
    return (
        f"Interchange accuracy at {where}: {words}. A subspace of {best.dimension} of {best.width} dimensions, {what}, "
        f"judged on prompts kept back.{agree}{rival} That an interchange gives the answer does not show that the model "
        "itself writes and reads the variable there: compare the row space, the untrained model and the random "
        "subspaces."
    )
