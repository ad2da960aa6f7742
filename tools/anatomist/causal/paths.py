"""Direct paths: what one component changes in the input of another while everything else is frozen.

B rows, T positions. With b the base run and o the other one, a path from sender s to receiver r is patched in two
passes (Wang et al., arXiv 2211.00593, appendix B; Goldowsky-Dill et al., arXiv 2304.05969, section 2):

1. s takes its activation of o, every later head and MLP keeps its own of b: the queries, keys, values or MLP
   activations of r are now those that b gives with s alone changed, along the residual stream and nothing else.
2. r takes these on b, and everything after it is computed. The logits themselves are a receiver that ends in pass 1.

A receiver's MLP is entered at its activations (`neuron`), which are what its input alone decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments, BadSite, Unsupported
from ..measures.metrics import Metric, widened
from ..model.batches import batches
from ..model.edits import Edit
from ..model.protocol import Model, ModelInfo
from ..model.sites import Shape, Site, SiteKind, check_site
from ..model.sweep_plan import values_of
from ..model.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

EMBED, LOGITS = "embed", "logits"
SENDERS = "Write 'L9H6' for a head, 'L9MLP' for an MLP, 'embed' for the embeddings."
RECEIVERS = "Write 'L10H7.q', '.k' or '.v' for an input of a head, 'L10MLP' for an MLP, 'logits' for the output."
Places = tuple[tuple[int, ...], ...] | None


class End(NamedTuple):
    """One end of a path: the activation that is changed, and its name."""

    name: str
    site: Site | None  # None: the logits

    @property
    def layer(self) -> int:
        """-1 for the embeddings."""
        return -1 if self.site is None or self.site.layer is None else self.site.layer


def sender(text: str, shape: Shape) -> End:
    """Read a sender's name.

    Raises:
        BadSite: not a sender's name, or a place that the model does not have.
    """
    if text == EMBED:
        return End(text, check_site(Site("embed"), shape))
    found = re.fullmatch(r"L(\d+)(?:H(\d+)|MLP)", text)
    if not found:
        raise BadSite(f"{text!r} is no sender. {SENDERS}")
    layer, head = int(found[1]), found[2]
    site = Site("mlp_out", layer) if head is None else Site("head", layer, int(head))
    return End(text, check_site(site, shape))


def receiver(text: str, info: ModelInfo) -> End:
    """Read a receiver's name; where several heads share keys and values these belong to 'L10KV2.k'.

    Raises:
        BadSite: not a receiver's name, or a place that the model does not have.
    """
    if text == LOGITS:
        return End(text, None)
    if mlp := re.fullmatch(r"L(\d+)MLP", text):
        return End(text, check_site(Site("neuron", int(mlp[1])), info.shape))
    found = re.fullmatch(r"L(\d+)(H|KV)(\d+)\.([qkv])", text)
    if not found:
        raise BadSite(f"{text!r} is no receiver. {RECEIVERS}")
    shared = info.n_kv_heads < info.n_heads
    layer, unit, kind = int(found[1]), int(found[3]), found[4]
    if (found[2] == "KV") != (shared and kind != "q"):
        group = info.n_heads // info.n_kv_heads
        kv = unit // group if found[2] == "H" else unit
        right = f"L{layer}KV{kv}.{kind}" if shared and kind != "q" else f"L{layer}H{unit}.{kind}"
        why = f"{group} query heads share a key-value head" if shared else "every head has its own keys and values"
        raise BadSite(f"{text!r}: in this model {why}; write {right!r}.")
    kinds: Mapping[str, SiteKind] = {"q": "q", "k": "k", "v": "v"}
    return End(text, check_site(Site(kinds[kind], layer, unit), info.shape))


def everything(info: ModelInfo) -> list[str]:
    """Every sender of a model, in order."""
    mlp = ["MLP"] if info.d_mlp else []
    parts = [*(f"H{h}" for h in range(info.n_heads)), *mlp]
    return [EMBED, *(f"L{layer}{part}" for layer in range(info.n_layers) for part in parts)]


def reaches(start: End, end: End, info: ModelInfo) -> bool:
    """Whether the sender writes to the residual before the receiver reads it."""
    if end.site is None:
        return True
    within = end.site.kind == "neuron" and start.site is not None and start.site.kind == "head" and not info.parallel
    return start.layer < end.layer or (within and start.layer == end.layer)


def ends(texts: Sequence[str], read: Callable[[str], End], what: str) -> list[End]:
    """Names read one by one, each once.

    Raises:
        BadArguments: none, or one twice.
        BadSite: from the reader.
    """
    if not texts or len(set(texts)) < len(texts):
        raise BadArguments(f"{what} {list(texts)}: name at least one, each once.")
    return [read(text) for text in texts]


class Direct(NamedTuple):
    """What a sender changes directly."""

    inputs: Mapping[Site, Tensor]  # whole receiver sites, [B, T, *feature], with the sender alone changed
    logits: Float[Tensor, " B"] | None  # the metric, where the logits are a receiver


class Held(NamedTuple):
    """The activations of both runs that pass 1 writes."""

    base: Mapping[Site, Tensor]
    other: Mapping[Site, Tensor]


def kinds_held(info: ModelInfo) -> tuple[SiteKind, ...]:
    """What writes to the residual in a layer; attention as a whole where a backend does not show its heads.

    Raises:
        BadSite: a part that cannot be held still: what goes through it would count as direct.
    """
    attention: SiteKind = "head" if "head" in info.sites else "attn_out"
    kinds: tuple[SiteKind, ...] = (attention, "mlp_out") if info.d_mlp else (attention,)
    for kind in kinds:
        check_site(Site(kind, 0), info.shape)
    return kinds


def sites_held(info: ModelInfo) -> list[Site]:
    """Everything that pass 1 may hold or change."""
    return [Site("embed"), *(Site(k, n) for n in range(info.n_layers) for k in kinds_held(info))]


def pieces_of(model: Model, base: Tokens, receivers: Sequence[Site], budget_bytes: int) -> list[tuple[int, ...]]:
    """Rows whose held activations of both runs, and what is read of them, fit in the budget."""
    both = sites_held(model.info) * 2
    return batches(model.info, base, [*both, *receivers], budget_bytes, in_order=True)


def held(model: Model, base: Tokens, other: Tokens) -> Held:
    """Both runs' heads, MLPs and embeddings."""
    sites = sites_held(model.info)
    return Held(model.run(base, read=sites).reads, model.run(other, read=sites).reads)


