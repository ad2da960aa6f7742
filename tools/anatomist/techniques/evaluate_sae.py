"""Judge sparse autoencoders on a model: their figures beside those of baselines that learned nothing.

Idea: sparsity and reconstruction are easy to have. A frozen random decoder, the largest principal components of each
token, and the same training on an untrained model have them too; what counts is how far a dictionary is beyond those at
the same number of active features. Whether single features mean anything is asked apart: can one of them say what can
be said of a token, and does the feature of a first letter stay silent where another has taken it over?

Source: Karvonen et al., SAEBench, arXiv 2503.09532; Korznikov et al., arXiv 2602.14111 (frozen decoder); Heap et al.,
arXiv 2501.17727 (untrained models); Chanin et al., arXiv 2409.14507 (absorption); Gurnee et al., arXiv 2305.01610
(sparse probing). Explained variance 1 - sum |y - y_hat|^2 / sum |y - mean y|^2; CE recovered
(CE(mean) - CE(y_hat)) / (CE(mean) - CE(y)); all with and without massive-norm tokens.

Does not show: that features are those that the model uses (ablate or steer them), nor that they are the true ones: in
synthetic data a dictionary that explains .97 of the variance can match none of the features well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..dictionaries.agreement import Agreement, agreement
from ..dictionaries.probing import Absorption, ProbeRow, absorption, halves, probe_rows, properties
from ..dictionaries.protocol import Dictionary
from ..dictionaries.quality import DENSE, MASSIVE, Quality, measure_quality
from ..errors import BadArguments, Unsupported
from ..figures import Bars, Figure, Scatter
from ..model.protocol import Model
from ..model.tokens import Tokens
from ..prompts.corpus import Corpus, rows
from ..result import Frozen, Result
from ..technique import Context, OnText, SaeArgument

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "Judging sparse autoencoders"
QUESTIONS = (
    "Is this sparse autoencoder any good?",
    "Which of several SAEs is the best for this model?",
    "Does the SAE do better than a random one, PCA, or an SAE of an untrained model?",
    "How many features are dead, and how much of the loss does the SAE recover?",
)
Baseline = Literal["pca", "random_decoder", "random_model"]
JUDGED = 0.3  # share of the documents; the baselines learn from the others
MARGIN = 0.05  # explained variance or CE recovered under which two are alike
MANY_DEAD, MANY_DENSE, LITTLE, POOR_CE = 0.2, 0.05, 0.5, 0.8
ABSORBED = 0.1


class Arguments(OnText):
    """Arguments of evaluate_sae."""

    sae: SaeArgument
    beside: tuple[SaeArgument, ...] = Field(
        default=(), max_length=20, description="Further SAEs of the same site, for one table and one plot."
    )
    tokens: int = Field(default=4096, ge=128, le=1_000_000, description="Tokens that are judged on.")
    width: int = Field(default=128, ge=4, le=8192, description="Tokens a row.")
    baselines: tuple[Baseline, ...] = Field(
        default=("pca", "random_decoder", "random_model"), description="What it is held against, at its own L0."
    )
    baseline_tokens: int = Field(default=16_384, ge=64, le=10**8, description="Tokens that baselines learn from.")
    baseline_steps: int = Field(default=300, ge=1, le=10**6, description="Steps that the trained baselines get.")
    probing: bool = Field(default=True, description="Sparse probing and the absorption-like check of the first SAE.")


class Judged(Frozen):
    """One dictionary or baseline."""

    name: str = Field(description="Handle, or what the baseline is.")
    baseline: str | None = Field(description="pca, random_decoder or random_model; absent for the SAEs given.")
    features: int = Field(description="Number of features.")
    quality: Quality = Field(description="Its figures, with and without massive-norm tokens.")
    agreement: Agreement | None = Field(
        default=None, description="The first SAE's features looked for in this one; absent for itself, PCA and SAEs of "
        "an untrained model."
    )


class SaeEvaluation(Result):
    """Dictionaries beside their baselines."""

    site: str = Field(description="Site that is rebuilt.")
    judged: tuple[Judged, ...] = Field(description="The SAEs given, then the baselines.")
    probes: tuple[ProbeRow, ...] = Field(description="Sparse probing of the first SAE; empty if not asked for.")
    random_probes: tuple[ProbeRow, ...] = Field(description="The same properties from the random decoder's features.")
    absorption: Absorption | None = Field(description="First letters; absent if not asked for.")
    verdict: tuple[str, ...] = Field(description="What the figures say of the first SAE, in words.")


class Learned(NamedTuple):
    """What baselines learn from."""

    tokens: Tokens
    x: Tensor  # at the site that is explained, ordinary tokens


def run(context: Context, arguments: Arguments) -> SaeEvaluation:
    """Measure every dictionary and baseline on the same rows.

    Raises:
        BadArguments: dictionaries of different sites, or a baseline without enough tokens.
        BadPrompts: the text is too short to be split.
    """
    model, first, text = context.model, context.dictionary, context.text
    assert first is not None
    assert text is not None
    saes = [first, *(_found(context, name, first) for name in arguments.beside)]
    judged_text, learned_text = text.split(JUDGED, arguments.seed)
    bos = first.info.bos if arguments.bos is None else arguments.bos
    judged = rows(judged_text, model, width=arguments.width, n_tokens=arguments.tokens, bos=bos)
    table = [_judged(context, model, sae, judged, None, first) for sae in saes]
    l0 = table[0].quality.ordinary.l0
    found, left_out = _baselines(context, arguments, first, l0, learned_text, judged, bos)
    table += [row for row, _ in found]
    decoder = next((d for row, d in found if row.baseline == "random_decoder"), None)
    probes, random_probes, absorbed = _probed(context, arguments, first, decoder, judged)
    return SaeEvaluation(
        summary=_summary(table, absorbed),
        warnings=(*left_out, *_warnings(first, text, table, arguments), *first.info.cautions),
        site=first.info.site_out, judged=tuple(table), probes=probes, random_probes=random_probes, absorption=absorbed,
        verdict=verdict(table[0], table[1:], absorbed),
    )  # fmt: skip


def _found(context: Context, name: str, first: Dictionary) -> Dictionary:
    assert context.find_dictionary is not None
    found = context.find_dictionary(name)
    if (found.info.site, found.info.site_out) != (first.info.site, first.info.site_out):
        raise BadArguments(
            f"{found.info.name} is at {found.info.site_out}, {first.info.name} at {first.info.site_out}: their figures "
            "cannot stand in one table. Evaluate them apart."
        )
    return found


def _judged(
    context: Context, model: Model, sae: Dictionary, tokens: Tokens, baseline: str | None, first: Dictionary
) -> Judged:
    quality = measure_quality(model, sae, tokens, progress=context.progress, budget=context.budget_bytes)
    alike = sae is not first and baseline in (None, "random_decoder")
    return Judged(
        name=sae.info.name, baseline=baseline, features=sae.info.d_dict, quality=quality,
        agreement=agreement(first, sae) if alike else None,
    )  # fmt: skip


def _baselines(
    context: Context, arguments: Arguments, first: Dictionary, l0: float, text: Corpus, judged: Tokens,
    bos: bool | None,
) -> tuple[list[tuple[Judged, Dictionary]], tuple[str, ...]]:  # fmt: skip
    """Each baseline asked for, trained on other documents and measured on the same rows; and those that cannot be."""
    if not arguments.baselines:
        return [], ()
    from ..dictionaries.baselines import PrincipalComponents, ordinary_activations, same_size, trained_on

    site, model, budget = first.info.writes, context.model, context.budget_bytes
    tokens = rows(text, model, width=arguments.width, n_tokens=arguments.baseline_tokens, bos=bos)

    def activations(of: Model) -> Tensor:
        return ordinary_activations(of, site, tokens, times=MASSIVE, budget=budget)

    def trained(x: Tensor, name: str, *, frozen: bool) -> Dictionary:
        batch = max(8, min(1024, len(x) // 4))
        recipe = same_size(
            first, l0, steps=arguments.baseline_steps, batch=batch, seed=arguments.seed, frozen=frozen
        )
        return trained_on(x, recipe, name=name, site=site, progress=context.progress)

    found: list[tuple[Judged, Dictionary]] = []
    left_out: list[str] = []
    x = activations(model) if {"pca", "random_decoder"} & set(arguments.baselines) else None
    for baseline in dict.fromkeys(arguments.baselines):
        on: Model | None = model
        if baseline == "random_model":
            try:
                on = context.random_twin(arguments.seed) if context.random_twin else None
            except Unsupported as error:
                on = None
                left_out.append(f"There is no untrained model to compare with: {error}")
            if on is None:
                continue
            sae = trained(activations(on), "SAE of an untrained model", frozen=False)
        elif baseline == "pca":
            assert x is not None
            sae = PrincipalComponents(x, round(l0), first.info)
        else:
            assert x is not None
            sae = trained(x, "frozen random decoder", frozen=True)
        found.append((_judged(context, on, sae, judged, baseline, first), sae))
        if on is not model:
            on.close()
    return found, tuple(left_out)


def _probed(
    context: Context, arguments: Arguments, sae: Dictionary, decoder: Dictionary | None, tokens: Tokens
) -> tuple[tuple[ProbeRow, ...], tuple[ProbeRow, ...], Absorption | None]:
    """Sparse probing of the first dictionary and of the random decoder, and the absorption-like check."""
    if not arguments.probing:
        return (), (), None
    import numpy as np

    from ..dictionaries.reading import activations

    parts = list(activations(context.model, sae, tokens, budget_bytes=context.budget_bytes, in_order=True))
    x = np.concatenate([part.real(part.x).float().cpu().numpy() for part in parts])
    y = np.concatenate([part.real(part.y).float().cpu().numpy() for part in parts])
    norms = np.linalg.norm(y, axis=1)
    kept = halves(tokens.lengths, norms <= MASSIVE * np.median(norms))
    labels = properties(tokens.strings)

    def features(of: Dictionary, read: Callable[[object], Tensor]) -> ndarray:
        return np.concatenate([of.encode(part.real(read(part))).float().cpu().numpy() for part in parts])

    f = features(sae, lambda part: part.x)  # type: ignore[attr-defined]
    probes = tuple(probe_rows(x, f, labels, kept, arguments.seed))
    beside: tuple[ProbeRow, ...] = ()
    if decoder is not None:
        beside = tuple(probe_rows(y, features(decoder, lambda part: part.y), labels, kept, arguments.seed))  # type: ignore[attr-defined]
    strings = [token for row in tokens.strings for token in row]
    directions = sae.directions.float().cpu().numpy()
    return probes, beside, absorption(y, f, directions, strings, kept)


def verdict(first: Judged, others: Sequence[Judged], absorbed: Absorption | None) -> tuple[str, ...]:
    """The figures in words, the worst first."""
    own, words = first.quality.ordinary, []
    for other in others:
        if other.baseline:
            words.append(_against(first, other))
    if own.explained_variance < LITTLE:
        words.append(f"Half of the variance is missing: it explains {own.explained_variance:.2f}.")
    if own.ce_recovered is not None and own.ce_recovered < POOR_CE:
        words.append(f"Much that the model uses is missing: {own.ce_recovered:.2f} of the cross-entropy comes back.")
    if own.dead_share > MANY_DEAD:
        words.append(f"{own.dead_share:.0%} of its features are silent on these tokens (more tokens may wake some).")
    if own.dense_share > MANY_DENSE:
        words.append(f"{own.dense_share:.0%} of its features fire on more than {DENSE:.0%} of the tokens: not sparse.")
    if absorbed is not None and absorbed.rate is not None and absorbed.rate > ABSORBED:
        words.append(f"First-letter features are absorbed on {absorbed.rate:.0%} of the words: they have holes.")
    return tuple(sorted(words, key=lambda w: not w.startswith("NO BETTER")))


def _against(first: Judged, other: Judged) -> str:
    """The dictionary beside one baseline."""
    own, its = first.quality.ordinary, other.quality.ordinary
    gap = own.explained_variance - its.explained_variance
    told = f"explained variance {own.explained_variance:.2f} against {its.explained_variance:.2f} of {other.name}"
    if other.baseline == "random_model":
        alike = " Reconstruction alone therefore says little about what was learned." if gap < MARGIN else ""
        both = f"{its.explained_variance:.2f} (here {own.explained_variance:.2f})"
        return f"On an untrained model the same training reaches {both}.{alike}"
    if own.ce_recovered is not None and its.ce_recovered is not None:
        told += f", CE recovered {own.ce_recovered:.2f} against {its.ce_recovered:.2f}"
        gap = min(gap, own.ce_recovered - its.ce_recovered) if abs(own.l0 - its.l0) <= 0.25 * own.l0 else gap
    return f"{'NO BETTER: ' if gap < MARGIN else 'Better: '}{told}, at L0 {own.l0:.0f} and {its.l0:.0f}."


def _summary(table: Sequence[Judged], absorbed: Absorption | None) -> str:
    lines = []
    for row in table:
        q = row.quality.ordinary
        told = q.ce_recovered is not None and row.baseline != "random_model"
        ce = f", CE recovered {q.ce_recovered:.2f}" if told else ""
        ev = f"{q.explained_variance:.3f}"
        again = "" if row.agreement is None else f", has {row.agreement.found_again:.0%} of the first's features"
        lines.append(f"{row.name}: L0 {q.l0:.1f}, explained variance {ev}{ce}, dead {q.dead_share:.0%}{again}")
    apart = table[0].quality
    heavy = (
        f" {apart.massive_tokens} massive-norm tokens ({apart.massive_variance_share:.0%} of the variance) are left "
        f"out; with them the first explains {apart.everywhere.explained_variance:.3f}."
        if apart.massive_tokens
        else ""
    )
    rate = None if absorbed is None else absorbed.rate
    holes = "" if rate is None else f" Absorption-like holes: {rate:.0%} of first letters."
    return (
        "; ".join(lines) + f".{heavy}{holes} Good figures do not show that the features are the model's own: ablate or "
        "steer them before saying so."
    )


def _warnings(first: Dictionary, text: Corpus, table: Sequence[Judged], arguments: Arguments) -> tuple[str, ...]:
    words = []
    missing = {"pca", "random_decoder", "random_model"} - {row.baseline for row in table}
    if missing:
        words.append(f"Without the baselines {', '.join(sorted(missing))} the figures cannot be called good.")
    if {"random_decoder", "random_model"} & set(arguments.baselines):
        words.append(
            f"The trained baselines had {arguments.baseline_steps} steps on {arguments.baseline_tokens:,} tokens; "
            "longer training would raise them."
        )
    if first.info.metadata.get("dataset_path") == text.name:
        words.append("The first SAE was trained on this very text: parts of what is judged were in its training.")
    l0s = [row.quality.ordinary.l0 for row in table if row.baseline is None]
    if len(l0s) > 1 and max(l0s) > 1.5 * max(min(l0s), 1e-9):
        words.append("The SAEs have different L0: compare them along the plot's axis, not by one column.")
    if len(l0s) == 1:
        words.append("One SAE at one L0: several (`beside`) show whether another is better at the same sparsity.")
    return tuple(words)


def plot(result: SaeEvaluation) -> Figure:
    """Explained variance and CE recovered against L0; sparse probing."""
    panels: list[Scatter | Bars] = [_against_l0(result, "explained_variance", "explained variance")]
    if any(row.quality.ordinary.ce_recovered is not None for row in result.judged):
        panels.append(_against_l0(result, "ce_recovered", "CE recovered"))
    if result.probes:
        panels.append(_probe_bars(result))
    first = result.judged[0].quality
    return Figure(
        title=f"Sparse autoencoders at {result.site}",
        caption=f"{first.ordinary.tokens} tokens, massive-norm tokens left out ({first.massive_tokens}). Zero of CE "
        "recovered is mean ablation. Baselines at the first SAE's L0; an untrained model has no cross-entropy worth "
        "recovering.",
        panels=tuple(panels),
    )


def _against_l0(result: SaeEvaluation, field: str, title: str) -> Scatter:
    points = [(row, getattr(row.quality.ordinary, field)) for row in result.judged]
    # Mean ablation costs an untrained model next to nothing: the share recovered of that says nothing.
    empty = "random_model" if field == "ce_recovered" else None
    points = [(row, value) for row, value in points if value is not None and (empty is None or row.baseline != empty)]
    return Scatter(
        title=f"{title} against L0", x_title="L0 (active features a token)", y_title=title,
        x=tuple(row.quality.ordinary.l0 for row, _ in points), y=tuple(value for _, value in points),
        labels=tuple(row.name for row, _ in points),
        groups=tuple("baseline" if row.baseline else "SAE" for row, _ in points),
    )  # fmt: skip


def _probe_bars(result: SaeEvaluation) -> Bars:
    kinds = (("one feature", "one_feature"), ("one coordinate", "one_coordinate"), ("whole activation", "whole"))
    cells = [(row.property, name, getattr(row, field)) for row in result.probes for name, field in kinds]
    return Bars(
        title="Sparse probing: balanced accuracy", value_title="balanced accuracy",
        labels=tuple(f"{name}: {kind}" for name, kind, _ in cells), values=tuple(value for *_, value in cells),
        groups=tuple(kind for _, kind, _ in cells), reference=0.5,
    )  # fmt: skip
