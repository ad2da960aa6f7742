"""Score every head as previous-token, induction, duplicate-token, first-token and copying head, on random tokens.

Idea: on a run of random tokens given twice, what a head attends to shows its kind and nothing else. Five numbers per
head, over several seeds, beside those of an untrained model of the same configuration and of uniform attention.

Source: Elhage et al. 2021, https://transformer-circuits.pub/2021/framework (previous-token and copying heads); Olsson
et al., arXiv 2209.11895 (induction: attention to the token after the current one's earlier occurrence); Xiao et al.,
arXiv 2309.17453 (attention sinks: weight on the first token). Formulas: `causal/attention_scores.py`. Copying = sum of
the OV circuit's eigenvalues / sum of their magnitudes, over the whole vocabulary, weights alone.

Does not show: that the model uses a head, or what it does on text. A score is a description; patch or ablate the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from pydantic import Field

from ..causal.attention_scores import TARGETS
from ..causal.circuits import ov_factors, token_vectors
from ..causal.head_scores import HeadScores, repeated_tokens, score_heads, twin_scores
from ..causal.low_rank import eigenvalues, positive_share
from ..causal.measured import failed
from ..errors import Unsupported, WouldNotFit
from ..figures import Figure, Heatmap
from ..model.protocol import Model
from ..model.sites import head_name
from ..model.tokens import Tokens
from ..result import Frozen, Grid, Result, SelfTest, grid
from ..technique import Arguments as Common
from ..technique import Bos, Context

if TYPE_CHECKING:
    from numpy import ndarray

TITLE = "Kinds of heads"
QUESTIONS = (
    "Which heads are induction, previous-token, duplicate-token or copying heads?",
    "Which heads are induction heads?",
    "Which heads only look at the first token (attention sink)?",
)
Kind = Literal["previous_token", "induction", "duplicate_token", "first_token", "copying"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_NAMED = 20  # heads listed by name per kind
SEEDS_AGREE = 0.02  # a standard deviation over seeds above this is warned of


class Arguments(Common):
    """Arguments of detect_heads."""

    seeds: int = Field(default=3, ge=2, le=20, description="Sets of random tokens, from `seed` on.")
    rows: int = Field(default=24, ge=1, le=256, description="Rows of random tokens a seed.")
    length: int = Field(default=50, ge=4, le=512, description="Tokens in a row's first copy; cut to what fits.")
    null_models: int = Field(default=1, ge=0, le=5, description="Untrained models of the same configuration to score.")
    minimum: float = Field(
        default=0.3, ge=0, le=1, description="A head is named where its lowest seed is above this and above the null."
    )
    top: int = Field(default=5, ge=1, le=50, description="Heads listed per kind.")
    bos: Bos = None


class NullScores(Frozen):
    """The same score over all heads of untrained models."""

    heads: int = Field(description="Heads scored.")
    mean: float = Field(description="Mean over them.")
    sd: float = Field(description="Standard deviation over them.")
    largest: float = Field(description="The largest of them: the level a head must be above.")


class TopHead(Frozen):
    """One head and one of its scores."""

    head: str = Field(description="The head.")
    score: float = Field(description="Mean over seeds.")
    lowest: float = Field(description="Lowest seed.")
    sd: float = Field(description="Standard deviation over seeds; 0 for copying, which has no prompts.")
    named: bool = Field(description="Whether the lowest seed is above `minimum` and above the largest null score.")


class KindScores(Frozen):
    """One score of every head."""

    kind: Kind = Field(description="Which kind of head the score is for.")
    mean: Grid = Field(description="Layer by head: mean over seeds.")
    sd: Grid = Field(description="Layer by head: standard deviation over seeds.")
    uniform: float | None = Field(description="The score of evenly spread attention; absent for copying.")
    null: NullScores | None = Field(description="Untrained models of the same configuration; absent where none ran.")
    above_null: int | None = Field(description="Heads whose lowest seed is above every untrained head.")
    named: int = Field(description="Heads above `minimum` and the null.")
    largest_sd: float = Field(description="Largest standard deviation over seeds of any head.")
    top: tuple[TopHead, ...] = Field(description="The highest heads, best first.")


class DetectHeadsResult(Result):
    """Scores of all heads by kind."""

    kinds: tuple[KindScores, ...] = Field(description="One per kind.")
    named: dict[Kind, tuple[str, ...]] = Field(
        description="Heads above `minimum` and the null, best first, at most 20 a kind; `named` of a kind counts all."
    )
    tokens: str = Field(description="What the heads were scored on.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this model.")


class Found(NamedTuple):
    """A model's scores of one kind."""

    values: ndarray  # [seeds, L, H]
    null: ndarray | None  # [..., L, H] of untrained models
    uniform: float | None


