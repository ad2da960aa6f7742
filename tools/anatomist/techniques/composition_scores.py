"""Score how much of what each head reads was written by each earlier head: Q-, K- and V-composition, by the weights.

Idea: heads of different layers talk through the residual. A head's output matrix and a later head's query, key or value
matrix share few directions by chance; where they share many, the second may read what the first wrote, to choose where
it looks from (Q), what it looks for (K) or what it moves (V).

Source: Elhage et al. 2021, https://transformer-circuits.pub/2021/framework ("Composition"; induction heads are found by
K-composition with a previous-token head): |A B| / (|A| |B|) in Frobenius norms of the writer's OV matrix and the
reader's QK or OV matrix; formulas in `causal/composition.py`. Baseline: random Gaussian matrices of the same shapes,
whose root mean square is 1 / sqrt(d_model).

Does not show: that anything flows there: a pair may share directions that are never used, or pass through MLPs, which
are left out. Trained heads share large directions of the residual: scores above random are the rule, not the find.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..causal.composition import CompositionKind, composition, random_scores, read, written, written_out
from ..causal.measured import failed
from ..causal.qk_sides import need_static_qk
from ..causal.units import chosen_units, unit_name
from ..errors import BadArguments
from ..figures import Figure, Heatmap
from ..model.protocol import ModelInfo
from ..model.sites import Site
from ..result import Frozen, Grid, Result, SelfTest, grid
from ..technique import Arguments as Common
from ..technique import Context, Heads

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

TITLE = "Composition of heads"
QUESTIONS = (
    "Which heads read what other heads write?",
    "Which previous-token head feeds this induction head?",
    "Do these two heads compose through queries, keys or values?",
)
WORDS: dict[CompositionKind, str] = {"q": "Q-composition", "k": "K-composition", "v": "V-composition"}
DRAWS = 200  # pairs of random matrices
MOST_CELLS = 2500  # of a head by head grid in the result; larger ones are kept with the run
AGREE = 1e-3


class Arguments(Common):
    """Arguments of composition_scores."""

    kinds: tuple[CompositionKind, ...] = Field(
        default=("q", "k", "v"), min_length=1, description="Compositions: through queries, keys or values."
    )
    writers: Heads = Field(default=None, description="Earlier heads L23H3; all when absent.")
    readers: Heads = Field(default=None, description="Later heads L23H3; all when absent.")
    offset: int = Field(
        default=0, ge=0, description="Rotary models: positions from key to query, for Q and K; 0 elsewhere."
    )
    top: int = Field(default=10, ge=1, le=100, description="Pairs listed per kind.")


class Pair(Frozen):
    """Two heads and how much they compose."""

    writer: str = Field(description="The earlier head.")
    reader: str = Field(description="The later head.")
    score: float = Field(description="Composition, 0 to 1.")
    excess: float = Field(description="Score minus the mean of random matrices.")
    deviations: float = Field(description="The excess in standard deviations of the random scores.")


class KindOfComposition(Frozen):
    """All pairs of one kind."""

    kind: CompositionKind = Field(description="Through queries (q), keys (k) or values (v).")
    top: tuple[Pair, ...] = Field(description="The highest pairs, best first.")
    pairs: int = Field(description="Pairs of an earlier and a later head that were scored.")
    median: float = Field(description="Median score over the pairs: what heads of this model have anyway.")
    above_random: int = Field(description="Pairs above the largest random score.")
    layers: Grid = Field(description="Largest score by layer of the writer and layer of the reader.")
    heads: Grid | None = Field(description="Every score, writer by reader; absent where large, then kept with the run.")


class RandomComposition(Frozen):
    """Scores between random Gaussian matrices of the heads' shapes."""

    mean: float = Field(description="Mean over the draws.")
    sd: float = Field(description="Standard deviation over the draws.")
    largest: float = Field(description="Largest of the draws.")
    draws: int = Field(description="Pairs drawn.")
    expected: float = Field(description="Root mean square for matrices of any spectrum in random places: 1/sqrt(D).")


