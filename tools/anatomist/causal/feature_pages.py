"""What a feature is, as far as text and weights tell: examples of all kinds, density, histogram, logits, neighbours.

Top examples alone mislead (Bolukbasi et al., arXiv 2104.07143): beside the strongest stand examples from the middle and
the lower end of the feature's range, and tokens drawn at random. The layout of what is shown follows what readers of
Neuronpedia and SAEDashboard know (Lin 2023, https://www.neuronpedia.org; McDougall 2024, SAE-vis).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..dictionaries.logits import direct_logits, promoted, residual_directions
from ..dictionaries.protocol import Dictionary
from ..dictionaries.reading import read_of
from ..errors import Unsupported
from ..model.protocol import Model, Run
from ..prompts.corpus import Corpus
from ..prompts.windows import windows
from ..result import Frozen
from .examples import Example, Scanned, scan
from .features import feature_name
from .vocabulary import token_labels

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

ExampleKind = Literal["top", "middle", "low", "random"]
KINDS: tuple[ExampleKind, ...] = ("top", "middle", "low", "random")
AROUND = 16  # tokens of context on either side
BINS, LOGITS, NEIGHBOURS = 30, 10, 5


class ActivatingText(Frozen):
    """A token in its context, with the feature's activation on every token."""

    kind: ExampleKind = Field(description="top, middle (median of active tokens), low (weakest tenth), random.")
    value: float = Field(description="Activation on the token.")
    tokens: tuple[str, ...] = Field(description="The token with up to 16 on either side.")
    values: tuple[float, ...] = Field(description="Activation on each of them.")
    focus: int = Field(description="Which of them it is.")
    document: int = Field(description="Number of the document, from 0.")


class TokenLogit(Frozen):
    """A token and what the feature's direction adds to its logit."""

    token: str
    logit: float = Field(description="Direct logit of one unit of the direction, less the vocabulary's mean (logits).")


class Neighbour(Frozen):
    """A feature whose direction is near."""

    feature: str = Field(description="Its name.")
    cosine: float = Field(description="Cosine of the two directions.")


class Counts(Frozen):
    """A histogram."""

    edges: tuple[float, ...] = Field(description="Ends of the bins, one more than counts.")
    counts: tuple[int, ...] = Field(description="How many in each bin.")


class FeatureDescription(Frozen):
    """One feature on some text."""

    feature: str = Field(description="Its name: L15F123.")
    index: int = Field(description="Its number in the dictionary.")
    density: float = Field(description="Share of the tokens on which it is active.")
    highest: float = Field(description="Highest activation.")
    mean_active: float | None = Field(description="Mean activation where it is active; null if it is nowhere.")
    by_token: float | None = Field(
        description="Share of its variance that the token by itself explains; null where nothing varies."
    )
    decoder_norm: float = Field(description="Norm of its direction.")
    promotes: tuple[TokenLogit, ...] = Field(description="Tokens it raises most, directly; empty if undefined.")
    suppresses: tuple[TokenLogit, ...] = Field(description="Tokens it lowers most, directly.")
    nearest: tuple[Neighbour, ...] = Field(description="Features with the nearest directions.")
    histogram: Counts | None = Field(description="Activations above 0, of a random sample; null if there are none.")
    logits: Counts | None = Field(description="Direct logits over the whole vocabulary; null if undefined.")
    examples: tuple[ActivatingText, ...] = Field(description="Top, middle, low and random examples.")


class Looked(NamedTuple):
    """Features described on some text."""

    features: tuple[FeatureDescription, ...]
    tokens: int
    documents: int


def describe(
    model: Model, dictionary: Dictionary, features: Sequence[int], corpus: Corpus, *, n_tokens: int, width: int,
    examples: int, seed: int, bos: bool | None, budget_bytes: int, told: Callable[[int], None],
) -> Looked:  # fmt: skip
    """Read the text once and describe the features. The first token of a window is not counted.

    Raises:
        BadPrompts: no text. WouldNotFit: one window is over the budget.
    """
    chosen = list(features)
    site = dictionary.info.reads

    def measure(run: Run) -> Tensor:
        return dictionary.encode(read_of(run, site))[..., chosen]

    found = scan(
        model, windows(corpus, model, width=width, n_tokens=n_tokens, seed=seed, bos=bos), [site], measure,
        units=len(chosen), examples=examples, per_document=2, threshold=0.0, skip=1, bos=bos, seed=seed,
        budget_bytes=budget_bytes, told=told,
    )  # fmt: skip
    told_tokens = _logits(model, dictionary, chosen)
    near = _nearest(dictionary, chosen)
    described = tuple(
        _described(model, dictionary, found, u, feature, examples, seed, told_tokens[u], near[u])
        for u, feature in enumerate(chosen)
    )
    return Looked(described, found.tokens, found.documents)


