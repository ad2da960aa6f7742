"""Show which tokens a head's queries look for: its scores between tokens, through the weights alone.

Idea: before the softmax a head's score is a product of a query and a key, each a linear map of the residual. Put token
vectors in place of the residual and the scores between all pairs of tokens follow from two thin matrices, without any
prompt. The matrix of all pairs is searched for its extremes and never written out.

Source: Elhage et al. 2021, https://transformer-circuits.pub/2021/framework ("The QK circuit"; "Summarizing OV/QK
matrices" for eigenvalues). score(a, b) = s (R q(x_a)) . k(x_b), q(x) = norm(x) W_Q + b_Q, R the rotation by the offset
(Su et al., arXiv 2104.09864), s the model's scaling. matching = sum of eigenvalues / sum of their magnitudes: positive
where tokens score themselves. Its null: random W_Q, W_K of the same shape between the same vectors.

Does not show: where the head looks in a prompt, whose residual holds more than the token. The norm acts on the token
vector as if it were the whole residual: exact in block 0 of rotary models, an approximation deeper.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..causal.circuits import (
    VECTORS,
    TokensAs,
    group_name,
    position_vectors,
    qk_factors,
    soft_capped,
    token_vectors,
)
from ..causal.circuits_checked import check_scores, random_qk_cores
from ..causal.low_rank import Factors, eigenvalues, extremes, positive_share, singular_values
from ..causal.measured import failed
from ..causal.qk_sides import Place, Sides, place_of, sides_of
from ..causal.vocabulary import token_choice, token_labels
from ..errors import BadArguments
from ..figures import Figure, Heatmap, Lines, Series
from ..model.protocol import Model, ModelInfo
from ..result import Frozen, Grid, Result, SelfTest, grid
from ..technique import Arguments as Common
from ..technique import Context

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "QK circuit"
QUESTIONS = (
    "Which tokens does this head's query look for?",
    "What does a head attend to by its weights, without a prompt?",
    "Does a head match equal tokens, or positions?",
)
DRAWS = 20  # random matrices of the null
SAMPLED = 128  # tokens of the profile over offsets
PROFILE = 32  # offsets of the profile
SHOWN = 8  # tokens a side, where none are named
CHECKED = 4  # pairs compared with the model's own scores
LIMIT = " In a prompt the residual holds more than the token: check with attention_patterns."
Between = Literal["tokens", "positions"]


class Arguments(Common):
    """Arguments of qk_circuit."""

    head: str = Field(description="The head, written L23H3.")
    tokens: tuple[str | int, ...] | None = Field(
        default=None, max_length=60, description="Query (and key) tokens, texts or ids; absent: from the extremes."
    )
    key_tokens: tuple[str | int, ...] | None = Field(
        default=None, max_length=60, description="Key tokens, where they differ from `tokens`."
    )
    between: Between = Field(
        default="tokens", description="tokens, or positions: of learned position embeddings alone."
    )
    offsets: tuple[int, ...] | None = Field(
        default=None, min_length=1, max_length=8,
        description="Rotary models: how many positions the key stands before the query; absent: 1.",
    )  # fmt: skip
    keys_through: str | None = Field(
        default=None, description="An earlier head: keys read what it writes about a token (K-composition)."
    )
    tokens_as: TokensAs = Field(
        default="embedding", description="Vector of a token: its embedding, or the residual after block 0 of it alone."
    )
    extremes: int = Field(default=10, ge=0, le=100, description="Largest and smallest scores to list; 0: no search.")
    positions: int = Field(default=16, ge=2, le=128, description="With between='positions': how many.")


class ScoredPair(Frozen):
    """One entry of the QK matrix."""

    offset: int | None = Field(description="Positions from key to query; absent where the score does not depend on it.")
    query: str = Field(description="Token the head stands at.")
    key: str = Field(description="Token it may look at.")
    score: float = Field(description="Score before the softmax.")


class Matching(Frozen):
    """Whether tokens score themselves, over the whole vocabulary."""

    offset: int | None = Field(description="Positions from key to query.")
    score: float = Field(description="Sum of eigenvalues over sum of magnitudes, -1 to 1; 1: each token seeks itself.")
    null: tuple[float, ...] = Field(description="The same of random W_Q, W_K of equal shape between the same vectors.")


class QKResult(Result):
    """Scores between tokens, or positions, by the weights of a head."""

    head: str = Field(description="The head, and the key-value head it reads.")
    between: Between = Field(description="What stands on the axes.")
    vectors: str = Field(description="What stood in place of the residual on either side.")
    tables: tuple[Grid, ...] = Field(description="Scores before the softmax, query by key; one per offset.")
    largest: tuple[ScoredPair, ...] = Field(description="Largest scores over all pairs of tokens, per offset.")
    smallest: tuple[ScoredPair, ...] = Field(description="Smallest scores over all pairs of tokens, per offset.")
    matching: tuple[Matching, ...] = Field(description="Matching score per offset; empty for positions.")
    profile: Grid | None = Field(
        description="By offset: mean score of a token on itself and on others (of a sample), or of positions."
    )
    singular_values: tuple[float, ...] = Field(description="The ten largest of the whole matrix, first offset.")
    self_tests: tuple[SelfTest, ...] = Field(description="Scores against the model's own on the same vectors.")


def run(context: Context, arguments: Arguments) -> QKResult:
    """Scores of all pairs through factors; a table of the chosen ones.

    Raises:
        Unsupported: queries and keys are normalised, or weights of this architecture are not known.
        BadSite, BadArguments: see `place_of`, `sides_of`, `token_choice`.
    """
    model = context.model
    of_tokens = arguments.between == "tokens"
    place = place_of(model, arguments.head, arguments.offsets, by_rotation=of_tokens)
    chosen = _chosen(model, arguments)
    base, words = _vectors(model, arguments, place)
    sides = sides_of(model, place, base, words, arguments.keys_through, arguments.tokens_as)
    by_offset = {o: qk_factors(model, place.layer, place.head, sides.query, sides.key, o) for o in place.offsets}
    largest, smallest, ids = _search(context, arguments, place, by_offset) if of_tokens else ((), (), None)
    every = tuple(range(arguments.positions))
    chosen = chosen or ids or (every, every)
    first = by_offset[place.offsets[0]]
    tables = tuple(_table(model, arguments, place, o, m, chosen) for o, m in by_offset.items())
    matching = _matching(model, arguments, place, sides, by_offset) if of_tokens else ()
    test = _self_test(model, place, sides, chosen)
    return QKResult(
        summary=_summary(arguments, largest, smallest, matching, tables[0]),
        warnings=(*failed([test]), *_warnings(model.info, arguments)),
        head=group_name(model.info, place.layer, place.head),
        between=arguments.between,
        vectors=sides.words,
        tables=tables,
        largest=largest,
        smallest=smallest,
        matching=matching,
        profile=_profile(model, arguments, place, sides) if of_tokens else _diagonals(tables[0]),
        singular_values=tuple(map(float, singular_values(first)[:10])),
        self_tests=(test,),
    )


def _vectors(model: Model, arguments: Arguments, place: Place) -> tuple[Tensor, str]:
    """What stands for tokens or positions, and what that is in words.

    Raises:
        BadArguments: tokens named beside positions, or a model without position embeddings.
    """
    if arguments.between == "tokens":
        return token_vectors(model, None, arguments.tokens_as, place.layer), VECTORS[arguments.tokens_as]
    if arguments.tokens or arguments.key_tokens:
        raise BadArguments("between='positions' has no tokens on its axes: leave `tokens` and `key_tokens` out.")
    return position_vectors(model, arguments.positions), "position embedding"


def _self_test(model: Model, place: Place, sides: Sides, chosen: tuple[Sequence[int], Sequence[int]]) -> SelfTest:
    """A few pairs of the table in the model itself."""
    n = min(CHECKED, *map(len, chosen))
    query, key = sides.query[list(chosen[0][:n])], sides.key[list(chosen[1][:n])]
    return check_scores(model, place.layer, place.head, query, key, max(1, place.offsets[0]))


def plot(result: QKResult) -> Figure:
    """A table per offset, and the scores over offsets."""
    panels: list[Heatmap | Lines] = [
        Heatmap(title=f"{g.name}: query (row) on key (column)", grid=g) for g in result.tables[:4]
    ]
    if result.profile is not None:
        panels.append(_lines(result.profile))
    return Figure(
        title=f"QK circuit of {result.head}",
        caption=f"Scores before the softmax by the weights alone; {result.vectors}.{LIMIT}",
        panels=tuple(panels),
    )


def _lines(profile: Grid) -> Lines:
    names, offsets = profile.axes[0].labels, profile.axes[1].labels
    n = len(offsets)
    assert profile.values is not None
    series = tuple(Series(name=s, values=profile.values[i * n : (i + 1) * n]) for i, s in enumerate(names))
    return Lines(title=profile.name, x_title="offset", x=offsets, y_title="score", series=series)


def _chosen(model: Model, arguments: Arguments) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Ids of the table's rows and columns, where they are named."""
    if arguments.tokens is None and arguments.key_tokens is None:
        if arguments.between == "tokens" and arguments.extremes == 0:
            raise BadArguments("no tokens are named and extremes is 0: there is nothing to show. Give one of them.")
        return None
    rows = token_choice(model, arguments.tokens or arguments.key_tokens or (), "tokens")
    return rows, token_choice(model, arguments.key_tokens, "key_tokens") if arguments.key_tokens else rows


