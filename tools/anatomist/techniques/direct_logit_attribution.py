"""Split the logit difference into what each component writes to it directly.

Idea: the final residual is a sum of all that was written to it. With the final norm's scale held at its value, the
logit difference is a sum too: one term for each head, MLP, embedding and bias.

Source: Elhage et al. 2021, https://transformer-circuits.pub/2021/framework (logits as a sum over paths); Wang et al.,
arXiv 2211.00593, section 3.1 (the logit difference as a direction); equations in `causal/direct_effects.py`.

Does not show: what a component does through later layers. A head that feeds another has no direct effect and may be
all-important; a head with a large one may be cancelled or replaced when it is taken out (McGrath et al., arXiv
2307.15771). A frozen scale leaves out that removing a part would change the norm. Patch or ablate for causes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..causal.direct_effects import Effects, direct_effects, sites_read
from ..causal.units import chosen_layers
from ..errors import BadArguments, BadPrompts, ParityError, UnknownName, WouldNotFit
from ..figures import Bars, Figure, Heatmap
from ..measures.statistics import Clusters
from ..model.batches import batches
from ..model.protocol import ModelInfo
from ..model.sites import head_name
from ..prompts.encoding import EncodedPrompts, Ids, encode
from ..result import Estimate, Frozen, Grid, Result, SelfTest, grid
from ..technique import Context, Layers, OnPrompts

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "Direct logit attribution"
QUESTIONS = (
    "Which heads and MLPs write the answer?",
    "What does L9H6 contribute to the logit difference?",
    "How is the logit difference made up?",
)
TOLERANCE = 1e-3  # of the larger of the logit difference and its largest term
HALF_TOLERANCE = 5e-2  # residuals in half precision are rounded every time something is added
WIDE = frozenset({"float32", "float64"})


class Arguments(OnPrompts):
    """Arguments of direct_logit_attribution."""

    top: int = Field(default=10, ge=1, le=50, description="How many components are listed, largest first.")
    neurons: int = Field(
        default=0, ge=0, le=50, description="Neurons told apart in each of `neuron_layers`, largest first; 0: none."
    )
    neuron_layers: Layers = Field(default=None, description="Layers whose neurons are told apart; absent: all.")


class ComponentEffect(Frozen):
    """One term of the logit difference."""

    name: str = Field(description="L9H6, blocks.3.mlp_out, L3N17, embed, position_embed, or a bias.")
    part_of: str | None = Field(description="The site it is a part of; absent for those that make up the total.")
    effect: Estimate = Field(description="Mean direct effect, logits; positive favours the answer.")


class DirectLogitAttributionResult(Result):
    """The logit difference and its terms."""

    total: Estimate = Field(description="Mean logit difference, answer minus wrong, before any soft-cap: the sum.")
    after_cap: Estimate | None = Field(description="The same after the model's soft-cap; absent where it has none.")
    top: tuple[ComponentEffect, ...] = Field(description="Largest terms by magnitude; attention by head, no overlaps.")
    by_kind: dict[str, Estimate] = Field(description="Sums over all heads, MLPs, embeddings and biases (of any site).")
    heads: Grid = Field(description="Mean direct effect, layer by head, logits.")
    by_layer: Grid = Field(description="Mean direct effect of attn_out and mlp_out (biases included), logits.")
    all_components: tuple[ComponentEffect, ...] = Field(
        description="Every term in the order computed; those without part_of add up to the total."
    )
    tokens: tuple[str, ...] = Field(description="Tokens of the first prompt; its last one is read.")
    self_tests: tuple[SelfTest, ...] = Field(description="Identities checked on every prompt of this run.")

    def joint_of(self, components: Sequence[str]) -> Estimate:
        """Mean direct effect of several components together: heads (L9H6), sites (blocks.3.mlp_out) or any term.

        The mean is exact. The interval adds the parts' ends, which is at least as wide as the joint one would be
        where the parts' intervals are right: it is safe and not tight.

        Raises:
            BadArguments: none, one named twice, or one that is a part of another one named.
            UnknownName: no such component.
        """
        found = {c.name: c for c in self.all_components}
        if not components or len(set(components)) < len(components):
            raise BadArguments(f"components {list(components)}: name at least one, each once.")
        for name in components:
            if name not in found:
                raise UnknownName.of("component", name, found, "Heads are written L9H6, MLPs blocks.3.mlp_out.")
            if found[name].part_of in components:
                raise BadArguments(f"{name} is a part of {found[name].part_of}: name one of the two.")
        return _added([found[name].effect for name in components])


class Terms(NamedTuple):
    """Names of all terms, and their values by prompt."""

    names: list[tuple[str, str | None]]  # name, the site it is a part of
    values: Tensor  # [prompts, terms]


def run(context: Context, arguments: Arguments) -> DirectLogitAttributionResult:
    """Read every component at the last token of the clean prompts and split the logit difference.

    Raises:
        BadPrompts: no prompts, an answer or a wrong token is absent, or one is a set.
        BadArguments, BadSite: neurons of a layer or model that has none.
        ParityError: the terms do not add up to the model's own logit difference.
        WouldNotFit: one prompt alone, or the neurons of all prompts, are over the memory budget.
    """
    prompts = _prompts(context, arguments)
    info = context.model.info
    layers = _neuron_layers(arguments, info, prompts.n, context.budget_bytes)
    effects = _effects(context, prompts, layers)
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    terms = _named(effects, arguments.neurons)
    tests = _self_tests(effects, HALF_TOLERANCE if info.dtype not in WIDE else TOLERANCE)
    context.keep("terms", terms.values, axes=("prompt", "component"), unit="logits")
    components = _components(terms, clusters)
    total = clusters.means(_numbers(effects.logit_diff)).estimate()
    capped = context.model.weights.logit_softcap() is not None
    kinds = _by_kind(terms, clusters)
    top = _top(components, arguments.top)
    return DirectLogitAttributionResult(
        summary=_summary(total, top, kinds, prompts.n),
        warnings=(*_warnings(info, capped, clusters.count), *prompts.warnings),
        total=total,
        after_cap=clusters.means(_numbers(effects.capped)).estimate() if capped else None,
        top=top,
        by_kind=kinds,
        heads=_head_grid(effects),
        by_layer=_layer_grid(effects, info),
        all_components=components,
        tokens=prompts.clean.strings[0],
        self_tests=tests,
    )


def plot(result: DirectLogitAttributionResult) -> Figure:
    """The largest terms with their intervals, and every head by layer."""
    effects = [c.effect for c in result.top]
    bars = Bars(
        title=f"Largest {len(effects)} terms", value_title="direct effect (logits)",
        labels=tuple(c.name for c in result.top), values=tuple(e.mean for e in effects),
        low=tuple(e.low for e in effects), high=tuple(e.high for e in effects),
        groups=tuple(kind_of(c.name) for c in result.top), reference=0.0,
    )  # fmt: skip
    return Figure(
        title="Direct logit attribution",
        caption=f"Terms of the logit difference {result.total} at the last token, final norm frozen, mean over prompts. "
        "What a component writes itself, not what it does through later layers.",
        panels=(bars, Heatmap(title="Heads: direct effect (logits)", grid=result.heads)),
    )


def kind_of(name: str) -> str:
    """heads, MLPs, embeddings or biases."""
    if name.endswith("bias"):
        return "biases"
    if name in ("embed", "position_embed"):
        return "embeddings"
    return "heads" if "attn_out" in name or "H" in name else "MLPs"


def _prompts(context: Context, arguments: Arguments) -> EncodedPrompts:
    if context.prompts is None:
        raise BadPrompts("there are no prompts; give a handle from make_prompts or a list of prompts.")
    prompts = encode(context.prompts, context.model, bos=arguments.bos, need=("answer", "wrong"))
    for part, sets in (("answer", prompts.answers), ("wrong", prompts.wrongs)):
        several = [row for row, ids in enumerate(sets or ()) if len(ids) > 1]
        if several:
            raise BadPrompts(
                f"the `{part}` of {len(several)} of {prompts.n} prompts is a set (first: prompt {several[0]}); the log "
                "of a sum of exponentials does not split into terms. Give one token each, or use patch_activations."
            )
    return prompts


def _neuron_layers(arguments: Arguments, info: ModelInfo, n: int, budget: int) -> tuple[int, ...]:
    if not arguments.neurons:
        if arguments.neuron_layers is not None:
            raise BadArguments("neuron_layers was given but neurons is 0: say how many neurons to tell apart.")
        return ()
    if "neuron" not in info.sites:
        raise BadArguments(f"{info.name} has no neurons; leave `neurons` at 0.")
    layers = chosen_layers(arguments.neuron_layers, info.shape)
    held = 8 * n * info.d_mlp * len(layers)
    if held > budget / 2:
        raise WouldNotFit(
            f"the neurons of {len(layers)} layers on {n} prompts take {held / 2**20:,.0f} MiB; "
            f"{budget / 2**21:,.0f} MiB may be used. Name fewer neuron_layers, or use fewer prompts."
        )
    return layers


def _effects(context: Context, prompts: EncodedPrompts, layers: tuple[int, ...]) -> Effects:
    """All prompts, some at a time, put together again in their order."""
    answers, wrongs = _single(prompts.answers), _single(prompts.wrongs)
    model, tokens = context.model, prompts.clean
    parts = batches(model.info, tokens, sites_read(model, layers), context.budget_bytes)
    whole: Effects | None = None
    done = 0
    for rows in parts:
        context.progress(done, tokens.n_rows, "prompts attributed")
        pick = [[ids[row] for row in rows] for ids in (answers, wrongs)]
        found = direct_effects(model, tokens.rows(rows), *pick, neuron_layers=layers)
        whole = whole or found.spread(tokens.n_rows)
        whole.fill(rows, found)
        done += len(rows)
    context.progress(done, tokens.n_rows, "prompts attributed")
    assert whole is not None
    return whole


def _single(sets: Ids | None) -> list[int]:
    assert sets is not None
    return [ids[0] for ids in sets]


def _named(effects: Effects, shown: int) -> Terms:
    """Every term in order: a site, then its parts."""
    names: list[tuple[str, str | None]] = []
    columns: list[Tensor] = []

    def add(name: str, part_of: str | None, column: Tensor) -> None:
        names.append((name, part_of))
        columns.append(column)

    for site, column in effects.sites.items():
        add(site, None, column)
        if not site.startswith("blocks."):
            continue
        layer = int(site.split(".")[1])
        if site.endswith("attn_out"):
            for head in range(effects.heads[layer].units.shape[1]):
                add(head_name(layer, head), site, effects.heads[layer].units[:, head])
            bias = effects.heads[layer].bias
        else:
            bias = effects.mlp_bias.get(layer)
            for name, neuron in _neuron_columns(effects, layer, shown):
                add(name, site, neuron)
        if bias is not None:
            add(f"{site} bias", site, bias)
    values = columns[0].new_empty((columns[0].shape[0], len(columns)))
    for i, column in enumerate(columns):
        values[:, i] = column
    return Terms(names, values)


def _neuron_columns(effects: Effects, layer: int, shown: int) -> list[tuple[str, Tensor]]:
    """The largest neurons of a layer by mean, and the sum of all others."""
    if layer not in effects.neurons:
        return []
    units = effects.neurons[layer].units
    chosen = units.mean(0).abs().argsort(descending=True)[:shown].tolist()
    others = units.sum(1) - units[:, chosen].sum(1)
    return [*((f"L{layer}N{i}", units[:, i]) for i in chosen), (f"L{layer} other neurons", others)]


def _numbers(x: Tensor) -> ndarray:
    return x.detach().double().cpu().numpy()


def _components(terms: Terms, clusters: Clusters) -> tuple[ComponentEffect, ...]:
    means = clusters.means(_numbers(terms.values))
    return tuple(
        ComponentEffect(name=name, part_of=part_of, effect=means.estimate(i))
        for i, (name, part_of) in enumerate(terms.names)
    )


def _finest(names: Sequence[tuple[str, str | None]]) -> list[int]:
    """Terms that add up to the total without overlap: attention by head, MLPs whole."""
    return [
        i
        for i, (name, part_of) in enumerate(names)
        if (part_of is None and not name.endswith("attn_out")) or (part_of or "").endswith("attn_out")
    ]


def _top(components: Sequence[ComponentEffect], k: int) -> tuple[ComponentEffect, ...]:
    finest = [components[i] for i in _finest([(c.name, c.part_of) for c in components])]
    neurons = [c for c in components if c.part_of and c.part_of.endswith("mlp_out") and not c.name.endswith("neurons")]
    return tuple(sorted(finest + neurons[:0], key=lambda c: -abs(c.effect.mean))[:k])


def _by_kind(terms: Terms, clusters: Clusters) -> dict[str, Estimate]:
    values = _numbers(terms.values)
    columns: dict[str, list[int]] = {}
    for i in _finest(terms.names):
        columns.setdefault(kind_of(terms.names[i][0]), []).append(i)
    return {kind: clusters.means(values[:, chosen].sum(1)).estimate() for kind, chosen in columns.items()}