class _Logits(NamedTuple):
    up: tuple[TokenLogit, ...]
    down: tuple[TokenLogit, ...]
    histogram: Counts | None


def _described(
    model: Model, dictionary: Dictionary, found: Scanned, u: int, feature: int, examples: int, seed: int,
    logits: _Logits, near: tuple[Neighbour, ...],
) -> FeatureDescription:  # fmt: skip
    import numpy as np

    values, _ = found.sampled(u)
    active = values[values > 0] if len(values) else values
    density, mean = float(found.active[u]), float(found.mean[u])
    best = found.highest[u].best()
    by_token = float(found.by_token[u])
    return FeatureDescription(
        feature=feature_name(dictionary.info.writes, feature),
        index=feature,
        density=density,
        highest=best[0].value if best else 0.0,
        mean_active=mean / density if density else None,
        by_token=by_token if np.isfinite(by_token) else None,
        decoder_norm=float(dictionary.directions[feature].float().norm()),
        promotes=logits.up,
        suppresses=logits.down,
        nearest=near,
        histogram=_counts(active) if len(active) else None,
        logits=logits.histogram,
        examples=tuple(_examples(model, found, u, examples, seed)),
    )


def _examples(model: Model, found: Scanned, u: int, k: int, seed: int) -> list[ActivatingText]:
    """Top ones of the whole text; middle, low and random ones of the random sample, each of another window."""
    import numpy as np

    values, places = found.sampled(u)
    top = [e for e in found.highest[u].best() if e.value > 0]
    shown = [_shown(model, e, "top") for e in top]
    if not len(values):
        return shown
    active = np.flatnonzero(values > 0)
    rng = random.Random(f"{seed} {u} examples")
    for kind, quantile in (("middle", 0.5), ("low", 0.1)):
        if len(active):
            level = np.quantile(values[active], quantile)
            order = active[np.argsort(abs(values[active] - level), kind="stable")]
            shown += [_shown(model, e, kind) for e in _apart(found, u, order, places, k)]  # type: ignore[arg-type]
    order = np.array(rng.sample(range(len(values)), len(values)))
    return shown + [_shown(model, e, "random") for e in _apart(found, u, order, places, k)]


def _apart(found: Scanned, u: int, order: ndarray, places: ndarray, k: int) -> list[Example]:
    """The first k of an order that stand in different windows."""
    taken: dict[int, Example] = {}
    for i in order:
        window, focus = (int(p) for p in places[i])
        if window not in taken:
            taken[window] = found.at(u, window, focus)
        if len(taken) == k:
            break
    return list(taken.values())


def _shown(model: Model, e: Example, kind: ExampleKind) -> ActivatingText:
    first, last = max(0, e.focus - AROUND), e.focus + AROUND + 1
    return ActivatingText(
        kind=kind, value=e.value, tokens=model.token_strings(e.window.ids[first:last]), values=e.values[first:last],
        focus=e.focus - first, document=e.window.document,
    )  # fmt: skip


def _logits(model: Model, dictionary: Dictionary, features: Sequence[int]) -> list[_Logits]:
    try:
        directions = residual_directions(model, dictionary, features)
    except Unsupported:
        return [_Logits((), (), None) for _ in features]
    said = promoted(model, directions, LOGITS)
    found = []
    for k, (up, down) in enumerate(said):
        logits = direct_logits(model, directions[k : k + 1])[0].float()
        found.append(
            _Logits(
                _tokens(model, [(i, v) for i, v in up if v > 0]), _tokens(model, [(i, v) for i, v in down if v < 0]),
                _counts((logits - logits.mean()).cpu().numpy()) if up and up[0][1] > 0 else None,
            )
        )
    return found


def _tokens(model: Model, listed: Sequence[tuple[int, float]]) -> tuple[TokenLogit, ...]:
    labels = token_labels(model, [i for i, _ in listed])
    return tuple(TokenLogit(token=label, logit=v) for label, (_, v) in zip(labels, listed, strict=True))


def _nearest(dictionary: Dictionary, features: Sequence[int]) -> list[tuple[Neighbour, ...]]:
    directions = dictionary.directions.float()
    unit = directions / directions.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    cosines = unit[list(features)] @ unit.T
    k = min(NEIGHBOURS + 1, unit.shape[0])
    best = cosines.topk(k, dim=-1)
    return [
        tuple(
            Neighbour(feature=feature_name(dictionary.info.writes, j), cosine=v)
            for j, v in zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
            if j != feature
        )[:NEIGHBOURS]
        for row, feature in enumerate(features)
    ]


def _counts(values: ndarray) -> Counts:
    import numpy as np

    counts, edges = np.histogram(values.astype(float), bins=BINS)
    return Counts(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))