def _search(
    context: Context, arguments: Arguments, place: Place, by_offset: dict[int, Factors]
) -> tuple[tuple[ScoredPair, ...], tuple[ScoredPair, ...], tuple[tuple[int, ...], tuple[int, ...]] | None]:
    """The extremes at every offset, and the tokens of the first one's largest for the table."""
    if not arguments.extremes:
        return (), (), None
    largest: list[ScoredPair] = []
    smallest: list[ScoredPair] = []
    shown: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    for i, (offset, m) in enumerate(by_offset.items()):
        n, step = len(by_offset), m.left.shape[0]
        high, low = extremes(
            m, arguments.extremes,
            lambda done, _, i=i, n=n, step=step: context.progress(i * step + done, n * step, "query tokens searched"),
        )  # fmt: skip
        for entries, found in ((high, largest), (low, smallest)):
            queries = token_labels(context.model, [e.row for e in entries])
            keys = token_labels(context.model, [e.column for e in entries])
            found += [
                ScoredPair(offset=place.shown(offset), query=q, key=k, score=place.capped(e.value))
                for q, k, e in zip(queries, keys, entries, strict=True)
            ]
        rows = tuple(dict.fromkeys(e.row for e in high))[:SHOWN]
        shown = shown or (rows, tuple(dict.fromkeys(e.column for e in high))[:SHOWN])
    return tuple(largest), tuple(smallest), shown


