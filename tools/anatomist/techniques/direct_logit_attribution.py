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

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..causal.direct_effects import (
    Effects,
    Term,
    direct_effects,
    self_tests,
    single_answers,
    sites_read,
    stacked,
    taken_apart,
)
from ..causal.units import chosen_layers
from ..errors import BadArguments, BadPrompts, UnknownName, WouldNotFit
from ..figures import Bars, Figure, Heatmap
from ..measures.statistics import Clusters
from ..model.batches import batches
from ..model.protocol import ModelInfo
from ..model.sites import head_name
from ..prompts.encoding import EncodedPrompts, encode
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
HALF_TOLERANCE = 1e-1  # residuals in half precision are rounded every time something is added
WIDE = frozenset({"float32", "float64"})
NEURON = re.compile(r"L\d+N\d+")
OTHERS = "other neurons"


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
    top: tuple[ComponentEffect, ...] = Field(
        description="Largest terms by magnitude, none a part of another: by head, and by neuron where told apart."
    )
    by_kind: dict[str, Estimate] = Field(
        description="Sums over sites: attention, MLPs, embeddings, biases (of the final norm and the unembedding)."
    )
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
    found = with_neurons(_effects(context, prompts, layers), arguments.neurons)
    tests = self_tests(found, TOLERANCE if info.dtype in WIDE else HALF_TOLERANCE)
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    context.keep("terms", found.values, axes=("prompt", "component"), unit="logits")
    components = _components(found, clusters)
    total = clusters.means(_numbers(found.logit_diff)).estimate()
    capped = context.model.weights.logit_softcap() is not None
    kinds, top = _by_kind(found, clusters), _top(components, arguments.top)
    return DirectLogitAttributionResult(
        summary=_summary(total, top, kinds, prompts.n),
        warnings=(*_warnings(info, capped, clusters.count), *prompts.warnings),
        total=total,
        after_cap=clusters.means(_numbers(found.capped)).estimate() if capped else None,
        top=top,
        by_kind=kinds,
        heads=_head_grid(components, info),
        by_layer=_layer_grid(components, info),
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
        groups=tuple(kind_of(c.name) for c in result.top),
    )  # fmt: skip
    return Figure(
        title="Direct logit attribution",
        caption=f"Terms of the logit difference {result.total} at the last token, norms frozen, mean over prompts. "
        "What a component writes itself, not what it does through later layers.",
        panels=(bars, Heatmap(title="Heads: direct effect (logits)", grid=result.heads)),
    )


def kind_of(name: str) -> str:
    """attention, MLPs, embeddings or biases (of the final norm and the unembedding)."""
    if "embed" in name and not name.endswith("bias"):
        return "embeddings"
    if "attn_out" in name or "H" in name:
        return "attention"
    return "MLPs" if "mlp_out" in name or name.startswith("L") else "biases"


def _prompts(context: Context, arguments: Arguments) -> EncodedPrompts:
    if context.prompts is None:
        raise BadPrompts("there are no prompts; give a handle from make_prompts or a list of prompts.")
    prompts = encode(context.prompts, context.model, bos=arguments.bos, need=("answer", "wrong"))
    single_answers(prompts)
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
    answers, wrongs = single_answers(prompts)
    model, tokens = context.model, prompts.clean
    parts = batches(model.info, tokens, sites_read(model, layers), context.budget_bytes)
    whole: Effects | None = None
    done = 0
    for rows in parts:
        context.progress(done, tokens.n_rows, "prompts attributed")
        pick = [[ids[row] for row in rows] for ids in (answers, wrongs)]
        found = direct_effects(model, tokens.rows(rows), *pick, neuron_layers=layers)
        if whole is None:
            whole = Effects(found.terms, *(x.new_empty((tokens.n_rows, *x.shape[1:])) for x in found[1:]))
        for into, x in zip(whole[1:], found[1:], strict=True):
            into[list(rows)] = x
        done += len(rows)
    context.progress(done, tokens.n_rows, "prompts attributed")
    assert whole is not None
    return whole


def with_neurons(effects: Effects, shown: int) -> Effects:
    """The largest neurons of each layer by their mean, the others as one term."""
    mean, values = effects.values.mean(0).abs().tolist(), effects.values
    layers: dict[str, list[int]] = {}
    for i, term in enumerate(effects.terms):
        if term.part_of is not None and NEURON.fullmatch(term.name):
            layers.setdefault(term.part_of, []).append(i)
    if not layers:
        return effects
    kept: dict[Term, Tensor] = {}
    for i, term in enumerate(effects.terms):
        own = layers.get(term.part_of or "", [])
        if i not in own:
            kept[term] = values[:, i]
        elif i == min(own):
            order = sorted(own, key=lambda j: -mean[j])
            kept |= {effects.terms[j]: values[:, j] for j in order[:shown]}
            kept[Term(f"{term.part_of} {OTHERS}", term.part_of)] = values[:, order[shown:]].sum(1)
    return effects._replace(terms=tuple(kept), values=stacked(kept))


