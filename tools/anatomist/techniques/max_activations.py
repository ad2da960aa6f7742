"""Show the text on which neurons, heads or directions are most active, with ordinary, weak and random text beside it.

Idea: read running text once and keep, per unit, the tokens where it is strongest, one a document and no stretch of text
twice; and, from a random sample of the same text, tokens where it is ordinarily active, barely active, and any. How
often it is active, the histogram of its values, and how much of its variance the token by itself explains go with them.

Source: Bolukbasi et al., arXiv 2104.07143 (the top examples of one corpus show patterns that the rest of the range and
other corpora do not); Bills et al. 2023, https://openaipublic.blob.core.windows.net/neuron-explainer/paper/index.html
(top beside random examples). Share of variance of k tokens: the sum of their squared differences from the mean over
that of all tokens. Value of a head: the length of what it writes, |z W_O|.

Does not show: what the unit does (its effect), or that what the top examples share is what it responds to. A label that
fits them is a hypothesis: it predicts values on text not seen yet, and what an intervention does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..causal.directions import FromRun, FromTokens, FromValues, direction_of
from ..causal.examples import Example, Scanned, scan
from ..causal.units import parse_unit, unit_name
from ..errors import BadArguments
from ..figures import Figure, Lines, Series, TextRow, TextRows
from ..measures.metrics import widened
from ..model.protocol import Model, Run
from ..model.sites import Site, check_site, parse_site
from ..prompts.windows import windows
from ..result import Frozen, Result
from ..technique import Context, OnText

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Text that activates units"
QUESTIONS = (
    "On which text is this neuron or head most active?",
    "What does a direction respond to?",
    "How often is this neuron active, and on what besides its top examples?",
)
Group = Literal["top", "middle", "low", "random", "bottom"]
MEANING: dict[Group, str] = {
    "top": "highest", "middle": "about the median of active tokens", "low": "weakest tenth of active tokens",
    "random": "random tokens", "bottom": "lowest",
}  # fmt: skip
QUANTILES: dict[Group, float] = {"middle": 0.5, "low": 0.1}
MOST_UNITS = 12
AROUND = 24  # tokens of context kept on either side
DRAWN, ROWS = 2, 6  # units of a picture; rows of each group
RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "final_norm")
TOKEN_ITSELF = 0.8  # share of variance from which a unit is said to depend on the token by itself
DENSE = 0.5


class Arguments(OnText):
    """Arguments of max_activations."""

    units: tuple[str, ...] = Field(default=(), max_length=MOST_UNITS, description="Neurons L3N17 or heads L3H2.")
    directions: tuple[FromRun | FromTokens | FromValues, ...] = Field(
        default=(), max_length=MOST_UNITS, description="Directions whose projection is read at `site`."
    )
    site: str | None = Field(
        default=None, description="Where directions are read: 'blocks.12.resid_post'; absent: at the run's layer."
    )
    n_tokens: int = Field(default=10_000, ge=16, le=100_000_000, description="Tokens of text to read.")
    width: int = Field(default=64, ge=8, le=4096, description="Tokens the model sees at a time.")
    top: int = Field(default=8, ge=1, le=100, description="Examples of each kind.")
    per_document: int = Field(default=1, ge=1, le=100, description="Most top examples from one document.")
    active_above: float = Field(default=0.0, description="A unit counts as active above this value.")
    skip_first: int = Field(
        default=1, ge=0, description="First tokens of a window not counted: models keep outliers there. BOS never is."
    )


class TextExample(Frozen):
    """A token in its context."""

    document: int = Field(description="Number of the document, from 0.")
    position: int = Field(description="Index of the token in its document.")
    value: float = Field(description="The unit's value there.")
    tokens: tuple[str, ...] = Field(description="The token with up to 24 on either side.")
    values: tuple[float, ...] = Field(description="The unit's value on each of them.")
    focus: int = Field(description="Which of them it is.")


class ExampleGroup(Frozen):
    """Examples chosen in one way."""

    kind: Group = Field(description="How they were chosen.")
    meaning: str = Field(description="The same in words.")
    examples: tuple[TextExample, ...] = Field(description="From different windows; the top from different documents.")


class ValueHistogram(Frozen):
    """All values that were read."""

    edges: tuple[float, ...] = Field(description="Ends of the bins, one more than counts.")
    counts: tuple[int, ...] = Field(description="Tokens in each bin.")


class UnitActivations(Frozen):
    """One unit on the text."""

    unit: str = Field(description="Neuron, head or direction.")
    value: str = Field(description="What its value is.")
    mean: float = Field(description="Mean over tokens.")
    sd: float = Field(description="Standard deviation over tokens.")
    density: float = Field(description="Share of tokens on which it is active.")
    highest: float = Field(description="Highest value.")
    lowest: float = Field(description="Lowest value.")
    median_active: float | None = Field(description="Median of the sample's active tokens; null if there are none.")
    top_share: float = Field(description="Share of the variance over tokens that the top examples stand for.")
    by_token: float | None = Field(
        description="Share of the variance that the token by itself explains, corrected for the number of tokens; null "
        "where nothing varies or every token is read once."
    )
    repetitions: int = Field(description="Candidates dropped because the same four tokens had led to one already.")
    groups: tuple[ExampleGroup, ...] = Field(description="Top, middle, low, random and (where negative) bottom.")
    histogram: ValueHistogram = Field(description="Of all values.")


class MaxActivationsResult(Result):
    """Units on running text."""

    units: tuple[UnitActivations, ...] = Field(description="In the order asked for, neurons and heads first.")
    tokens: int = Field(description="Tokens counted.")
    documents: int = Field(description="Documents they are from.")
    text: str = Field(description="Name of the text.")


class Unit(NamedTuple):
    """What is read of the model, and what it is called."""

    name: str
    value: str
    site: Site
    measure: Callable[[Tensor], Tensor]  # what stands at the site -> [B, T]
    signed: bool


def run(context: Context, arguments: Arguments) -> MaxActivationsResult:
    """Read the text once.

    Raises:
        BadArguments: no units, a unit named twice, or a direction without a place.
        BadSite: a unit or place that does not exist.
        BadPrompts: no text to read.
        WouldNotFit: one window is over the budget.
    """
    model, corpus = context.model, context.text
    if corpus is None:
        raise BadArguments("max_activations needs running text; give `text`.")
    units = [*_neurons_and_heads(model, arguments), *_directions(context, arguments)]
    if not units:
        raise BadArguments("name `units` (L3N17, L3H2) or give `directions`.")
    sites = list(dict.fromkeys(unit.site for unit in units))
    text = windows(
        corpus, model, width=arguments.width, n_tokens=arguments.n_tokens, seed=arguments.seed, bos=arguments.bos
    )
    found = scan(
        model, text, sites, lambda passed: _values(passed, units), units=len(units), examples=arguments.top,
        per_document=arguments.per_document, threshold=arguments.active_above, skip=arguments.skip_first,
        bos=arguments.bos, seed=arguments.seed, budget_bytes=context.budget_bytes,
        told=lambda read: context.progress(min(read, arguments.n_tokens), arguments.n_tokens, "tokens read"),
    )  # fmt: skip
    described = tuple(_described(model, found, i, unit, arguments) for i, unit in enumerate(units))
    return MaxActivationsResult(
        summary=_summary(described, found), warnings=_warnings(described, found, arguments), units=described,
        tokens=found.tokens, documents=found.documents, text=corpus.name,
    )  # fmt: skip


def plot(result: MaxActivationsResult) -> Figure:
    """Text of the first units, coloured by value, and the histogram of each."""
    shown = result.units[:DRAWN]
    panels = [panel for unit in shown for panel in (_text(unit), _histogram(unit))]
    others = f" Not drawn: {', '.join(u.unit for u in result.units[DRAWN:])}." if len(result.units) > DRAWN else ""
    return Figure(
        title=f"Text that activates {', '.join(u.unit for u in shown)}",
        caption=f"{result.tokens} tokens of {result.documents} documents ({result.text}). A framed token is the "
        "example, the others are coloured by their own value. Top examples alone mislead: read the rows below them."
        + others,
        panels=tuple(panels),
    )


def _neurons_and_heads(model: Model, arguments: Arguments) -> list[Unit]:
    found: list[Unit] = []
    for text in arguments.units:
        kind = "neuron" if re.fullmatch(r"L\d+N\d+", text) else "head"
        if kind == "neuron" and model.info.d_mlp == 0:
            raise BadArguments(f"{model.info.name} has no MLPs and so no neurons; name heads (L1H2).")
        site = parse_unit(text, kind, model.info.shape)
        if any(u.site == site for u in found):
            raise BadArguments(f"{text} is named twice; name each unit once.")
        found.append(_neuron(site) if kind == "neuron" else _head(model, site))
    return found


def _neuron(site: Site) -> Unit:
    return Unit(unit_name(site), "activation", site, lambda x: x, signed=True)


def _head(model: Model, site: Site) -> Unit:
    assert site.layer is not None
    assert site.index is not None
    matrix = widened(model.weights.o(site.layer)[site.index])
    return Unit(unit_name(site), "length of what it writes", site, lambda z: (widened(z) @ matrix).norm(dim=-1), False)


def _directions(context: Context, arguments: Arguments) -> list[Unit]:
    found: list[Unit] = []
    for ref in arguments.directions:
        site = _place(context.model, ref, arguments.site)
        looked_up = direction_of(context, ref)
        along = looked_up.vector / looked_up.vector.norm()
        name = f"{looked_up.name} at {site}"
        if any(u.name == name for u in found) and not isinstance(ref, FromValues):
            raise BadArguments(f"the direction {name} is given twice.")
        name = f"{name} ({len(found)})" if isinstance(ref, FromValues) and len(arguments.directions) > 1 else name
        found.append(Unit(name, "projection", site, _projection(along), signed=True))
    return found


def _projection(along: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: widened(x) @ along


def _place(model: Model, ref: FromRun | FromTokens | FromValues, site: str | None) -> Site:
    layer = ref.layer if isinstance(ref, FromRun) else None
    if site is None and layer is None:
        raise BadArguments("say where the direction is read: `site`, such as 'blocks.12.resid_post'.")
    place = check_site(parse_site(site) if site else Site("resid_post", layer), model.info.shape)
    if place.kind not in RESIDUAL or place.index is not None:
        raise BadArguments(f"a direction of the residual stream is read at {', '.join(RESIDUAL)}; not at {place}.")
    return place


def _values(passed: Run, units: Sequence[Unit]) -> Tensor:
    """[B, T, U]."""
    columns = [widened(unit.measure(passed.reads[unit.site])) for unit in units]
    out = columns[0].new_empty((*columns[0].shape, len(columns)))
    for i, column in enumerate(columns):
        out[..., i] = column
    return out


def _described(model: Model, found: Scanned, i: int, unit: Unit, arguments: Arguments) -> UnitActivations:
    top, bottom = found.highest[i].best(), found.lowest[i].best()
    chosen, median = _sampled(found, i, arguments)
    groups: dict[Group, Iterable[Example]] = {"top": top, **chosen}
    if unit.signed and bottom[0].value > 0:
        groups["bottom"] = [_negated(e) for e in bottom]
    spread = float(found.variance[i]) * found.tokens
    by_token = float(found.by_token[i])
    edges, counts = found.histograms[i].trimmed()
    return UnitActivations(
        unit=unit.name,
        value=unit.value,
        mean=float(found.mean[i]),
        sd=float(found.variance[i] ** 0.5),
        density=float(found.active[i]),
        highest=top[0].value,
        lowest=-bottom[0].value,
        median_active=median,
        top_share=sum((e.value - float(found.mean[i])) ** 2 for e in top) / spread if spread else 0.0,
        by_token=None if by_token != by_token else by_token,  # NaN: nothing to explain
        repetitions=found.highest[i].repetitions,
        groups=tuple(
            ExampleGroup(kind=kind, meaning=MEANING[kind], examples=tuple(_told(model, e) for e in examples))
            for kind, examples in groups.items()
        ),
        histogram=ValueHistogram(edges=edges, counts=counts),
    )


def _sampled(found: Scanned, i: int, arguments: Arguments) -> tuple[dict[Group, list[Example]], float | None]:
    """Examples about the middle and the low end of what is active, and of any value, from the random sample."""
    import numpy as np

    values, places = found.sampled(i)
    active = np.flatnonzero(values > arguments.active_above)
    groups: dict[Group, list[Example]] = {}
    for kind, share in QUANTILES.items():
        if active.size:
            order = active[np.argsort(abs(values[active] - np.quantile(values[active], share)), kind="stable")]
            groups[kind] = _apart(found, i, places[order], arguments.top)
    shuffled = list(range(len(values)))
    random.Random(f"{arguments.seed} {i}").shuffle(shuffled)
    groups["random"] = _apart(found, i, places[shuffled], arguments.top)
    return groups, float(np.median(values[active])) if active.size else None


def _apart(found: Scanned, i: int, places: Iterable[Sequence[int]], k: int) -> list[Example]:
    """The first k places that lie in windows of their own, the highest value first."""
    chosen: dict[int, Example] = {}
    for window, token in places:
        if int(window) not in chosen:
            chosen[int(window)] = found.at(i, int(window), int(token))
        if len(chosen) == k:
            break
    return sorted(chosen.values(), key=lambda e: -e.value)


def _negated(e: Example) -> Example:
    return e._replace(value=-e.value, values=tuple(-v for v in e.values))


def _told(model: Model, e: Example) -> TextExample:
    first, last = max(0, e.focus - AROUND), e.focus + AROUND + 1
    return TextExample(
        document=e.window.document, position=e.window.start + e.focus, value=e.value,
        tokens=model.token_strings(e.window.ids[first:last]), values=e.values[first:last], focus=e.focus - first,
    )  # fmt: skip


def _text(unit: UnitActivations) -> TextRows:
    rows = [
        TextRow(
            tokens=e.tokens, values=e.values, label=f"{e.value:.3g}  d{e.document}", focus=e.focus,
            group=group.meaning if group.kind != "random" else f"{group.meaning} (active on {unit.density:.1%})",
        )
        for group in unit.groups
        for e in group.examples[:ROWS]
    ]  # fmt: skip
    return TextRows(title=unit.unit, value_title=unit.value, rows=tuple(rows), diverging=unit.lowest < 0)


def _histogram(unit: UnitActivations) -> Lines:
    h = unit.histogram
    middles = tuple((a + b) / 2 for a, b in zip(h.edges, h.edges[1:], strict=False))
    return Lines(
        title=f"all values of {unit.unit}", x_title=unit.value, x=middles, y_title="tokens", log_y=True,
        series=(Series(name="tokens", values=tuple(c or None for c in h.counts)),),
    )  # fmt: skip


def _summary(units: Sequence[UnitActivations], found: Scanned) -> str:
    parts = []
    for unit in units[:4]:
        best = unit.groups[0].examples
        itself = "" if unit.by_token is None else f"; the token by itself explains {unit.by_token:.0%} of its variance"
        parts.append(
            f"{unit.unit} ({unit.value}) is highest on {_words(best)} (up to {unit.highest:.3g}){_down(unit)}, active "
            f"on {unit.density:.1%} of {found.tokens} tokens{itself}; the {len(best)} top examples are "
            f"{len(best) / found.tokens:.2%} of the tokens and {unit.top_share:.1%} of the variance"
        )
    return ". ".join(parts) + ". What top examples share is a guess about the unit, not what it does."


def _words(examples: Sequence[TextExample]) -> str:
    return ", ".join(dict.fromkeys(repr(e.tokens[e.focus]) for e in examples[:5]))


def _down(unit: UnitActivations) -> str:
    """The other end, where it lies further out."""
    bottom = unit.groups[-1]
    if bottom.kind != "bottom" or -unit.lowest < unit.highest:
        return ""
    return f", further out below: lowest on {_words(bottom.examples)} (down to {unit.lowest:.3g})"


def _warnings(units: Sequence[UnitActivations], found: Scanned, arguments: Arguments) -> tuple[str, ...]:
    least = min(unit.top_share for unit in units)
    told = [
        f"Top examples alone mislead: they stand for as little as {least:.1%} of a unit's variance. A label has to fit "
        "the middle and low examples and another text too, and to predict values it was not made from."
    ]
    if found.documents < arguments.top and arguments.per_document == 1:
        told.append(
            f"The text has {found.documents} documents and each gives one top example; raise `per_document` for more."
        )
    for unit in units:
        if unit.density == 0:
            told.append(f"{unit.unit} is never above {arguments.active_above:g} on this text: its top is not activity.")
        elif unit.density > DENSE and unit.lowest <= arguments.active_above:  # lengths are above 0 everywhere
            told.append(
                f"{unit.unit} is active on {unit.density:.0%} of tokens: it is no detector of anything rare; read its "
                "middle examples."
            )
        if unit.by_token is not None and unit.by_token > TOKEN_ITSELF:
            told.append(
                f"{unit.unit} depends mostly on the token by itself ({unit.by_token:.0%} of its variance): a story "
                "about context needs examples of one token with high and with low values."
            )
    return tuple(told)