def _table(
    model: Model, arguments: Arguments, place: Place, offset: int, m: Factors,
    chosen: tuple[tuple[int, ...], tuple[int, ...]],
) -> Grid:  # fmt: skip
    rows, columns = chosen
    found = soft_capped(m.entries(rows, columns), place.cap).tolist()
    if arguments.between == "positions":
        labels = tuple(map(str, rows))
        values = [v if k <= q else None for q, row in enumerate(found) for k, v in enumerate(row)]
        return grid("scores between positions", "score", (("query position", labels), ("key position", labels)), values)
    axes = (("query", token_labels(model, rows)), ("key", token_labels(model, columns)))
    name = f"scores at offset {offset}" if place.rotary else "scores"
    return grid(name, "score", axes, [v for row in found for v in row])


def _matching(
    model: Model, arguments: Arguments, place: Place, sides: Sides, by_offset: dict[int, Factors]
) -> tuple[Matching, ...]:
    cores = random_qk_cores(model, place.layer, sides.query, sides.key, DRAWS, arguments.seed)
    null = positive_share(eigenvalues(cores))
    return tuple(
        Matching(
            offset=place.shown(o), score=float(positive_share(eigenvalues(m.core()))), null=tuple(map(float, null))
        )
        for o, m in by_offset.items()
    )