def run(context: Context, arguments: Arguments) -> DetectHeadsResult:
    """Score every head of the model, and of its untrained twins on the first seed's tokens.

    Raises:
        BadSite: this backend cannot give patterns.
        BadArguments: no room for a run of tokens twice.
        WouldNotFit: an untrained model beside this one, or one row's patterns, are over the memory budget.
    """
    model = context.model
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    sets = repeated_tokens(model, seeds, arguments.rows, arguments.length, arguments.bos)
    copying, reason = _has_weights(model)
    twins, no_null = _twins(context, arguments)
    total, done = arguments.rows * (arguments.seeds + len(twins)), 0

    def progress(rows: int) -> None:
        nonlocal done
        done += rows
        context.progress(min(done, total), total, "rows scored")

    own = score_heads(model, sets, context.budget_bytes, progress, copying=copying)
    nulls: list[HeadScores] = []
    for seed in twins:
        assert context.random_twin is not None
        nulls.append(twin_scores(model, seed, context.random_twin, sets[:1], context.budget_bytes, copying=copying))
        progress(arguments.rows)
    found = _by_kind(own, nulls)
    kinds = tuple(_kind_scores(kind, f, arguments) for kind, f in found.items())
    tests = (_sums_to_one(own), *((_core_agrees(model, own),) if copying else ()))
    return DetectHeadsResult(
        summary=_summary(kinds, arguments, bool(nulls)),
        warnings=(*failed(tests), *reason, *no_null, *_warnings(kinds, sets, arguments)),
        kinds=kinds,
        named={k.kind: _named(found[k.kind], arguments) for k in kinds},
        tokens=f"{arguments.seeds} seeds x {arguments.rows} rows of {sets[0].width} tokens: random ones, then again",
        self_tests=tests,
    )


def plot(result: DetectHeadsResult) -> Figure:
    """One map of layer by head per kind."""
    panels = tuple(
        Heatmap(title=_title(k), grid=k.mean, diverging=k.kind == "copying", domain=_domain(k)) for k in result.kinds
    )
    return Figure(
        title="Kinds of heads",
        caption=f"Mean score of each head over {result.tokens}. Descriptions of attention and weights, not effects.",
        panels=panels,
        columns=2,
    )


def _title(k: KindScores) -> str:
    null = "" if k.null is None else f" (untrained: at most {k.null.largest:.2g})"
    return f"{k.kind.replace('_', ' ')}{null}"


def _domain(k: KindScores) -> tuple[float, float]:
    return (-1.0, 1.0) if k.kind == "copying" else (0.0, 1.0)


def _has_weights(model: Model) -> tuple[bool, tuple[str, ...]]:
    """Whether weights can be read for the copying score; what to say if not."""
    try:
        model.weights.o(0)
    except Unsupported as error:
        return False, (f"No copying scores: {error}",)
    return True, ()


def _twins(context: Context, arguments: Arguments) -> tuple[Sequence[int], tuple[str, ...]]:
    """Seeds of the untrained models to score; what to say where there is none.

    Raises:
        WouldNotFit: one more model of this size is over the budget.
    """
    info = context.model.info
    if not arguments.null_models:
        return (), ("No untrained model was scored: a score has only uniform attention to be compared with.",)
    if context.random_twin is None or info.configuration is None:
        return (), (f"{info.name} has no configuration to draw an untrained model from: there is no null.",)
    if info.weight_bytes > context.budget_bytes:
        raise WouldNotFit(
            f"an untrained model like {info.name} needs {info.weight_bytes / 2**20:,.0f} MiB beside it; "
            f"{context.budget_bytes / 2**20:,.0f} MiB may be used. Pass null_models=0 to go without, or unload a model."
        )
    return range(1, arguments.null_models + 1), ()


def _by_kind(own: HeadScores, nulls: Sequence[HeadScores]) -> dict[Kind, Found]:
    import numpy as np

    found: dict[Kind, Found] = {}
    for name in TARGETS:
        null = np.concatenate([n.attention[name] for n in nulls]) if nulls else None
        found[name] = Found(own.attention[name], null, own.even[name])  # type: ignore[index]
    if own.copying is not None:
        copied = [n.copying for n in nulls if n.copying is not None]
        found["copying"] = Found(own.copying[None], np.stack(copied) if copied else None, None)
    return found