def _numbers(x: Tensor) -> ndarray:
    return x.detach().double().cpu().numpy()


def _components(effects: Effects, clusters: Clusters) -> tuple[ComponentEffect, ...]:
    means = clusters.means(_numbers(effects.values))
    return tuple(
        ComponentEffect(name=term.name, part_of=term.part_of, effect=means.estimate(i))
        for i, term in enumerate(effects.terms)
    )


def _top(components: Sequence[ComponentEffect], k: int) -> tuple[ComponentEffect, ...]:
    """The largest of the finest terms that add up to the total."""
    apart = taken_apart([Term(c.name, c.part_of) for c in components])
    split = {components[i].name for sites in apart.values() for i, _ in sites}
    finest = [c for c in components if (c.name not in split if c.part_of is None else c.part_of in split)]
    return tuple(sorted(finest, key=lambda c: -abs(c.effect.mean))[:k])


def _by_kind(effects: Effects, clusters: Clusters) -> dict[str, Estimate]:
    values, columns = _numbers(effects.values), dict[str, list[int]]()
    for i, term in enumerate(effects.terms):
        if term.part_of is None:
            columns.setdefault(kind_of(term.name), []).append(i)
    return {kind: clusters.means(values[:, chosen].sum(1)).estimate() for kind, chosen in columns.items()}


def _head_grid(components: Sequence[ComponentEffect], info: ModelInfo) -> Grid:
    means = {c.name: c.effect.mean for c in components}
    layers, heads = range(info.n_layers), range(info.n_heads)
    values = [means[head_name(layer, head)] for layer in layers for head in heads]
    return grid("direct effect of heads", "logits", [("layer", layers), ("head", heads)], values)


def _layer_grid(components: Sequence[ComponentEffect], info: ModelInfo) -> Grid:
    means = {c.name: c.effect.mean for c in components}
    kinds = [kind for kind in ("attn_out", "mlp_out") if kind in info.sites]
    values = [means[f"blocks.{layer}.{kind}"] for layer in range(info.n_layers) for kind in kinds]
    axes = [("layer", range(info.n_layers)), ("site", kinds)]
    return grid("direct effect by layer", "logits", axes, values)


def _added(parts: Sequence[Estimate]) -> Estimate:
    """Means added, and interval ends added."""
    low, high = [e.low for e in parts if e.low is not None], [e.high for e in parts if e.high is not None]
    whole = len(low) == len(high) == len(parts)
    first = parts[0]
    if len(parts) == 1:
        return first
    return first.model_copy(
        update={
            "mean": sum(e.mean for e in parts),
            "low": sum(low) if whole else None,
            "high": sum(high) if whole else None,
            "method": f"{first.method}; interval ends of {len(parts)} parts added",
        }
    )


def _summary(total: Estimate, top: Sequence[ComponentEffect], kinds: dict[str, Estimate], n: int) -> str:
    largest = "; ".join(f"{c.name} {_signed(c.effect)}" for c in top[:6])
    sums = ", ".join(f"{kind} {e.mean:+.3g}" for kind, e in kinds.items())
    return (
        f"On {n} prompts the logit difference is {total.mean:+.3g}; it is the sum of {sums}. Largest terms: {largest}. "
        "This is what components write themselves at the last token: not what they cause through later layers, and "
        "not what happens when one is taken out (patch_activations, ablate)."
    )


def _signed(e: Estimate) -> str:
    return f"{e.mean:+.3g}" + ("" if e.low is None or e.high is None else f" [{e.low:+.3g}, {e.high:+.3g}]")


def _warnings(info: ModelInfo, capped: bool, clusters: int) -> tuple[str, ...]:
    cap = "This model caps its logits: the terms add up to the logit difference before the cap, not to `after_cap`."
    half = f"In {info.dtype} the terms add up to a few percent only; load the model in float32 for exact ones."
    single = "There is one cluster of prompts: no intervals."
    shown = ((capped, cap), (info.dtype not in WIDE, half), (clusters < 2, single))
    return tuple(text for wanted, text in shown if wanted)
