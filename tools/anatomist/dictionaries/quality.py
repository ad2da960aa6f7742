"""How good a dictionary is on a model's own activations: sparsity, reconstruction, and what the model loses by it.

Four figures, because none is enough alone (a dictionary can explain .97 of the variance and have the wrong features):

    L0                   mean number of active features a token
    explained variance   1 - sum |y - y_hat|^2 / sum |y - mean y|^2        (over tokens and width)
    CE recovered         (CE(mean) - CE(y_hat)) / (CE(mean) - CE(y))       cross-entropy with y replaced at every token
    dead, dense share    features that fire on no token, and on more than a tenth of them

Zero of the CE scale is mean ablation, a harder zero than zero ablation, which breaks the model. All are given with
and without massive-norm tokens: a few tokens (often the first of a row) can hold nearly all the variance, and a
dictionary that rebuilds only those looks excellent. Without them, those tokens keep their activations.

Source: Bricken et al., "Towards Monosemanticity" (2023), https://transformer-circuits.pub/2023/monosemantic-features;
Karvonen et al., SAEBench, arXiv 2503.09532, section 3; Sun et al., arXiv 2402.17762 (massive activations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..errors import BadPrompts, NotFinite
from ..model.batches import Rows, batches
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.tokens import Tokens
from ..result import Frozen
from .fit import check_fit
from .protocol import Dictionary
from .reading import read_of, shaped, sites_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

MASSIVE = 5.0  # a token is massive when its norm is over this many times the median norm
DENSE = 0.1  # a feature is dense when it fires on more than this share of the tokens
BUDGET = 1024**3  # bytes for logits and activations of one pass
_ENCODED = 2**24  # numbers that are encoded at a time (features x tokens)
Progress = Callable[[float, float, str], None]


class Figures(Frozen):
    """One set of tokens."""

    tokens: int = Field(description="Tokens that were encoded.")
    l0: float = Field(description="Mean number of active features a token.")
    explained_variance: float = Field(description="Share of the variance around the mean that is explained.")
    ce_recovered: float | None = Field(
        description="Share of the cross-entropy recovered: 0 mean ablation, 1 untouched; absent where mean ablation "
        "costs nothing."
    )
    ce_intact: float = Field(description="Cross-entropy of the untouched model (nats a token).")
    ce_spliced: float = Field(description="Cross-entropy with the reconstruction in place.")
    ce_mean_ablated: float = Field(description="Cross-entropy with the mean activation in place.")
    dead_share: float = Field(description="Share of the features that fired on none of these tokens.")
    dense_share: float = Field(description=f"Share of the features that fired on more than {DENSE:.0%} of them.")


class Quality(Frozen):
    """A dictionary measured on tokens of the model in hand."""

    everywhere: Figures = Field(description="All tokens.")
    ordinary: Figures = Field(description="Without massive-norm tokens, which keep their activations.")
    features: int = Field(description="Features of the dictionary.")
    massive_tokens: int = Field(description=f"Tokens whose norm is over {MASSIVE:.0f} times the median.")
    massive_variance_share: float = Field(description="Share of the variance that those tokens hold.")


@dataclass(frozen=True)
class Read:
    """Activations of one pass over some rows, flat over the real tokens."""

    rows: Rows
    x: Float[Tensor, "n d_in"]
    y: Float[Tensor, "n d_out"]
    real: Bool[Tensor, "b t"]  # False where a shorter row is padded
    ce: Float[Tensor, " m"]  # of every token that has a next one


def measure_quality(
    model: Model, dictionary: Dictionary, tokens: Tokens, *, progress: Progress | None = None, budget: int = BUDGET
) -> Quality:
    """The figures of a dictionary on these tokens: one pass to read, two for each of the two sets of tokens.

    Raises:
        BadArguments: the dictionary's widths are not those of the sites in this model.
        BadPrompts: no row has two tokens.
        NotFinite: the dictionary gives NaN or infinity.
    """
    check_fit(dictionary.info, model.info, other_model=True)
    if tokens.width < 2:
        raise BadPrompts("every row has one token: nothing is predicted. Give rows of at least two tokens.")
    parts = passes(model, dictionary, tokens, budget)
    say = _steps(progress, 5 * len(parts))
    read = [say("reading", lambda part=part: _read(model, dictionary, tokens, part)) for part in parts]
    norms = _cat([r.y.norm(dim=-1) for r in read])
    limit = MASSIVE * float(norms.median())
    heavy = [r.y.norm(dim=-1) > limit for r in read]
    everywhere = _figures(model, dictionary, tokens, read, None, say)
    n_heavy = sum(int(h.sum()) for h in heavy)
    return Quality(
        everywhere=everywhere,
        ordinary=_figures(model, dictionary, tokens, read, heavy, say) if n_heavy else everywhere,
        features=dictionary.info.d_dict,
        massive_tokens=n_heavy,
        massive_variance_share=_share(_cat([r.y for r in read]), _cat(heavy)),
    )


def passes(model: Model, dictionary: Dictionary, tokens: Tokens, budget: int) -> list[Rows]:
    """Rows that one pass takes, its logits (and their softmax) included.

    Raises:
        WouldNotFit: one row alone is over the budget.
    """
    logits = 3 * tokens.width * model.info.d_vocab * 4
    return batches(model.info, tokens, sites_of(dictionary.info), budget, extra=logits, in_order=True)


def next_token_ce(logits: Float[Tensor, "b t v"], tokens: Tokens) -> Float[Tensor, " n"]:
    """Cross-entropy (nats) of every token that follows another, row by row."""
    ids = [logits.new_tensor(row, dtype=int) for row in tokens.ids]  # type: ignore[arg-type]
    return _cat([-logits[i, : len(r) - 1].log_softmax(-1).gather(-1, r[1:, None])[:, 0] for i, r in enumerate(ids)])


def encoded(dictionary: Dictionary, x: Float[Tensor, "n d"]) -> Iterator[tuple[slice, Float[Tensor, "m f"]]]:
    """Feature activations, some tokens at a time.

    Raises:
        NotFinite: NaN or infinity among them.
    """
    step = max(16, _ENCODED // dictionary.info.d_dict)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        f = dictionary.encode(x[part])
        if not bool(f.isfinite().all()):
            raise NotFinite(
                f"{dictionary.info.name!r} gives NaN or infinity on this model's activations: its weights are damaged, "
                "or they are for another normalisation. Load it again, or train one with train_sae."
            )
        yield part, f


def _read(model: Model, dictionary: Dictionary, tokens: Tokens, rows: Rows) -> Read:
    part = tokens.rows(rows)
    run = model.run(part, read=sites_of(dictionary.info), logits_at="all")
    x, y = read_of(run, dictionary.info.reads), read_of(run, dictionary.info.writes)
    real = real_tokens(part, x)
    assert run.logits is not None
    ce = next_token_ce(run.logits, part)
    return Read(rows, x[real], y[real], real, ce)


def real_tokens(tokens: Tokens, like: Tensor) -> Bool[Tensor, "b t"]:
    """Which places of a padded batch are tokens."""
    lengths = like.new_tensor(tokens.lengths)
    return like.new_ones(tokens.n_rows, tokens.width).cumsum(-1) <= lengths[:, None]


def _figures(
    model: Model, dictionary: Dictionary, tokens: Tokens, read: list[Read], heavy: list[Tensor] | None, say: _Say
) -> Figures:
    """The figures over all tokens, or over those that are not heavy."""
    kept = [r.y.new_ones(len(r.y)).bool() for r in read] if heavy is None else [~h for h in heavy]
    n = sum(int(k.sum()) for k in kept)
    mean = _cat([r.y[k] for r, k in zip(read, kept, strict=True)]).double().mean(0)
    left, total, active, fired = 0.0, 0.0, 0.0, None
    intact, spliced, ablated = [], [], []
    for r, k in zip(read, kept, strict=True):
        y_hat, counts = _rebuilt(dictionary, r, k)
        fired = counts if fired is None else fired + counts
        left += float((r.y - y_hat)[k].double().pow(2).sum())
        total += float((r.y[k].double() - mean).pow(2).sum())
        active += float(counts.sum())
        y_mean = r.y.where(~k[:, None], mean.to(r.y.dtype))
        counted = _predicting(r, k)
        intact.append(r.ce[counted])
        spliced.append(say("splicing", lambda r=r, v=y_hat: _ce_with(model, dictionary, tokens, r, v))[counted])
        ablated.append(say("mean ablation", lambda r=r, v=y_mean: _ce_with(model, dictionary, tokens, r, v))[counted])
    assert fired is not None
    ce, ce_hat, ce_mean = (float(_cat(part).double().mean()) for part in (intact, spliced, ablated))
    return Figures(
        tokens=n, l0=active / n, explained_variance=1 - left / total if total else math.nan,
        ce_recovered=(ce_mean - ce_hat) / (ce_mean - ce) if ce_mean - ce > 1e-6 else None,
        ce_intact=ce, ce_spliced=ce_hat, ce_mean_ablated=ce_mean,
        dead_share=float((fired == 0).double().mean()), dense_share=float((fired > DENSE * n).double().mean()),
    )  # fmt: skip


def _rebuilt(
    dictionary: Dictionary, read: Read, kept: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " f"]]:
    """The activations with their reconstruction where kept, and on how many kept tokens each feature fired."""
    y_hat, counts = read.y.clone(), None
    for part, f in encoded(dictionary, read.x):
        here = kept[part]
        rebuilt = dictionary.decode(f, read.x[part]).to(read.y.dtype)
        y_hat[part] = rebuilt.where(here[:, None], read.y[part])
        fired = (f[here] != 0).double().sum(0)
        counts = fired if counts is None else counts + fired
    assert counts is not None
    return y_hat, counts


def _predicting(read: Read, kept: Bool[Tensor, " n"]) -> Bool[Tensor, " m"]:
    """Of the tokens that have a next one, those that are kept."""
    grid = read.real.clone()
    grid[read.real] = kept
    lengths = read.real.sum(-1)
    return _cat([grid[i, : int(n) - 1] for i, n in enumerate(lengths)])


def _ce_with(
    model: Model, dictionary: Dictionary, tokens: Tokens, read: Read, y: Float[Tensor, "n d"]
) -> Float[Tensor, " m"]:
    """Cross-entropy with other activations in place."""
    part, site = tokens.rows(read.rows), dictionary.info.writes
    grid = y.new_zeros(*read.real.shape, y.shape[-1])
    grid[read.real] = y
    value = shaped(grid, site, model.info.n_heads)
    edits = [
        Edit(site=site, rule="set", rows=(i,), positions=tuple(range(n)), value=value[i : i + 1, :n])
        for i, n in enumerate(part.lengths)
    ] if len(set(part.lengths)) > 1 else [Edit(site=site, rule="set", value=value)]
    run = model.run(part, edits=edits, logits_at="all")
    assert run.logits is not None
    return next_token_ce(run.logits, part)


def _share(y: Float[Tensor, "n d"], heavy: Bool[Tensor, " n"]) -> float:
    """The share of the variance around the mean that some tokens hold."""
    around = (y.double() - y.double().mean(0)).pow(2).sum(-1)
    return float(around[heavy].sum() / around.sum()) if float(around.sum()) else 0.0


def _cat(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(parts)


_Say = Callable[[str, Callable[[], Any]], Any]


def _steps(progress: Progress | None, total: int) -> _Say:
    """Does a piece of work and tells that it is done."""
    done = 0

    def say(what: str, work: Callable[[], Any]) -> Any:
        nonlocal done
        found = work()
        done += 1
        if progress:
            progress(min(done, total), total, f"quality of the dictionary: {what}")
        return found

    return say