def _kind_scores(kind: Kind, found: Found, arguments: Arguments) -> KindScores:
    mean, low, sd = (f(found.values) for f in (_mean, _lowest, _sd))
    layers, heads = mean.shape
    axes = (("layer", range(layers)), ("head", range(heads)))
    null = None if found.null is None else _null(found.null)
    level = _level(found, arguments)
    order = sorted(range(mean.size), key=lambda i: -mean.flat[i])[: arguments.top]
    top = tuple(
        TopHead(
            head=head_name(*divmod(i, heads)), score=float(mean.flat[i]), lowest=float(low.flat[i]),
            sd=float(sd.flat[i]), named=bool(low.flat[i] > level),
        )
        for i in order
    )  # fmt: skip
    return KindScores(
        kind=kind,
        mean=grid(f"{kind} score", _unit(kind), axes, map(float, mean.flat)),
        sd=grid(f"{kind} score, standard deviation over seeds", _unit(kind), axes, map(float, sd.flat)),
        uniform=found.uniform,
        null=null,
        above_null=None if null is None else int((low > null.largest).sum()),
        named=int((low > level).sum()),
        largest_sd=float(sd.max()),
        top=top,
    )


def _unit(kind: Kind) -> str:
    return "share of eigenvalues" if kind == "copying" else "attention weight"


def _mean(values: ndarray) -> ndarray:
    return values.mean(0)


def _lowest(values: ndarray) -> ndarray:
    return values.min(0)


def _sd(values: ndarray) -> ndarray:
    return values.std(0, ddof=1) if len(values) > 1 else 0 * values[0]


def _null(values: ndarray) -> NullScores:
    """Over all heads of all untrained models, [models, L, H]."""
    return NullScores(
        heads=values.size, mean=float(values.mean()), sd=float(values.std()), largest=float(values.max())
    )


def _level(found: Found, arguments: Arguments) -> float:
    """What a head must be above to be named."""
    null = -1.0 if found.null is None else float(found.null.max())
    return max(arguments.minimum, null)


def _named(found: Found, arguments: Arguments) -> tuple[str, ...]:
    low, mean = _lowest(found.values), _mean(found.values)
    above = [i for i in range(low.size) if low.flat[i] > _level(found, arguments)]
    best = sorted(above, key=lambda i: -mean.flat[i])[:MOST_NAMED]
    return tuple(head_name(*divmod(i, low.shape[1])) for i in best)


def _sums_to_one(own: HeadScores) -> SelfTest:
    return SelfTest(
        name="each query's weights sum to 1", expected=0.0, found=own.row_sums, tolerance=0.02,
        passed=own.row_sums <= 0.02,
    )  # fmt: skip


def _core_agrees(model: Model, own: HeadScores) -> SelfTest:
    """The copying score of the last layer's head 0 by the other way: both factors over the whole vocabulary."""
    assert own.copying is not None
    layer = model.info.n_layers - 1
    factors = ov_factors(model, layer, 0, token_vectors(model, None, "embedding", layer))
    difference = abs(float(positive_share(eigenvalues(factors.core()))) - float(own.copying[layer, 0]))
    return SelfTest(
        name="copying score by the summed embedding against the one by both factors", expected=0.0, found=difference,
        tolerance=0.01, passed=difference <= 0.01,
    )  # fmt: skip


def _summary(kinds: Sequence[KindScores], arguments: Arguments, null: bool) -> str:
    beyond = f"above {arguments.minimum:g}" + (" and every head of an untrained model" if null else "")
    parts = []
    for k in kinds:
        best = k.top[0]
        parts.append(f"{k.kind.replace('_', ' ')}: {best.head} {best.score:.2f} ({k.named} {beyond})")
        beyond = "so"
    return (
        f"Highest on random tokens given twice: {'; '.join(parts)}. Scores describe attention and weights; whether "
        "the model uses a head needs patching or ablation."
    )


def _warnings(kinds: Sequence[KindScores], sets: Sequence[Tokens], arguments: Arguments) -> tuple[str, ...]:
    found = [
        f"{k.kind}: seeds disagree, standard deviation up to {k.largest_sd:.3f}; use more rows."
        for k in kinds
        if k.largest_sd > SEEDS_AGREE
    ]
    length = (sets[0].width - sets[0].bos) // 2
    if length < arguments.length:
        found.append(f"Runs were cut to {length} tokens, all that fit; on short runs even attention scores higher.")
    return tuple(found)
