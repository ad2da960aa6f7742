"""Read the residual stream of every layer as a prediction: the final norm and the unembedding applied early.

Idea: the residual is the running sum that the last layer turns into logits. Turning it into logits after each layer
shows from which layer on the answer can be read there.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens",
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru; Belrose et al., arXiv 2303.08112 (its bias in middle layers, tuned
lens). Lens of layer l: softcap(W_U norm_final(resid_post_l) + b). Rank 0 is the most likely token.

Does not show: that the model uses what can be read; nor that what cannot be read is absent: early layers may keep it
in another basis, which a trained lens or a probe would find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..causal.lens import WIDE, last_layer_test, lens
from ..errors import BadPrompts
from ..figures import Figure, Heatmap, Lines, Series
from ..measures.metrics import widened
from ..measures.statistics import Clusters, Intervals
from ..model.batches import batches
from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts, encode
from ..result import Estimate, Frozen, Grid, Result, SelfTest, grid
from ..technique import Context, OnPrompts, Positions

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

TITLE = "Logit lens"
QUESTIONS = (
    "At which layer does the answer become readable?",
    "What would the model predict if it stopped at this layer?",
    "How does the prediction build up over layers?",
)


class Arguments(OnPrompts):
    """Arguments of logit_lens."""

    positions: Positions = Field(
        default="all", description="Positions of the shown prompt's table: integers, 'last', roles, token texts, 'all'."
    )
    prompt: int = Field(default=0, ge=0, description="Which prompt the table of top tokens shows.")
    top: int = Field(default=3, ge=1, le=10, description="Tokens listed in each place of the table.")


class LayerReading(Frozen):
    """What can be read of the answer at the last token after one layer."""

    layer: str = Field(description="'embed', then the layer number.")
    probability: Estimate = Field(description="Probability of the answer (set).")
    rank: Estimate = Field(description="Rank of the answer: tokens more likely than it; 0 is the top.")
    logit_diff: Estimate | None = Field(description="Answer minus wrong, in logits; absent without `wrong`.")
    top: tuple[str, ...] = Field(description="Most likely tokens on the shown prompt.")


class LogitLensResult(Result):
    """The answer layer by layer, and a table of top tokens for one prompt."""

    layers: tuple[LayerReading, ...] = Field(description="One per layer, at the last token, over all prompts.")
    readable_from: str | None = Field(description="First layer from which the answer stays on top in most prompts.")
    table: Grid = Field(description="Shown prompt: probability of the top token, layer by position.")
    table_tokens: tuple[str, ...] = Field(description="Row-major top tokens of the table.")
    table_top: tuple[tuple[str, ...], ...] = Field(description="Row-major: the first few tokens of each place.")
    prompt: int = Field(description="Which prompt the table shows.")
    tokens: tuple[str, ...] = Field(description="Its tokens.")
    self_tests: tuple[SelfTest, ...] = Field(description="The last layer's lens is the model's own prediction.")


class Read(NamedTuple):
    """Per layer and prompt, at the last token: [layers, rows]."""

    probability: ndarray
    rank: ndarray
    logit_diff: ndarray | None
    worst: float  # nats: last layer against the model


def run(context: Context, arguments: Arguments) -> LogitLensResult:
    """Read every layer on every prompt at the last token, and all chosen positions of one prompt.

    Raises:
        BadPrompts: no prompts, or no answer.
        BadPosition: a position the shown prompt does not have.
        ParityError: the last layer's lens is not the model's own prediction: the weights are not what they seem.
    """
    if context.prompts is None:
        raise BadPrompts("there are no prompts; give a handle from make_prompts or a list of prompts.")
    prompts = encode(context.prompts, context.model, bos=arguments.bos, need=("answer",))
    if arguments.prompt >= prompts.n:
        raise BadPrompts(f"prompt {arguments.prompt} does not exist: there are {prompts.n} (0 to {prompts.n - 1}).")
    read = _read_all(context, prompts)
    parity = last_layer_test(read.worst, context.model.info)
    table = _table(context.model, prompts.rows([arguments.prompt]), arguments)
    readings = _readings(context.model, prompts, read, table, arguments)
    first = _readable_from(read)
    return LogitLensResult(
        summary=_summary(readings, first, prompts),
        warnings=(*_warnings(context.model), *prompts.warnings),
        layers=readings,
        readable_from=first,
        table=table.grid,
        table_tokens=tuple(t[0] for t in table.top),
        table_top=table.top,
        prompt=arguments.prompt,
        tokens=prompts.clean.strings[arguments.prompt],
        self_tests=(parity,),
    )


def plot(result: LogitLensResult) -> Figure:
    """The answer's probability by layer, and the top token of every place of one prompt."""
    names = tuple(r.layer for r in result.layers)
    lines = Lines(
        title="Answer at the last token", x_title="after layer", x=names, y_title="probability",
        series=(_series("probability of the answer", [r.probability for r in result.layers]),),
    )  # fmt: skip
    differences = [r.logit_diff for r in result.layers if r.logit_diff is not None]
    second = Lines(
        title="Answer minus wrong at the last token", x_title="after layer", x=names, y_title="logits",
        series=(_series("logit difference", differences),), reference=0.0,
    )  # fmt: skip
    table = Heatmap(
        title=f"Top token and its probability, prompt {result.prompt}", grid=result.table, diverging=False,
        text=result.table_tokens, domain=(0.0, 1.0),
    )  # fmt: skip
    n = result.layers[0].probability.n
    return Figure(
        title="Logit lens",
        caption=f"Final norm and unembedding applied after each layer; n={n}. What can be read, not what is used.",
        panels=(lines, second, table) if differences else (lines, table),
    )


