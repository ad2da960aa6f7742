"""Find the SAE features that stand for a concept, or show what given features are: text, tokens, density, neighbours.

Idea: two sets of texts that differ in a concept; every feature is asked how well it tells them apart, all of them are
corrected for, and the best are judged on texts that chose nothing, beside what costs no dictionary: a single word, all
words, random features of the same size, a difference of means. The other way round, a feature is shown by its
strongest, ordinary, weak and random text, by what it says to the logits, and by its neighbours.

Source: Gurnee et al., arXiv 2305.01610 (single units as probes); Kantamneni et al., arXiv 2502.16681 (SAE probes need
strong baselines); Bricken et al. 2023, https://transformer-circuits.pub/2023/monosemantic-features (what a feature is
shown by); Bolukbasi et al., arXiv 2104.07143 (top examples mislead). AUROC = chance that of two texts the one with the
concept has the larger activation; p by Mann-Whitney (pairs: signed ranks), Holm over all features tested.

Does not show: that the model uses a feature for the concept (sae_attribution, steer), or that the concept has one
feature: it may be split over many, or the set of texts may differ in something else that goes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..causal.feature_pages import FeatureDescription, describe
from ..causal.feature_search import (
    SHUFFLES,
    Read,
    Tested,
    difference_of_means,
    held_out_of_best,
    naive_bayes,
    read_units,
    scored,
)
from ..causal.features import chosen_dictionary, feature_name, parse_features, said
from ..causal.labelled import Labelled, TwoSets, few_examples, fit_and_held_out
from ..dictionaries.protocol import Dictionary
from ..dictionaries.random_features import RandomFeatures
from ..dictionaries.reading import activations
from ..errors import BadArguments
from ..figures import Bars, Figure, Lines, Series, TextRow, TextRows
from ..measures.labels import shuffled
from ..measures.linear import auroc_estimate
from ..measures.statistics import Clusters
from ..model.protocol import Model
from ..model.tokens import PositionSpec
from ..result import Estimate, Frozen, Result
from ..technique import Context, OnText, PromptsArgument, SaeArgument, Split

if TYPE_CHECKING:
    from numpy import ndarray

TITLE = "SAE feature search"
QUESTIONS = (
    "Which SAE features represent this concept?",
    "What is feature 1234?",
    "Does a feature tell these texts apart better than a single word does?",
    "On which text is this SAE feature active, and which tokens does it promote?",
)
SIGNIFICANT = 0.05
RANDOM_SETS = 3
SHUFFLED = 20
NO_BETTER = 0.02  # of AUROC: a baseline this near does as well
DRAWN = 6  # rows of each kind of example in the picture


class Arguments(TwoSets, OnText):
    """Arguments of sae_feature_search."""

    sae: SaeArgument
    prompts: PromptsArgument | None = Field(
        default=None, description="Prompt set whose clean texts are set against its corrupted ones; or give texts."
    )
    split: Split = "discovery"
    position: PositionSpec = Field(
        default="mean", description="Where texts are read: 'mean' over all, 'last', an integer, a role, a token, 'all'."
    )
    features: tuple[int | str, ...] = Field(
        default=(), max_length=50, description="Features to show (numbers or L15F123); no texts are needed then."
    )
    top: int = Field(default=10, ge=1, le=100, description="Features found that are listed.")
    show: int = Field(default=3, ge=0, le=20, description="Features found that are shown on `text` as well.")
    n_tokens: int = Field(default=8_000, ge=256, le=10_000_000, description="Tokens of `text` read to show features.")
    width: int = Field(default=64, ge=8, le=4096, description="Tokens the model sees at a time there.")
    examples: int = Field(default=6, ge=1, le=50, description="Examples of each kind.")


class FoundFeature(Frozen):
    """A feature that tells the two sets apart."""

    feature: str = Field(description="Its name: L15F123.")
    index: int = Field(description="Its number in the dictionary.")
    auroc: float = Field(description="On the texts that chose it; below .5: larger on texts without the concept.")
    held_out: Estimate = Field(description="AUROC on texts that chose nothing.")
    effect: float = Field(description="Difference of the means in pooled standard deviations (Cohen's d), at most 100.")
    p: float = Field(description="Raw p of the test.")
    p_holm: float = Field(description="Adjusted over all features tested (Holm).")
    q: float = Field(description="Adjusted over all features tested (Benjamini-Hochberg).")
    p_shuffled: float = Field(description="Share of label shuffles whose best feature does as well.")
    active_with: float = Field(description="Share of the texts with the concept on which it is active.")
    active_without: float = Field(description="Share of the texts without it on which it is active.")
    promotes: tuple[str, ...] = Field(description="Tokens its direction raises most, directly.")


class Baseline(Frozen):
    """What does the same without the dictionary, or by chance."""

    name: str
    held_out: float = Field(description="AUROC on texts that chose nothing.")


class FeatureSearchResult(Result):
    """Features of a concept, and what features are."""

    sae: str = Field(description="Handle of the dictionary.")
    site: str = Field(description="Site that it reads.")
    found: tuple[FoundFeature, ...] = Field(description="Best first; empty where no texts were given.")
    tested: int = Field(description="Features tested: active on at least three texts of the part that chooses.")
    baselines: tuple[Baseline, ...] = Field(description="On the same held-out texts, chosen the same way.")
    texts: str = Field(description="How many texts chose and judged, and where they were read.")
    described: tuple[FeatureDescription, ...] = Field(description="Features shown on running text.")
    text: str = Field(description="Running text they are shown on, and how much of it.")


class Search(NamedTuple):
    """The two parts, read, and what came of the first."""

    fit: Read
    held_out: Read
    found: Tested
    warnings: tuple[str, ...]


def run(context: Context, arguments: Arguments) -> FeatureSearchResult:
    """Search, then show.

    Raises:
        BadArguments: neither texts nor features, features that do not exist, or too few texts to split.
        BadPrompts, BadPosition, WouldNotFit: from the texts and the budget.
    """
    model, dictionary = context.model, chosen_dictionary(context.dictionary)
    searching = bool(arguments.positive or arguments.negative or context.prompts is not None)
    if not searching and not arguments.features:
        raise BadArguments("give `positive` and `negative` texts (or `prompts`) to search, or `features` to show.")
    named = parse_features(arguments.features, dictionary) if arguments.features else ()
    search = _search(context, arguments, dictionary) if searching else None
    found = _found(model, dictionary, search, arguments) if search else ()
    shown = list(dict.fromkeys([*named, *(f.index for f in found[: arguments.show])]))
    described, text = _described(context, arguments, dictionary, shown)
    baselines = _baselines(search, dictionary, context, arguments) if search else ()
    return FeatureSearchResult(
        summary=_summary(dictionary, found, search, baselines, described),
        warnings=(
            *dictionary.info.cautions, *(search.warnings if search else ()), *_against(found, baselines),
            *_beware(described),
        ),
        sae=dictionary.info.name,
        site=dictionary.info.site,
        found=found,
        tested=len(search.found.units) if search else 0,
        baselines=baselines,
        texts=_texts(search, arguments) if search else "none: only features were asked for",
        described=described,
        text=text,
    )


def _parts(context: Context, arguments: Arguments) -> tuple[Labelled, Labelled]:
    return fit_and_held_out(
        context.model, arguments, context.prompts, context.held_out, bos=arguments.bos, seed=arguments.seed
    )


def _search(context: Context, arguments: Arguments, dictionary: Dictionary) -> Search:
    parts = _parts(context, arguments)
    read = zip(parts[0].tokens.ids, parts[0].positions, strict=True)
    words = sorted({ids[p] for ids, places in read for p in places})
    context.progress(0, 3, "encoding the texts")
    fit, held_out = (read_units(context.model, dictionary, part, words, context.budget_bytes) for part in parts)
    context.progress(1, 3, "testing every feature")
    found = scored(fit.values, fit.labels, fit.groups, seed=arguments.seed)
    return Search(fit, held_out, found, (*parts[0].warnings, *few_examples(parts)))


def _found(model: Model, dictionary: Dictionary, search: Search, arguments: Arguments) -> tuple[FoundFeature, ...]:
    clusters = Clusters(search.held_out.groups, seed=arguments.seed)
    places = search.found.best(arguments.top)
    words = said(model, dictionary, [int(search.found.units[i]) for i in places], 5)
    rows = []
    for k, i in enumerate(places):
        unit = int(search.found.units[i])
        fit, held_out = search.fit.values[:, unit], search.held_out.values[:, unit].astype(float)
        rows.append(
            FoundFeature(
                feature=feature_name(dictionary.info.writes, unit),
                index=unit,
                auroc=float(search.found.auroc[i]),
                held_out=auroc_estimate(held_out, search.held_out.labels, clusters),
                effect=float(search.found.effect[i]),
                p=float(search.found.p[i]),
                p_holm=float(search.found.p_holm[i]),
                q=float(search.found.q[i]),
                p_shuffled=float(search.found.p_shuffled[i]),
                active_with=float((fit[search.fit.labels == 1] != 0).mean()),
                active_without=float((fit[search.fit.labels == 0] != 0).mean()),
                promotes=words[k][0],
            )
        )
    return tuple(rows)


def _baselines(
    search: Search, dictionary: Dictionary, context: Context, arguments: Arguments
) -> tuple[Baseline, ...]:
    fit, held_out = search.fit, search.held_out
    labels = (fit.labels, held_out.labels)

    def best(a: ndarray, b: ndarray) -> float:
        return held_out_of_best(a, labels[0], b, labels[1])

    context.progress(2, 3, "baselines")
    shuffles = shuffled(fit.labels.tolist(), fit.groups, SHUFFLED, arguments.seed + 1)
    chance = [held_out_of_best(fit.values, y, held_out.values, labels[1]) for y in shuffles]
    rows = [
        Baseline(name="best of as many random features", held_out=_random(search, dictionary, context, arguments)),
        Baseline(name="best coordinate of the activation", held_out=best(fit.activations, held_out.activations)),
        Baseline(name="difference of means", held_out=difference_of_means(fit, held_out)),
        Baseline(name="best single token", held_out=best(fit.counts, held_out.counts)),
        Baseline(name="all tokens (bag of words)", held_out=naive_bayes(fit, held_out)),
        Baseline(name="best feature by shuffled labels", held_out=float(sum(chance) / len(chance))),
    ]
    context.progress(3, 3, "baselines")
    return tuple(rows)


def _random(search: Search, dictionary: Dictionary, context: Context, arguments: Arguments) -> float:
    """Mean over a few random dictionaries of the held-out AUROC of the best of their features."""
    parts = _parts(context, arguments)
    model, budget = context.model, context.budget_bytes
    sample = next(activations(model, dictionary, parts[0].tokens, budget_bytes=budget))
    x = sample.real(sample.x)
    scores = []
    for k in range(RANDOM_SETS):
        random = RandomFeatures(dictionary, x, seed=arguments.seed + k)
        fit, held_out = (read_units(model, random, part, [], budget) for part in parts)
        scores.append(held_out_of_best(fit.values, fit.labels, held_out.values, held_out.labels))
    return sum(scores) / len(scores)


def _described(
    context: Context, arguments: Arguments, dictionary: Dictionary, shown: Sequence[int]
) -> tuple[tuple[FeatureDescription, ...], str]:
    if not shown:
        return (), "none"
    if context.text is None:
        raise BadArguments("features are shown on running text; give `text`, or show=0.")
    looked = describe(
        context.model, dictionary, shown, context.text, n_tokens=arguments.n_tokens, width=arguments.width,
        examples=arguments.examples, seed=arguments.seed, bos=arguments.bos, budget_bytes=context.budget_bytes,
        told=lambda read: context.progress(min(read, arguments.n_tokens), arguments.n_tokens, "text read"),
    )  # fmt: skip
    return looked.features, f"{looked.tokens} tokens of {looked.documents} documents ({context.text.name})"


def _texts(search: Search, arguments: Arguments) -> str:
    parts = (search.fit, search.held_out)
    counts = [f"{int(r.labels.sum())} with and {int((1 - r.labels).sum())} without" for r in parts]
    where = "averaged over their tokens" if arguments.position == "mean" else f"read at {arguments.position!r}"
    return f"chosen on {counts[0]}, judged on {counts[1]}; {where}"


def _against(found: Sequence[FoundFeature], baselines: Sequence[Baseline]) -> tuple[str, ...]:
    """Warnings where a baseline does as well as the best feature."""
    if not found:
        return ()
    best = found[0].held_out.mean if found[0].auroc >= 0.5 else 1 - found[0].held_out.mean
    told = []
    for name, meaning in (
        ("best single token", "the texts differ in a word: the feature may stand for that word"),
        ("all tokens (bag of words)", "the words alone tell the texts apart: give texts that share their words"),
        ("best of as many random features", "random directions do it too: this is no evidence for the dictionary"),
        ("best coordinate of the activation", "a single coordinate of the activation does it too"),
    ):
        other = next(b.held_out for b in baselines if b.name == name)
        if other >= best - NO_BETTER:
            told.append(f"The {name} reaches {other:.2f} on held-out texts, the best feature {best:.2f}: {meaning}.")
    if found[0].p_holm >= SIGNIFICANT:
        told.append("No feature survives Holm over all that were tested: what is listed may be chance.")
    return tuple(told)


def _beware(described: Sequence[FeatureDescription]) -> tuple[str, ...]:
    told = [f"{d.feature} is active on no token of this text: its page is empty." for d in described if not d.density]
    told += [
        f"{d.feature} is active on {d.density:.0%} of the tokens: it is dense, and detects nothing rare."
        for d in described
        if d.density > 0.1
    ]
    return tuple(told)


def _summary(
    dictionary: Dictionary, found: Sequence[FoundFeature], search: Search | None, baselines: Sequence[Baseline],
    described: Sequence[FeatureDescription],
) -> str:  # fmt: skip
    parts = []
    if search is not None:
        sure = [f for f in found if f.p_holm < SIGNIFICANT]
        listed = "; ".join(
            f"{f.feature} (held-out AUROC {f.held_out}, d {f.effect:+.2g}, Holm p {f.p_holm:.2g}"
            f"{', promotes ' + ' '.join(f.promotes[:3]) if f.promotes else ''})"
            for f in found[:3]
        )
        beside = ", ".join(f"{b.name} {b.held_out:.2f}" for b in baselines)
        parts.append(
            f"{len(search.found.units)} features of {dictionary.info.name} tested ({SHUFFLES} label shuffles); "
            f"{len(sure)} of the {len(found)} listed survive Holm. Best: {listed}. Beside them: {beside}."
        )
    for d in described[:3]:
        top = ", ".join(dict.fromkeys(repr(e.tokens[e.focus]) for e in d.examples if e.kind == "top"))
        up = " ".join(t.token for t in d.promotes[:4])
        said_up = f"; promotes {up}" if up else ""
        parts.append(f"{d.feature}: active on {d.density:.2%} of tokens, strongest on {top or 'none'}{said_up}.")
    return " ".join([*parts, "Telling texts apart, or firing on some, is not being used: take it away, or steer."])


def plot(result: FeatureSearchResult) -> Figure:
    """Held-out AUROC beside the baselines, and the first features on text."""
    panels: list[Bars | TextRows | Lines] = []
    if result.found:
        panels.append(_bars(result))
    for one in result.described[:2]:
        panels.append(_examples(one))
        if one.histogram is not None:
            panels.append(_histogram(one))
    if not panels:
        panels.append(Bars(title="nothing was found", value_title="AUROC", labels=("none",), values=(None,)))
    return Figure(
        title=f"{result.sae}: features of the concept" if result.found else f"{result.sae}: what features are",
        caption=f"{result.texts}. Text: {result.text}. Framed: the token itself; colours: the feature's activation.",
        panels=tuple(panels),
    )


def _bars(result: FeatureSearchResult) -> Bars:
    found = result.found
    return Bars(
        title="AUROC on texts that chose nothing",
        value_title="AUROC (.5 is chance)",
        labels=(*(f.feature for f in found), *(b.name for b in result.baselines)),
        values=(*(f.held_out.mean for f in found), *(b.held_out for b in result.baselines)),
        low=(*(f.held_out.low for f in found), *(None for _ in result.baselines)),
        high=(*(f.held_out.high for f in found), *(None for _ in result.baselines)),
        groups=(*("feature" for _ in found), *("baseline" for _ in result.baselines)),
        reference=0.5,
    )


def _examples(one: FeatureDescription) -> TextRows:
    rows = []
    for kind in ("top", "middle", "low", "random"):
        rows += [
            TextRow(tokens=e.tokens, values=e.values, label=f"{e.value:.3g}", group=kind, focus=e.focus)
            for e in [e for e in one.examples if e.kind == kind][:DRAWN]
        ]
    up = " ".join(t.token for t in one.promotes[:5])
    title = f"{one.feature}, active on {one.density:.2%}" + (f", promotes {up}" if up else "")
    return TextRows(title=title, value_title="activation", rows=tuple(rows))


def _histogram(one: FeatureDescription) -> Lines:
    assert one.histogram is not None
    edges = one.histogram.edges
    return Lines(
        title=f"{one.feature}: activations above 0", x_title="activation",
        x=tuple((a + b) / 2 for a, b in pairwise(edges)), y_title="tokens of the sample",
        series=(Series(name="tokens", values=tuple(map(float, one.histogram.counts))),),
    )  # fmt: skip
