"""Show what a head writes about a token it attends to: its effect on every logit, through the weights alone.

Idea: where a head puts all its attention on one token, what it adds to the residual is a linear map of that token's
vector; through the unembedding it becomes an effect on each logit. The matrix of all pairs (token read, token raised)
comes from two thin factors; it is searched for its extremes and never written out.

Source: Elhage et al. 2021, https://transformer-circuits.pub/2021/framework ("The OV circuit"; copying by eigenvalues);
Wang et al., arXiv 2211.00593, appendix (copy score: is the token itself among the top 5). effect(a, b) = N(x_a) W_V W_O
F u_b with N the norm before attention, F the linear part of the final norm. copying = sum of eigenvalues / sum of their
magnitudes. Its null: random W_V, W_O of the same shape between the same embeddings.

Does not show: the head's effect in a prompt, whose residual holds more than the token; what later layers make of it;
whether the head attends to such tokens at all. The final norm's scale is left out: a positive factor.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..causal.circuits import VECTORS, TokensAs, embedding_gram, group_name, ov_factors, token_vectors
from ..causal.circuits_checked import check_values, random_ov_cores
from ..causal.low_rank import Entry, Factors, eigenvalues, extremes, own_ranks, positive_share, singular_values
from ..causal.measured import failed
from ..causal.vocabulary import token_choice, token_labels
from ..errors import BadArguments
from ..figures import Figure, Heatmap, Scatter
from ..model.protocol import Model
from ..model.sites import parse_head
from ..result import Frozen, Grid, Result, SelfTest, grid
from ..technique import Arguments as Common
from ..technique import Context

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "OV circuit"
QUESTIONS = (
    "What does this head write when it attends to a token?",
    "Is this a copying head?",
    "Which tokens does a head promote or suppress, by its weights?",
)
UNIT = "logits times the final norm's scale"
DRAWS = 20  # random matrices of the null
SAMPLED = 512  # tokens of the copy score
NEAR = 5  # a token copies itself where its own logit is among so many
SHOWN = 8  # tokens a side, where none are named
CHECKED = 4  # tokens whose values are compared with the model's own
LIMIT = " By the weights alone: in a prompt the residual holds more than the token; check with patching."


class Arguments(Common):
    """Arguments of ov_circuit."""

    head: str = Field(description="The head, written L23H3.")
    tokens: tuple[str | int, ...] | None = Field(
        default=None, max_length=60, description="Tokens attended to, texts or ids; absent: from the extremes."
    )
    output_tokens: tuple[str | int, ...] | None = Field(
        default=None, max_length=60, description="Tokens whose logits are shown, where they differ from `tokens`."
    )
    tokens_as: TokensAs = Field(
        default="embedding", description="Vector of a token: its embedding, or the residual after block 0 of it alone."
    )
    extremes: int = Field(default=10, ge=0, le=100, description="Largest and smallest effects to list; 0: no search.")


class Effect(Frozen):
    """One entry of the OV matrix."""

    source: str = Field(description="Token attended to.")
    output: str = Field(description="Token whose logit changes.")
    effect: float = Field(description="Change of its logit, times the final norm's scale.")


class Copying(Frozen):
    """Whether the head raises the token it reads."""

    score: float = Field(description="Sum of eigenvalues over sum of magnitudes, -1 to 1; 1: copies in all directions.")
    null: tuple[float, ...] = Field(description="The same of random W_V, W_O of equal shape, same embeddings.")
    top5: float = Field(description="Share of sampled tokens whose own logit is among the 5 most raised.")
    top5_chance: float = Field(description="That share for a head that does not care: 5 over the vocabulary.")
    bottom5: float = Field(description="Share of sampled tokens whose own logit is among the 5 most lowered.")
    sampled: int = Field(description="Tokens sampled for the two shares.")


class Eigenvalue(Frozen):
    """One eigenvalue of the OV matrix."""

    real: float = Field(description="Real part; positive: a direction that is written back as it was read.")
    imaginary: float = Field(description="Imaginary part.")


class OVResult(Result):
    """Effects of a head on logits, token by token, by its weights."""

    head: str = Field(description="The head, and the key-value head it reads.")
    vectors: str = Field(description="What stood in place of the residual that is read.")
    table: Grid = Field(description="Effect of attending fully to a token (row) on a logit (column).")
    largest: tuple[Effect, ...] = Field(description="Largest effects over all pairs of tokens.")
    smallest: tuple[Effect, ...] = Field(description="Smallest effects over all pairs of tokens.")
    copying: Copying = Field(description="Does the head raise what it reads?")
    eigenvalues: tuple[Eigenvalue, ...] = Field(description="Of the whole matrix, largest magnitude first.")
    singular_values: tuple[float, ...] = Field(description="The ten largest of the whole matrix.")
    self_tests: tuple[SelfTest, ...] = Field(description="Values against the model's own on the same vectors.")


def run(context: Context, arguments: Arguments) -> OVResult:
    """Effects of all pairs through factors; a table of the chosen ones.

    Raises:
        BadSite: no such head.
        BadArguments: tokens that are none, or nothing to show.
        Unsupported: the weights of this architecture are not known.
    """
    model = context.model
    layer, head = parse_head(arguments.head, model.info.shape)
    chosen = _chosen(model, arguments)
    x = token_vectors(model, None, arguments.tokens_as, layer)
    m = ov_factors(model, layer, head, x)
    high, low = _search(context, arguments, m)
    rows, columns = chosen or (_first(e.row for e in high), _first(e.column for e in high))
    values = eigenvalues(m.core())
    copying = _copying(model, arguments, layer, x, m, values)
    test = check_values(model, layer, head, x[list(rows[:CHECKED])])
    return OVResult(
        summary=_summary(model, arguments, high, low, copying),
        warnings=(*failed([test]), *_warnings(model, arguments)),
        head=group_name(model.info, layer, head),
        vectors=VECTORS[arguments.tokens_as],
        table=_table(model, m, rows, columns),
        largest=_effects(model, high),
        smallest=_effects(model, low),
        copying=copying,
        eigenvalues=tuple(Eigenvalue(real=float(v.real), imaginary=float(v.imag)) for v in values),
        singular_values=tuple(map(float, singular_values(m)[:10])),
        self_tests=(test,),
    )


def plot(result: OVResult) -> Figure:
    """The table, and the eigenvalues in the complex plane."""
    real, imaginary = zip(*((v.real, v.imaginary) for v in result.eigenvalues), strict=True)
    c = result.copying
    return Figure(
        title=f"OV circuit of {result.head}",
        caption=f"Effect of attending fully to a token, {UNIT}; read as {result.vectors}. Copying score {c.score:.2f} "
        f"(random matrices {min(c.null):.2f} to {max(c.null):.2f}).{LIMIT}",
        panels=(
            Heatmap(title="token attended to (row), logit (column)", grid=result.table),
            Scatter(
                title="eigenvalues", x_title="real part", y_title="imaginary part", x=real, y=imaginary,
                labels=tuple(str(i) for i in range(len(real))),
            ),
        ),
        columns=2,
    )  # fmt: skip


def _chosen(model: Model, arguments: Arguments) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Ids of the table's rows and columns, where they are named."""
    if arguments.tokens is None and arguments.output_tokens is None:
        if arguments.extremes == 0:
            raise BadArguments("no tokens are named and extremes is 0: there is nothing to show. Give one of them.")
        return None
    rows = token_choice(model, arguments.tokens or arguments.output_tokens or (), "tokens")
    outputs = arguments.output_tokens
    return rows, token_choice(model, outputs, "output_tokens") if outputs else rows