class Logits(NamedTuple):
    """How the logits are taken as a receiver."""

    metric: Metric
    frozen_norm: bool  # the final norm divides by the base run's scale


def direct(
    model: Model, start: End, stops: Sequence[Site], both: Held, base: Tokens, at: Places, logits: Logits | None,
) -> Direct:  # fmt: skip
    """Pass 1 of one sender on some rows.

    Raises:
        EditDidNotFire: a place that should be frozen was not computed.
        Unsupported: a frozen norm on an architecture whose weights are not known.
    """
    last = model.info.n_layers - 1 if logits else max((s.layer or 0 for s in stops), default=0)
    edits = [*_freeze(model.info, start, both.base, last), _send(start, both.other, at)]
    whole = list(dict.fromkeys(s.whole for s in stops))
    final = Site("resid_post", model.info.n_layers - 1)
    read = [*whole, final] if logits and logits.frozen_norm else whole
    run = model.run(base, read=read, edits=edits, logits_at=base.last if logits else None)
    reads = {site: run.reads[site] for site in whole}
    if logits is None:
        return Direct(reads, None)
    if not logits.frozen_norm:
        assert run.logits is not None
        return Direct(reads, logits.metric(run.logits).float().cpu())
    return Direct(reads, _frozen_norm(model, base, run.reads[final], logits.metric))


def _freeze(info: ModelInfo, start: End, base: Mapping[Site, Tensor], last: int) -> Iterator[Edit]:
    """Every head and MLP after the sender, up to a layer, keeps its activation of the base run."""
    assert start.site is not None
    kinds = kinds_held(info)
    own = {start.layer: kinds if start.site.kind == "mlp_out" else kinds[:1]}
    for layer in range(max(start.layer, 0), last + 1):
        for kind in kinds:
            if kind not in own.get(layer, ()):
                yield Edit(site=Site(kind, layer), rule="set", value=base[Site(kind, layer)])


def _send(start: End, other: Mapping[Site, Tensor], at: Places) -> Edit:
    """The sender takes its activation of the other run, at its positions."""
    assert start.site is not None
    value = other[start.site.whole]
    value = value if start.site.index is None else value[:, :, start.site.index]
    if at is None:
        return Edit(site=start.site, rule="set", value=value)
    most = max(map(len, at))
    filled = [[*p, *[p[0]] * (most - len(p))] for p in at]
    return Edit(
        site=start.site, rule="set", positions=at, value=value[[[b] * most for b in range(len(at))], filled]
    )


def _frozen_norm(
    model: Model, base: Tokens, changed: Float[Tensor, "B T D"], metric: Metric
) -> Float[Tensor, " B"]:
    """The metric where the final norm divides by the base run's scale: effects are then linear in the sender."""
    weights, rows = model.weights, list(range(base.n_rows))
    final = Site("resid_post", model.info.n_layers - 1)
    plain = widened(model.run(base, read=[final]).reads[final][rows, list(base.last)])
    norm, ids = weights.final_norm(), metric.ids
    x = norm.frozen(widened(changed[rows, list(base.last)]), norm.scale(plain))
    if norm.bias is not None:
        x = x + norm.bias
    logits = x @ widened(weights.unembed(ids))
    bias, cap = weights.unembed_bias(ids), weights.logit_softcap()
    logits = logits if bias is None else logits + widened(bias)
    logits = logits if cap is None else cap * (logits / cap).tanh()
    return values_of((metric,), logits, ids, rows)[0].float().cpu()


def need_weights(model: Model) -> None:
    """
    Raises:
        Unsupported: the weights of this architecture are not known.
    """
    try:
        model.weights.final_norm()
    except Unsupported as error:
        raise Unsupported(f"{error} Take norm='recomputed', which needs no weights.") from None