class CompositionResult(Result):
    """Composition of pairs of heads by the weights."""

    kinds: tuple[KindOfComposition, ...] = Field(description="One per kind asked for.")
    random: RandomComposition = Field(description="The baseline.")
    self_tests: tuple[SelfTest, ...] = Field(description="Pairs against their matrices written out.")


def run(context: Context, arguments: Arguments) -> CompositionResult:
    """Score every pair of an earlier and a later head.

    Raises:
        Unsupported: q or k where queries and keys are normalised, or unknown weights.
        BadSite, BadArguments: heads that do not exist, no pair of an earlier and a later one, or an offset that means
            nothing.
    """
    model, kinds = context.model, tuple(dict.fromkeys(arguments.kinds))
    _check(model.info, arguments)
    writers = chosen_units("head", arguments.writers, None, model.info.shape)
    readers = chosen_units("head", arguments.readers, None, model.info.shape)
    pairs = [(a, b) for a in writers for b in readers if _layer(b) > _layer(a)]
    if not pairs:
        raise BadArguments("no reader lies in a later layer than a writer: name writers in earlier layers.")
    early, late = sorted({_layer(a) for a, _ in pairs}), sorted({_layer(b) for _, b in pairs})
    writes = {layer: written(model, layer) for layer in early}
    reads = {layer: read(model, layer, kinds, arguments.offset) for layer in late}
    random = _random(writes[early[0]][0], arguments.seed)
    found, tests = [], []
    for i, kind in enumerate(kinds):
        scores = composition(
            model, kind, writes, reads,
            lambda done, total, i=i: context.progress(i * total + done, len(kinds) * total, "pairs of layers scored"),
        ).cpu()  # fmt: skip
        context.keep(f"{kind}_composition", scores, axes=("writer", "reader"), unit="composition, -1 where not later")
        table = _Table(scores.numpy(), early, late, model.info.n_heads)
        tests.append(_self_test(context, arguments, kind, table, pairs[0]))
        found.append(_kind(kind, table, writers, readers, pairs, random, arguments.top))
    return CompositionResult(
        summary=_summary(found, random),
        warnings=(*failed(tests), *_warnings(model.info, arguments)),
        kinds=tuple(found),
        random=random,
        self_tests=tuple(tests),
    )


def plot(result: CompositionResult) -> Figure:
    """One map per kind: of heads where there are few, of layers elsewhere."""
    panels = tuple(
        Heatmap(title=f"{WORDS[k.kind]}: writer (row), reader (column)", grid=k.heads or k.layers, diverging=False)
        for k in result.kinds
    )
    r = result.random
    return Figure(
        title="Composition of heads",
        caption=f"Frobenius norm of the product over the product of norms; random matrices: mean {r.mean:.3f}, largest "
        f"{r.largest:.3f} of {r.draws}. Shared directions of weights, not a flow of information.",
        panels=panels,
    )


class _Table:
    """Scores of whole layers, looked up by head."""

    def __init__(self, scores: ndarray, early: Sequence[int], late: Sequence[int], heads: int) -> None:
        self.scores, self.heads = scores, heads
        self.early, self.late = ({layer: i for i, layer in enumerate(layers)} for layers in (early, late))

    def at(self, writer: Site, reader: Site) -> float | None:
        """None where the reader is not later."""
        if _layer(reader) <= _layer(writer):
            return None
        row = self.early[_layer(writer)] * self.heads + (writer.index or 0)
        return float(self.scores[row, self.late[_layer(reader)] * self.heads + (reader.index or 0)])


def _layer(site: Site) -> int:
    assert site.layer is not None
    return site.layer


def _check(info: ModelInfo, arguments: Arguments) -> None:
    if {"q", "k"} & set(arguments.kinds):
        need_static_qk(info, "Composition through values has one: pass kinds=['v'].")
    if arguments.offset and info.positional != "rotary":
        raise BadArguments(f"offset {arguments.offset}: only rotary models turn queries and keys; leave it out.")
    if arguments.offset >= info.n_ctx:
        raise BadArguments(f"offset {arguments.offset} is outside the context: 0 to {info.n_ctx - 1}.")


