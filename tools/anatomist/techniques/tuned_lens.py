"""Train an affine map for each layer so that the lens reads what the model will say; compare with the logit lens.

Idea: early and middle layers keep things in another basis than the last one, so the logit lens misreads them. A tuned
lens first moves each residual by a map trained on plain text; what it reads is what could be known at that layer.

Source: Belrose et al., arXiv 2303.08112. Lens of layer l: softcap(W_U norm_final(h_l A_l + b_l)); A_l, b_l minimise the
mean KL(model's prediction || lens) over text, from the identity (equation 8 and section 3). The logit lens is A = I.

Does not show: that the model uses what can be read; nor where it is computed. A trained map can add what the layer does
not hold (word statistics of the training text), which the embedding's own row of the table measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..causal.lens import last_layer_test, lens
from ..causal.sampled_text import Sample, sample_text
from ..causal.tables import Quantities, quantities
from ..causal.tuned import Map, Reading, Recipe, groups_of, read_places, readings, train
from ..causal.tuned_kept import EMBED, Keeper, earlier_maps, level_of
from ..causal.units import chosen_layers
from ..errors import BadArguments, BadPrompts
from ..figures import Figure, Lines, Series
from ..measures.metrics import widened
from ..measures.statistics import Clusters, Intervals
from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import Tokens
from ..prompts.prompt_set import Text
from ..result import Frozen, Result, SelfTest
from ..technique import Context, Layers, OnText

if TYPE_CHECKING:
    from jaxtyping import Int
    from numpy import ndarray
    from torch import Tensor

TITLE = "Tuned lens"
QUESTIONS = (
    "What could be predicted from each layer, when the logit lens shows nothing?",
    "How early does the model know what it will say?",
    "Train per-layer affine maps to the final prediction",
)
HELD_OUT = 0.2  # share of the documents that maps are tested on
CHECK = 128  # training tokens kept back to choose when to stop
A_ROW = 16  # tested tokens of one held-out row: many rows give better intervals than many tokens of few
SEEDS = 3
FAR = 2  # times the largest layer: an embedding further off is not drawn
LOGIT, TUNED, GAIN = "logit lens", "tuned lens", "gain"


class Arguments(OnText):
    """Arguments of tuned_lens."""

    layers: Layers = None
    n_tokens: int = Field(default=8192, ge=64, le=10_000_000, description="Tokens of text to train on.")
    width: int = Field(default=64, ge=4, le=8192, description="Tokens a row of text.")
    test_tokens: int = Field(default=512, ge=32, le=1_000_000, description="Held-out tokens to test on.")
    steps: int = Field(default=40, ge=1, le=100_000, description="Training steps.")
    batch: int = Field(default=64, ge=4, le=65_536, description="Tokens a step.")
    rate: float = Field(default=0.2, gt=0, le=10, description="Adam's first rate, in spreads of the layer's residual.")
    seeds: int = Field(default=1, ge=1, le=5, description="Trainings on other batches; the first one's maps are kept.")
    maps: str | None = Field(default=None, description="Run id of an earlier tuned_lens: use its maps, train none.")
    prompt: Text | None = Field(default=None, description="A prompt to read at its last token by both lenses.")
    top: int = Field(default=3, ge=1, le=10, description="Tokens listed for the prompt at each layer.")


class LayerTop(Frozen):
    """What both lenses read of the prompt after one layer, most likely first."""

    layer: str = Field(description="'embed', then the layer number.")
    logit_lens: tuple[str, ...] = Field(description="By the logit lens.")
    tuned_lens: tuple[str, ...] = Field(description="By the tuned lens.")


class TunedLensResult(Result):
    """Both lenses on held-out text, layer by layer."""

    kl: Quantities = Field(
        description="KL(model || lens) in nats per token, by layer: logit lens, tuned lens, gain (logit minus tuned)."
    )
    bits: Quantities = Field(description="Bits per token of the text that follows, by layer, for both lenses.")
    model_bits: float = Field(description="Bits per token by the model itself.")
    seeds: Quantities | None = Field(description="Tuned lens, KL: lowest and highest seed; absent for one seed.")
    better: int = Field(description="Layers where the interval of the gain is above 0.")
    worse: int = Field(description="Layers where the interval of the gain is below 0.")
    prompt: tuple[LayerTop, ...] = Field(description="The prompt by layer; empty without one.")
    text: str = Field(description="What was trained and tested on.")
    maps: str | None = Field(description="Run whose maps were used; absent where they were trained here.")
    self_tests: tuple[SelfTest, ...] = Field(description="The last layer's lens is the model's own prediction.")


class Found(NamedTuple):
    """One level on the test tokens."""

    logit_kl: ndarray  # [n]
    tuned_kl: ndarray  # [seeds, n]
    logit_bits: ndarray  # [n]
    tuned_bits: ndarray  # [n], first seed
    top: tuple[tuple[str, ...], tuple[str, ...]]  # of the prompt, by either lens


class Work(NamedTuple):
    """What every group of layers is trained and tested on."""

    context: Context
    arguments: Arguments
    fit: Sample | None  # None: maps are an earlier run's
    test: Sample
    prompt: Tokens | None
    last: Site


def run(context: Context, arguments: Arguments) -> TunedLensResult:
    """Train a map for each layer (or take an earlier run's), and test both lenses on documents kept back.

    Layers are taken in groups that fit in the memory budget; the text is read once for each group.

    Raises:
        BadPrompts: no text, or too little of it for rows to train and to test on.
        BadArguments, BadSite: the layers, or maps of an earlier run that do not fit this model.
        WouldNotFit: one layer's map is over the budget.
        ParityError: the last layer's lens is not the model's own prediction.
        Cancelled: between steps.
    """
    work, names, sites = _prepared(context, arguments)
    earlier = _earlier(context, arguments, sites)
    worst = _last_layer(context.model, work.test)
    keep = Keeper(sites, context.model.info.d_model, None if earlier else context.stream)
    found: list[Found] = []
    groups = [sites] if earlier else _groups(work, sites)
    for number, group in enumerate(groups):
        found += _group(work, group, earlier, keep, (number, len(groups)))
    if earlier is None:
        for name, tensor, axes, unit in keep.close():
            context.keep(name, tensor, axes=axes, unit=unit)
    kl, bits, spread = _tables(found, [*names, str(context.model.info.n_layers - 1)], work)
    result = TunedLensResult(
        summary="",
        warnings=_warnings(work, kl),
        kl=kl,
        bits=bits,
        model_bits=float(found[-1].logit_bits.mean()),
        seeds=spread,
        better=_count(kl, above=True),
        worse=_count(kl, above=False),
        prompt=_prompt(work, kl.layers, found),
        text=_text(work),
        maps=arguments.maps,
        self_tests=(worst,),
    )
    return result.model_copy(update={"summary": _summary(result)})


def plot(result: TunedLensResult) -> Figure:
    """Both lenses by layer: distance from the model's prediction, and bits of the text that follows."""
    kl, bits = result.kl, result.bits
    first = Lines(
        title="Distance from the model's own prediction", x_title="after layer", x=kl.layers,
        y_title="KL, nats per token", series=(_drawn(kl), kl.series(TUNED)),
    )  # fmt: skip
    second = Lines(
        title="Surprise at the text that follows; dashed: the model", x_title="after layer", x=bits.layers,
        y_title="bits per token", series=(_drawn(bits), bits.series(TUNED)), reference=result.model_bits,
    )  # fmt: skip
    left_out = "" if first.series[0].values[0] is not None else " The embedding's logit lens is off the scale."
    caption = f"{result.text}. What can be read, not what is used.{left_out}"
    return Figure(title="Tuned lens", caption=caption, panels=(first, second))


def _drawn(table: Quantities) -> Series:
    """The logit lens without the embedding where that is far above all layers, which it would press flat."""
    whole = table.series(LOGIT)
    first, rest = whole.values[0], [v for v in whole.values[1:] if v is not None]
    if table.layers[0] != EMBED or first is None or first <= FAR * max(rest):
        return whole
    ends = {side: (None, *values[1:]) for side in ("low", "high") if (values := getattr(whole, side)) is not None}
    return whole.model_copy(update={"values": (None, *whole.values[1:]), **ends})


def _prepared(context: Context, arguments: Arguments) -> tuple[Work, list[str], list[Site]]:
    """What is worked on; the trained levels' names and places (all but the last layer)."""
    model, info = context.model, context.model.info
    if context.text is None:
        raise BadPrompts("there is no text; name one ('python', a file) or give texts.")
    held_out, rest = context.text.split(HELD_OUT, arguments.seed)
    test = sample_text(model, held_out, arguments.width, arguments.test_tokens, A_ROW, arguments.seed, arguments.bos)
    fit = None
    if arguments.maps is None:
        a_row = arguments.width
        fit = sample_text(model, rest, arguments.width, arguments.n_tokens, a_row, arguments.seed, arguments.bos)
    layers = [layer for layer in chosen_layers(arguments.layers, info.shape) if layer < info.n_layers - 1]
    first = [Site("resid_pre", 0)] if arguments.layers is None else []
    sites = [*first, *(Site("resid_post", layer) for layer in layers)]
    if not sites:
        raise BadArguments("only the last layer was named: its lens is the model's own; name earlier ones.")
    prompt = None if arguments.prompt is None else model.tokenize([arguments.prompt], bos=arguments.bos)
    work = Work(context, arguments, fit, test, prompt, Site("resid_post", info.n_layers - 1))
    return work, [level_of(site) for site in sites], sites


def _earlier(context: Context, arguments: Arguments, sites: Sequence[Site]) -> dict[Site, Map] | None:
    """An earlier run's maps, where they are asked for."""
    if arguments.maps is None:
        return None
    if context.saved is None:
        raise BadArguments(f"maps={arguments.maps!r}: runs are kept by a host; call this technique through one.")
    arrays = [context.saved(arguments.maps, name).tensor for name in ("maps", "bias", "levels")]
    return earlier_maps(arguments.maps, arrays, sites, widened(context.model.weights.embed()[:1]))


def _groups(work: Work, sites: Sequence[Site]) -> list[list[Site]]:
    assert work.fit is not None
    a = work.arguments
    return groups_of(work.context.model.info, sites, work.fit.n, a.batch, work.context.budget_bytes)


def _group(
    work: Work, group: Sequence[Site], earlier: Mapping[Site, Map] | None, keep: Keeper, place: tuple[int, int]
) -> list[Found]:
    """Train and test some levels together; the last group ends with the last layer."""
    wanted, arguments, model = [*group, work.last], work.arguments, work.context.model
    tested = _read(work, work.test, wanted)
    trainings: list[list[Map]] = [[earlier[site] for site in group]] if earlier else []
    if work.fit is not None:
        x = _read(work, work.fit, wanted)
        check = _check_part(work.fit, x[work.last])
        for number in range(arguments.seeds):
            recipe = Recipe(arguments.steps, arguments.batch, arguments.rate, arguments.seed + number)
            tick = _ticker(work, place, number)
            trainings.append(train(model, [x[s] for s in group], x[work.last], check, recipe, tick))
    if earlier is None:
        keep.add(trainings[0])
    levels = [(tested[site], own) for i, site in enumerate(group) for own in (None, *(m[i] for m in trainings))]
    ends = [work.last] * (place[0] == place[1] - 1)  # the last layer, whose map is the identity
    after = tested[work.last].new_zeros(()).long().new_tensor(work.test.following)
    read = readings(model, [*levels, *((tested[s], None) for s in ends)], tested[work.last], after, arguments.batch)
    said = None if work.prompt is None else model.run(work.prompt, read=wanted).reads
    a_level = 1 + len(trainings)
    found = [
        _found(read[i * a_level : (i + 1) * a_level], _tops(work, said, site, trainings[0][i]))
        for i, site in enumerate(group)
    ]
    return [*found, *(_found([read[-1]] * 2, _tops(work, said, site, None)) for site in ends)]


def _ticker(work: Work, place: tuple[int, int], seed: int) -> Callable[[int], None]:
    steps, seeds = work.arguments.steps, work.arguments.seeds
    total, done = place[1] * seeds * steps, (place[0] * seeds + seed) * steps

    def tick(steps_done: int) -> None:
        nonlocal done
        done += steps_done
        work.context.progress(done, total, "training maps")

    return tick


def _read(work: Work, sample: Sample, sites: Sequence[Site]) -> dict[Site, Tensor]:
    def tick(rows_read: int) -> None:
        work.context.progress(0, 1, f"reading {sample.tokens.n_rows} rows of text")

    model, budget = work.context.model, work.context.budget_bytes // 4
    return read_places(model, sample.tokens, sites, sample.positions, budget, tick)


def _check_part(fit: Sample, like: Tensor) -> Int[Tensor, " m"]:
    """Tokens of whole rows that choose when to stop: a sixteenth, at most `CHECK`."""
    most, index, at = min(CHECK, max(1, fit.n // 16)), [], 0
    for places in fit.positions:
        if len(index) < most:
            index += range(at, at + len(places))
        at += len(places)
    return like.new_zeros(()).long().new_tensor(index[: fit.n // 2])


def _found(read: Sequence[Reading], top: tuple[tuple[str, ...], tuple[str, ...]]) -> Found:
    """The logit lens of a level, then every training's."""
    import numpy as np

    plain, *tuned = read
    return Found(
        logit_kl=_numpy(plain.kl),
        tuned_kl=np.stack([_numpy(one.kl) for one in tuned]),
        logit_bits=_numpy(plain.bits),
        tuned_bits=_numpy(tuned[0].bits),
        top=top,
    )


def _tops(
    work: Work, read: Mapping[Site, Tensor] | None, site: Site, own: Map | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What both lenses say of the prompt."""
    if read is None:
        return (), ()
    x = read[site][0, -1:]
    return _top(work, x), _top(work, x if own is None else own(x))


def _top(work: Work, residual: Tensor) -> tuple[str, ...]:
    ids = lens(work.context.model, residual)[0].topk(work.arguments.top).indices.tolist()
    return work.context.model.token_strings(ids)


def _last_layer(model: Model, test: Sample) -> SelfTest:
    """The last layer's lens against the model's own prediction, on a few rows."""
    some = test.tokens.rows(range(min(4, test.tokens.n_rows)))
    site = Site("resid_post", model.info.n_layers - 1)
    ran = model.run(some, read=[site], logits_at=some.last)
    assert ran.logits is not None
    gap = lens(model, ran.reads[site][:, -1]).log_softmax(-1) - widened(ran.logits).log_softmax(-1)
    return last_layer_test(float(gap.abs().max()), model.info)


def _tables(
    found: Sequence[Found], names: Sequence[str], work: Work
) -> tuple[Quantities, Quantities, Quantities | None]:
    import numpy as np

    clusters = Clusters(work.test.clusters, seed=work.arguments.seed)
    logit, tuned = (np.stack(x, axis=1) for x in ([f.logit_kl for f in found], [f.tuned_kl[0] for f in found]))
    kl = {LOGIT: clusters.means(logit), TUNED: clusters.means(tuned), GAIN: clusters.means(logit - tuned)}
    bits = {
        LOGIT: clusters.means(np.stack([f.logit_bits for f in found], axis=1)),
        TUNED: clusters.means(np.stack([f.tuned_bits for f in found], axis=1)),
    }
    spread = None
    if work.fit is not None and work.arguments.seeds > 1:
        each = [f.tuned_kl.mean(1) for f in found]
        ends = {"lowest seed": np.array([e.min() for e in each]), "highest seed": np.array([e.max() for e in each])}
        alone = {name: Intervals(v, None, None, clusters.n, clusters.count, clusters.level) for name, v in ends.items()}
        spread = quantities("KL(model || tuned lens) over seeds", "nats", names, alone)
    return quantities("KL(model || lens)", "nats", names, kl), quantities("surprise", "bits", names, bits), spread


def _count(kl: Quantities, *, above: bool) -> int:
    ends = kl.column(GAIN, "low" if above else "high") or ()  # of intervals that lie on one side of 0
    return sum(end is not None and (end > 0 if above else end < 0) for end in ends)


def _prompt(work: Work, names: Sequence[str], found: Sequence[Found]) -> tuple[LayerTop, ...]:
    if work.prompt is None:
        return ()
    return tuple(LayerTop(layer=n, logit_lens=f.top[0], tuned_lens=f.top[1]) for n, f in zip(names, found, strict=True))


def _text(work: Work) -> str:
    a, text = work.arguments, work.context.text
    assert text is not None
    how = f"maps of run {a.maps}"
    if work.fit is not None:
        how = f"trained on {work.fit.n} tokens of {text.name!r}, {a.steps} steps of {a.batch} tokens"
    return f"{how}; tested on {work.test.n} tokens in {work.test.tokens.n_rows} rows of documents kept back"


def _warnings(work: Work, kl: Quantities) -> tuple[str, ...]:
    found, a = [], work.arguments
    if work.fit is not None and work.fit.n < 4 * work.context.model.info.d_model:
        found.append(
            f"{work.fit.n} training tokens for maps of width {work.context.model.info.d_model}: they learn the text by "
            "heart. Give more tokens (n_tokens)."
        )
    if work.fit is not None and a.seeds < SEEDS:
        found.append(f"{a.seeds} training(s): how far the maps depend on the batches is not known. Pass seeds={SEEDS}.")
    if a.maps is not None:
        found.append("The text must be the one that the maps were trained on, with the same seed, or text new to them.")
    low, high = kl.column(GAIN, "low") or (), kl.column(GAIN, "high") or ()
    worse = [name for name, end in zip(kl.layers, high, strict=True) if end is not None and end < 0]
    unsure = [
        name for name, a_low, b in zip(kl.layers[:-1], low, high, strict=False)
        if a_low is not None and b is not None and a_low <= 0 <= b
    ]  # fmt: skip
    if worse:
        found.append(f"The tuned lens is worse than the logit lens at layers {', '.join(worse)}: give it more text.")
    if unsure:
        found.append(f"No clear difference between the lenses at layers {', '.join(unsure)}.")
    return tuple(found)


def _summary(result: TunedLensResult) -> str:
    layers, by_layer = result.kl.layers, list(zip(*(result.kl.column(n) or () for n in (LOGIT, TUNED)), strict=True))
    shown = sorted({len(layers) // 2, len(layers) - 2})  # half way, and before the last
    figures = [f"layer {layers[i]} {by_layer[i][0]:.2f} and {by_layer[i][1]:.2f} nats" for i in shown]
    floor = ""
    if layers[0] == EMBED:
        floor = f" A map of the embedding alone comes to {by_layer[0][1]:.2f}: what is below that, the layers add."
    return (
        f"On held-out text the tuned lens is better at {result.better} of {len(layers) - 1} levels before the last "
        f"(worse at {result.worse}). KL from the model's prediction, logit and tuned lens: "
        f"{', '.join(figures)}.{floor} A lens shows what can be read, not what is used."
    )


def _numpy(x: Tensor) -> ndarray:
    return x.double().cpu().numpy()
