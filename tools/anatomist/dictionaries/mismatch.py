"""A dictionary that does not do what it should: what is amiss, in words.

The figures measured at load are held against those the release states and against what any dictionary should reach.
Where they disagree, the usual reasons are tried one by one (another hook, another activation function, activations
normalised beforehand, centred activations), and the one that repairs the reconstruction is named. All explained
variances here leave out the first position of each row, whose norm can outweigh all others together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..model.protocol import Model
from ..model.sites import Site, SiteKind
from ..model.tokens import Tokens
from .fit import width_of
from .protocol import Dictionary, ReleaseFigures
from .reading import flat

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

POOR = 0.4  # explained variance under which something is amiss, whatever the release says
WORSE = 0.1  # explained variance below what is stated
TWICE = 2.0  # L0 over or under what is stated
DENSE = 0.2  # of the features active at a token: no longer sparse
REPAIRS = 0.1  # gain of explained variance that makes a reason likely
KINDS: tuple[SiteKind, ...] = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
Rebuild = Callable[["Tensor"], "Tensor"]


class Figures(NamedTuple):
    """What was measured on the model in hand."""

    l0: float
    explained_variance: float  # first positions left out


def figures(model: Model, dictionary: Dictionary, tokens: Tokens) -> Figures:
    """L0 and explained variance on some rows, first positions left out."""
    x, y = _read(model, dictionary.info.reads, tokens), _read(model, dictionary.info.writes, tokens)
    f = dictionary.encode(x)
    return Figures(float((f != 0).float().sum(-1).mean()), explained(y, dictionary.decode(f, x)))


def amiss(found: Figures, stated: ReleaseFigures, n_features: int) -> tuple[str, ...]:
    """What disagrees, in words; empty where all is well."""
    l0, ev = found
    words: list[str] = []
    if stated.l0 and not stated.l0 / TWICE <= l0 <= stated.l0 * TWICE:
        words.append(f"{l0:.1f} features are active at a token; the release states {stated.l0:g}")
    elif l0 > DENSE * n_features:
        words.append(f"{l0:.0f} of {n_features} features are active at a token: this is not sparse")
    elif l0 == 0:
        words.append("no feature is ever active")
    if stated.explained_variance and ev < stated.explained_variance - WORSE:
        words.append(f"it explains {ev:.0%} of the variance; the release states {stated.explained_variance:.0%}")
    elif ev < POOR:
        words.append(f"it explains only {ev:.0%} of the variance")
    return tuple(words)


def reasons(model: Model, dictionary: Dictionary, tokens: Tokens, found: Figures) -> tuple[str, ...]:
    """The usual reasons that repair the reconstruction, the best first; empty where none does."""
    tried = [(explained_variance, words) for explained_variance, words in _trials(model, dictionary, tokens, found)]
    enough = max(POOR, found.explained_variance + REPAIRS)
    better = sorted((t for t in tried if t[0] > enough), key=lambda t: -t[0])
    was = f"{found.explained_variance:.2f}"
    return tuple(f"{words} (explained variance {ev:.2f} instead of {was})" for ev, words in better[:2])


def diagnosis(model: Model, dictionary: Dictionary, tokens: Tokens) -> tuple[str, ...]:
    """What is amiss and why, as sentences for a reader; empty where all is well."""
    found = figures(model, dictionary, tokens)
    wrong = amiss(found, dictionary.info.release, dictionary.info.d_dict)
    if not wrong:
        return ()
    why = reasons(model, dictionary, tokens, found)
    told = f"MISMATCH: on {model.info.name}, {'; '.join(wrong)}."
    if why:
        return (f"{told} Likely reason: {'; or '.join(why)}.",)
    return (
        f"{told} None of the usual reasons (another hook, another activation function, normalisation, centring) "
        "repairs it: the model, the text or the weights may not be those of its training. Do not rely on its features.",
    )


def explained(y: Float[Tensor, "*rest d"], y_hat: Float[Tensor, "*rest d"]) -> float:
    """1 - sum |y - y_hat|^2 / sum |y - mean|^2."""
    y, y_hat = y.flatten(0, -2).double(), y_hat.flatten(0, -2).double()
    return 1 - float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum().clamp(min=1e-30))


def _trials(
    model: Model, dictionary: Dictionary, tokens: Tokens, found: Figures
) -> Iterator[tuple[float, str]]:
    info = dictionary.info
    x = _read(model, info.reads, tokens)
    if info.kind == "sae":
        for site in _other_sites(model, dictionary):
            there = _read(model, site, tokens)
            yield explained(there, _rebuilt(dictionary, there)), f"wrong hook: it fits {site}, not {info.reads}"
    y = _read(model, info.writes, tokens)
    k = round(info.release.l0 or _metadata_k(dictionary) or 0)
    if 0 < k < found.l0:
        f = _largest(dictionary.encode(x), k)
        words = f"wrong activation function: it was trained to keep the {k} largest features a token (top-k)"
        yield explained(y, dictionary.decode(f, x)), words
    if info.kind == "sae":
        yield from _normalisations(dictionary, x)


def _normalisations(dictionary: Dictionary, x: Float[Tensor, "B T d"]) -> Iterator[tuple[float, str]]:
    width = x.shape[-1] ** 0.5
    factor = width / x.norm(dim=-1).median()
    yield (
        explained(x, _rebuilt(dictionary, x * factor) / factor),
        f"wrong normalisation: it expects activations whose norm is about sqrt(d): multiply by {float(factor):.3g} "
        "(expected_average_only_in, not folded into the weights)",
    )
    mean = x.mean(-1, keepdim=True)
    scale = (x - mean).std(-1, keepdim=True)
    yield (
        explained(x, _rebuilt(dictionary, (x - mean) / scale) * scale + mean),
        "wrong normalisation: it expects every token's activation normalised by itself (layer_norm)",
    )
    if dictionary.info.input == "plain":
        yield (
            explained(x, _rebuilt(dictionary, x - mean) + mean),
            "wrong centring: it expects activations whose mean over the width is 0 (center_writing_weights)",
        )


def _rebuilt(dictionary: Dictionary, x: Tensor) -> Tensor:
    return dictionary.decode(dictionary.encode(x), x)


def _largest(f: Float[Tensor, "*rest f"], k: int) -> Float[Tensor, "*rest f"]:
    """All but the k largest of each token set to 0."""
    least = f.topk(k, dim=-1).values[..., -1:]
    return f * (f >= least)


def _metadata_k(dictionary: Dictionary) -> float | None:
    text = dictionary.info.metadata.get("k", "")
    return float(text) if text.replace(".", "", 1).isdigit() else None


def _other_sites(model: Model, dictionary: Dictionary) -> list[Site]:
    """Places of the same width nearby: other kinds at its layer, its kind one and two layers away."""
    own = dictionary.info.reads
    if own.layer is None:
        return []
    layers = [own.layer + d for d in (-2, -1, 1, 2) if 0 <= own.layer + d < model.info.n_layers]
    near = [Site(own.kind, layer) for layer in layers]
    near += [Site(kind, own.layer) for kind in KINDS if kind != own.kind]
    return [s for s in near if s.kind in model.info.sites and width_of(s, model.info) == dictionary.info.d_in]


def _read(model: Model, site: Site, tokens: Tokens) -> Float[Tensor, "B T d"]:
    """Activations without the first position; rows are of one length."""
    return flat(model.run(tokens, read=[site]).reads[site])[:, 1:]