def _random(like: Float[Tensor, "h D"], seed: int) -> RandomComposition:
    drawn = random_scores(like, DRAWS, seed)
    return RandomComposition(
        mean=float(drawn.mean()), sd=float(drawn.std(ddof=1)), largest=float(drawn.max()), draws=DRAWS,
        expected=1 / math.sqrt(like.shape[1]),
    )  # fmt: skip


def _kind(
    kind: CompositionKind, table: _Table, writers: Sequence[Site], readers: Sequence[Site],
    pairs: Sequence[tuple[Site, Site]], random: RandomComposition, top: int,
) -> KindOfComposition:  # fmt: skip
    scores = [score for a, b in pairs if (score := table.at(a, b)) is not None]
    best = sorted(range(len(pairs)), key=lambda i: -scores[i])[:top]
    return KindOfComposition(
        kind=kind,
        top=tuple(_pair(*pairs[i], scores[i], random) for i in best),
        pairs=len(pairs),
        median=sorted(scores)[len(scores) // 2],
        above_random=sum(s > random.largest for s in scores),
        layers=_by_layer(kind, table, pairs, scores),
        heads=_by_head(kind, table, writers, readers),
    )


def _pair(writer: Site, reader: Site, score: float, random: RandomComposition) -> Pair:
    excess = score - random.mean
    return Pair(
        writer=unit_name(writer), reader=unit_name(reader), score=score, excess=excess, deviations=excess / random.sd
    )


def _by_layer(
    kind: CompositionKind, table: _Table, pairs: Sequence[tuple[Site, Site]], scores: Sequence[float]
) -> Grid:
    largest: dict[tuple[int, int], float] = {}
    for (a, b), score in zip(pairs, scores, strict=True):
        largest[_layer(a), _layer(b)] = max(score, largest.get((_layer(a), _layer(b)), 0.0))
    axes = (("writer layer", list(table.early)), ("reader layer", list(table.late)))
    values = [largest.get((a, b)) for a in table.early for b in table.late]
    return grid(f"largest {WORDS[kind]} by layer", "composition", axes, values)


def _by_head(kind: CompositionKind, table: _Table, writers: Sequence[Site], readers: Sequence[Site]) -> Grid | None:
    rows = [a for a in writers if _layer(a) in table.early]
    columns = [b for b in readers if _layer(b) in table.late]
    if len(rows) * len(columns) > MOST_CELLS:
        return None
    axes = (("writer", map(unit_name, rows)), ("reader", map(unit_name, columns)))
    return grid(WORDS[kind], "composition", axes, [table.at(a, b) for a in rows for b in columns])


def _self_test(
    context: Context, arguments: Arguments, kind: CompositionKind, table: _Table, pair: tuple[Site, Site]
) -> SelfTest:
    """The first pair with both matrices written out, D by D."""
    whole = written_out(context.model, kind, pair[0], pair[1], arguments.offset)
    difference = abs((table.at(*pair) or 0.0) - whole)
    return SelfTest(
        name=f"{WORDS[kind]} of {unit_name(pair[0])} and {unit_name(pair[1])} against the matrices written out",
        expected=0.0, found=difference, tolerance=AGREE, passed=difference <= AGREE,
    )  # fmt: skip


def _summary(found: Sequence[KindOfComposition], random: RandomComposition) -> str:
    parts = [
        f"{WORDS[k.kind]}: {k.top[0].writer} into {k.top[0].reader} {k.top[0].score:.3f} (median {k.median:.3f}, "
        f"{k.above_random} of {k.pairs} pairs above every random one)"
        for k in found
    ]
    return (
        f"Highest {'; '.join(parts)}. Random matrices: {random.mean:.3f}, at most {random.largest:.3f}. "
        "Shared directions of weights; whether information flows there needs path patching."
    )


def _warnings(info: ModelInfo, arguments: Arguments) -> tuple[str, ...]:
    found = []
    if info.positional == "rotary" and {"q", "k"} & set(arguments.kinds):
        found.append(f"Rotary positions: Q and K hold for keys {arguments.offset} positions before the query.")
    if info.norm != "none":
        found.append("Norm weights are taken into copies of the matrices; the norms' scales cancel in each score.")
    if info.d_mlp:
        found.append("MLPs between the layers are left out: a head may be read through them.")
    return tuple(found)