def _search(context: Context, arguments: Arguments, m: Factors) -> tuple[Sequence[Entry], Sequence[Entry]]:
    if not arguments.extremes:
        return (), ()
    return extremes(m, arguments.extremes, lambda done, total: context.progress(done, total, "source tokens searched"))


def _first(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))[:SHOWN]


def _copying(model: Model, arguments: Arguments, layer: int, x: Tensor, m: Factors, values: ndarray) -> Copying:
    n = m.left.shape[0]
    sample = random.Random(arguments.seed).sample(range(n), min(SAMPLED, n))
    above, near = own_ranks(m, sample), min(NEAR, n)
    below = own_ranks(Factors(-m.left, m.right), sample)
    gram = embedding_gram(model, model.weights.attention_norm(layer), x)
    null = positive_share(eigenvalues(random_ov_cores(model, layer, gram, DRAWS, arguments.seed)))
    return Copying(
        score=float(positive_share(values)), null=tuple(map(float, null)), sampled=len(sample), top5_chance=near / n,
        top5=sum(r < near for r in above) / len(sample), bottom5=sum(r < near for r in below) / len(sample),
    )  # fmt: skip


def _table(model: Model, m: Factors, rows: Sequence[int], columns: Sequence[int]) -> Grid:
    axes = (("token attended to", token_labels(model, rows)), ("logit", token_labels(model, columns)))
    return grid("effect on the logit", UNIT, axes, m.entries(rows, columns).flatten().tolist())


def _effects(model: Model, entries: Sequence[Entry]) -> tuple[Effect, ...]:
    sources = token_labels(model, [e.row for e in entries])
    found = zip(sources, token_labels(model, [e.column for e in entries]), entries, strict=True)
    return tuple(Effect(source=s, output=o, effect=e.value) for s, o, e in found)


def _summary(
    model: Model, arguments: Arguments, high: Sequence[Entry], low: Sequence[Entry], copying: Copying
) -> str:
    parts = []
    if high and high[0].value == 0 and low[0].value == 0:
        parts.append("every effect is 0: what the head writes never reaches the logits directly")
    elif high:
        up, down = _effects(model, [high[0], low[0]])
        parts.append(f"most raised {up.output!r} by {up.source!r} ({up.effect:.3g})")
        parts.append(f"most lowered {down.output!r} by {down.source!r} ({down.effect:.3g})")
    parts.append(
        f"copying score {copying.score:.2f} (random matrices {min(copying.null):.2f} to {max(copying.null):.2f}); the "
        f"token itself among the 5 most raised for {copying.top5:.0%} and the 5 most lowered for {copying.bottom5:.0%} "
        f"of {copying.sampled} tokens"
    )
    return f"{arguments.head}: {'; '.join(parts)}.{LIMIT}"


def _warnings(model: Model, arguments: Arguments) -> tuple[str, ...]:
    info, found = model.info, []
    if info.norm != "none":
        found.append(
            "Norms are applied, not folded: the one before attention takes the token vector for the whole residual, "
            "the final one gives its linear part (weight and centring). Its scale is left out, biases too."
        )
    if info.post_norms:
        found.append("The norm after attention gives its linear part; its scale is left out as well.")
    if model.weights.logit_softcap() is not None:
        found.append("The model caps its logits; effects are on them before the cap.")
    return tuple(found)