def _series(name: str, estimates: list[Estimate]) -> Series:
    return Series(
        name=name,
        values=tuple(e.mean for e in estimates),
        low=None if estimates[0].low is None else tuple(e.low for e in estimates),
        high=None if estimates[0].high is None else tuple(e.high for e in estimates),
    )


def _sites(model: Model) -> list[Site]:
    """What enters block 0, and what leaves each block."""
    return [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(model.info.n_layers))]


def _read_all(context: Context, prompts: EncodedPrompts) -> Read:
    import numpy as np

    model, tokens, sites = context.model, prompts.clean, _sites(context.model)
    assert prompts.answers is not None
    shape = (len(sites), tokens.n_rows)
    probability, rank, difference = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    worst, extra = 0.0, 8 * model.info.d_vocab
    parts = batches(model.info, tokens, sites, context.budget_bytes, extra=extra)
    for done, rows in enumerate(parts):
        context.progress(done, len(parts), "reading every layer")
        batch = prompts.rows(rows)
        run = model.run(batch.clean, read=sites, logits_at=batch.clean.last)
        assert run.logits is not None
        every = range(len(rows))
        for level, site in enumerate(sites):
            logits = lens(model, run.reads[site][list(every), list(batch.clean.last)])
            p, r, d = _answers(logits, batch)
            probability[level, list(rows)], rank[level, list(rows)] = p, r
            difference[level, list(rows)] = 0.0 if d is None else d
            if level == len(sites) - 1:
                own = widened(run.logits).log_softmax(-1)
                worst = max(worst, float((logits.log_softmax(-1) - own).abs().max()))
    return Read(probability, rank, difference if prompts.wrongs else None, worst)


def _answers(logits: Float[Tensor, "B V"], batch: EncodedPrompts) -> tuple[ndarray, ndarray, ndarray | None]:
    """Probability and rank of each row's answer set, and answer minus wrong; a set's rank is its best token's.

    Tokens that tie with it count half each, so that a row of equal logits does not put the answer on top.
    """
    from ..measures.metrics import logit_diff, prob

    assert batch.answers is not None
    best = [row[list(ids)].max() for row, ids in zip(logits, batch.answers, strict=True)]
    ranks = [
        float((row > top).sum()) + (float((row == top).sum()) - 1) / 2 for row, top in zip(logits, best, strict=True)
    ]
    gap = None if batch.wrongs is None else logit_diff(logits, batch.answers, batch.wrongs).cpu().numpy()
    return prob(logits, batch.answers).cpu().numpy(), _array(ranks), gap