def _profile(model: Model, arguments: Arguments, place: Place, sides: Sides) -> Grid | None:
    """Mean score of sampled tokens on themselves and on each other, by offset; rotary models alone."""
    if not place.rotary:
        return None
    n = sides.query.shape[0]
    sample = random.Random(arguments.seed).sample(range(n), min(SAMPLED, n))
    window = model.weights.attention_rule(place.layer).window
    offsets = range(min(PROFILE + 1, model.info.n_ctx, window or PROFILE + 1))
    itself: list[float] = []
    others: list[float] = []
    for offset in offsets:
        factors = qk_factors(model, place.layer, place.head, sides.query[sample], sides.key[sample], offset)
        m = soft_capped(factors.entries(range(len(sample)), range(len(sample))), place.cap)
        own = m.diagonal()
        itself.append(float(own.mean()))
        others.append(float((m.sum() - own.sum()) / max(1, m.numel() - own.numel())))
    axes = (("keys", ("the same token", "other tokens")), ("offset", tuple(map(str, offsets))))
    return grid(f"mean score of {len(sample)} random tokens", "score", axes, [*itself, *others])


def _diagonals(table: Grid) -> Grid:
    """Mean score by distance between positions."""
    n = table.shape[0]
    means = []
    for offset in range(n):
        found = [v for q in range(offset, n) if (v := table.at(q, q - offset)) is not None]
        means.append(sum(found) / len(found))
    return grid("mean score by distance", "score", (("keys", ("positions",)), ("offset", range(n))), means)


def _summary(
    arguments: Arguments, largest: Sequence[ScoredPair], smallest: Sequence[ScoredPair],
    matching: Sequence[Matching], table: Grid,
) -> str:  # fmt: skip
    what = f"{arguments.head}, by its weights alone: "
    if arguments.between == "positions":
        (cell,) = table.top(1, by="value")
        at = " on ".join(cell.labels)
        return f"{what}largest score {cell.value:.3g}, query position on key position {at}." + LIMIT
    parts = []
    if largest and largest[0].score == 0 and smallest[0].score == 0:
        parts.append("every score is 0: the head does not read these vectors")
    elif largest:
        parts.append(f"largest score {largest[0].score:.3g}, {largest[0].query!r} on {largest[0].key!r}")
    for m in matching[:1]:
        at = "" if m.offset is None else f" at offset {m.offset}"
        parts.append(
            f"matching score{at} {m.score:.2f} (random matrices {min(m.null):.2f} to {max(m.null):.2f}; 1: tokens "
            "look for themselves)"
        )
    return what + "; ".join(parts) + "." + LIMIT


def _warnings(info: ModelInfo, arguments: Arguments) -> tuple[str, ...]:
    found = []
    if info.positional == "rotary":
        found.append("Rotary positions: scores hold at the stated offset alone; see the profile over offsets.")
    if info.positional == "learned" and arguments.between == "tokens":
        found.append("Positions are learned vectors in the residual; they are left out. See between='positions'.")
    if info.norm != "none":
        found.append(
            "The norm before attention acts on these vectors as if they were the whole residual; in a prompt its scale "
            "is another, and so is the size of the scores."
        )
    if arguments.keys_through is not None and info.norm != "none":
        found.append("Keys through a head are normed alone: compare them with each other, not with direct scores.")
    return tuple(found)