def _array(values: list[float]) -> ndarray:
    import numpy as np

    return np.asarray(values)


class Table(NamedTuple):
    """Top tokens of one prompt, layer by position."""

    grid: Grid
    top: tuple[tuple[str, ...], ...]
    last: tuple[tuple[str, ...], ...]  # per layer, at the last token


def _table(model: Model, one: EncodedPrompts, arguments: Arguments) -> Table:
    tokens: Tokens = one.clean
    sites = _sites(model)
    columns = one.columns(arguments.positions)
    reads = model.run(tokens, read=sites).reads
    values: list[float] = []
    top: list[tuple[str, ...]] = []
    last: list[tuple[str, ...]] = []
    wanted = [*(column.positions[0] for column in columns), tokens.last[0]]
    for site in sites:
        found = _top(model, reads[site][0][wanted], arguments.top)
        values.extend(p for p, _ in found[:-1])
        top.extend(strings for _, strings in found[:-1])
        last.append(found[-1][1])
    axes = [("after layer", _names(model)), ("position", [c.label for c in columns])]
    return Table(grid("probability of the top token", "probability", axes, values), tuple(top), tuple(last))


def _top(model: Model, residual: Float[Tensor, "n D"], k: int) -> list[tuple[float, tuple[str, ...]]]:
    """Of each row: the probability of its top token, and its first k tokens."""
    probabilities = lens(model, residual).softmax(-1)
    values, ids = probabilities.topk(min(k, probabilities.shape[-1]))
    strings = model.token_strings(ids.flatten().tolist())
    step = ids.shape[-1]
    return [(p, strings[i * step : (i + 1) * step]) for i, p in enumerate(values[:, 0].tolist())]


def _names(model: Model) -> list[str]:
    return ["embed", *(str(layer) for layer in range(model.info.n_layers))]


def _readings(
    model: Model, prompts: EncodedPrompts, read: Read, table: Table, arguments: Arguments
) -> tuple[LayerReading, ...]:
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    probability, rank = clusters.means(read.probability.T), clusters.means(read.rank.T)
    gap: Intervals | None = None if read.logit_diff is None else clusters.means(read.logit_diff.T)
    return tuple(
        LayerReading(
            layer=name,
            probability=probability.estimate(level),
            rank=rank.estimate(level),
            logit_diff=None if gap is None else gap.estimate(level),
            top=table.last[level],
        )
        for level, name in enumerate(_names(model))
    )


def _readable_from(read: Read) -> str | None:
    """The first layer from which, to the end, the answer is the top token in more than half of the prompts."""
    on_top = (read.rank == 0).mean(1) > 0.5
    level = len(on_top)
    while level and on_top[level - 1]:
        level -= 1
    if level == len(on_top):
        return None
    return "embed" if level == 0 else str(level - 1)


def _warnings(model: Model) -> tuple[str, ...]:
    if model.info.dtype in WIDE:
        return ()
    return (f"In {model.info.dtype} logits are rounded to a few hundredths: close ranks and small gaps are noise.",)


def _summary(readings: tuple[LayerReading, ...], first: str | None, prompts: EncodedPrompts) -> str:
    last, n = readings[-1], prompts.n
    where = (
        f"The answer is the top token in most of {n} prompts from layer {first} on"
        if first is not None
        else f"The answer is the top token in most of {n} prompts at no layer, the last included"
    )
    return (
        f"{where}. Its probability at the last token is {last.probability} after the last layer and "
        f"{readings[len(readings) // 2].probability.mean:.3f} half way. The lens shows from where on the answer can be "
        "read with the last layer's norm and unembedding, not that the model uses it there."
    )
