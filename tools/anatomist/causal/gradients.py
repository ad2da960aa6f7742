"""First-order estimates of patching: the gradient of the metric at an activation, times the change of the activation.

B rows, T positions, H heads, K key-value heads. With b the run that is patched, o the other one and M the metric,

    estimate(n) = sum over the cell of  g(n) . (n(o) - n(b)),      g(n) = mean over the path of dM / dn

The path is the base run itself (plain attribution patching: Nanda 2023, "Attribution patching",
https://www.neelnanda.io/mechanistic-interpretability/attribution-patching; Syed et al., arXiv 2310.10348) or the
straight line of embeddings from b to o (integrated gradients over the inputs: Sundararajan et al., arXiv 1703.01365;
Hanna et al., arXiv 2403.17806, EAP-IG), taken at midpoints of its steps. On that line the estimates of the embeddings
add up to M(o) - M(b) when the steps are fine enough; what is missing is the completeness gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import WouldNotFit
from ..measures.metrics import Metric, widened
from ..model.batches import read_bytes
from ..model.edits import Edit
from ..model.protocol import Model, ModelInfo
from ..model.sites import Site
from ..model.sweep_cost import item_bytes, pieces, row_bytes
from ..model.sweep_plan import Cell
from ..model.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

EMBED = Site("embed")
MOST_ROWS = 32  # prompts differentiated together


@dataclass(frozen=True, eq=False)
class Pair:
    """Some prompts of both runs, and the metric of these prompts."""

    rows: range  # of the whole set
    base: Tokens
    other: Tokens
    metric: Metric


@dataclass(frozen=True, eq=False)
class Linear:
    """What a first-order estimate is made of, for some rows."""

    base: Mapping[Site, Tensor]  # activations of the base run
    other: Mapping[Site, Tensor]  # of the other run
    gradient: Mapping[Site, Tensor]  # of the metric, averaged over the path
    base_value: Float[Tensor, " B"]
    other_value: Float[Tensor, " B"]

    def change(self, site: Site) -> Tensor:
        """Other minus base, float32 or wider."""
        return widened(self.other[site]) - widened(self.base[site])


def path_of(steps: int) -> tuple[float, ...]:
    """Midpoints of equal steps from base (0) to other (1); no steps: the base run itself."""
    return tuple((k + 0.5) / steps for k in range(steps)) or (0.0,)


def gradient_row_bytes(info: ModelInfo, width: int) -> int:
    """Bytes of the graph of one row: residuals, norms and hidden layers of every block, scores and patterns twice."""
    a_block = width * (10 * info.d_model + 3 * info.d_mlp + 4 * info.n_heads * info.d_head)
    return item_bytes(info) * info.n_layers * (a_block + 2 * info.n_heads * width**2)


def pairs_of(
    model: Model, base: Tokens, other: Tokens, metric: Metric, reads: Sequence[Site], budget_bytes: int
) -> Iterator[Pair]:
    """The prompts in pieces whose graph and reads fit in the budget.

    Raises:
        WouldNotFit: one prompt does not.
    """
    info, width = model.info, base.width
    each = gradient_row_bytes(info, width) + row_bytes(info, width, None)
    each += 4 * sum(read_bytes(info, site, width) for site in reads)
    if each > budget_bytes:
        raise WouldNotFit(
            f"the gradient of one prompt of {width} tokens needs about {each / 2**20:,.0f} MiB and "
            f"{budget_bytes / 2**20:,.0f} MiB may be used. Use shorter prompts, fewer layers, or unload a model."
        )
    for part in pieces(base.n_rows, min(MOST_ROWS, budget_bytes // each)):
        yield Pair(part, base.rows(part), other.rows(part), metric.rows(part))


def linear(model: Model, pair: Pair, sites: Sequence[Site], steps: int) -> Linear:
    """Activations of both runs and the gradient over the path, at whole sites; `embed` is always among them."""
    wanted = list(dict.fromkeys([EMBED, *sites]))
    other = model.run(pair.other, read=wanted, logits_at=pair.other.last)
    assert other.logits is not None
    values, at_base, total = None, {}, dict[Site, "Tensor"]()
    path = path_of(steps)
    if path != (0.0,):
        plain = model.run(pair.base, read=wanted, logits_at=pair.base.last)
        assert plain.logits is not None
        values, at_base = pair.metric(plain.logits), dict(plain.reads)
    for where in path:
        value, reads, gradients = gradients_at(model, pair, wanted, _along(other.reads[EMBED], where))
        if values is None:
            values, at_base = value, reads
        for site, gradient in gradients.items():
            total[site] = total[site] + gradient / len(path) if site in total else gradient / len(path)
    assert values is not None
    return Linear(at_base, other.reads, total, values, pair.metric(other.logits))


def _along(other: Tensor, where: float) -> tuple[Edit, ...]:
    """The embeddings moved towards the other run's."""
    return (Edit(site=EMBED, rule="interpolate", value=other, factor=where),) if where else ()


def gradients_at(
    model: Model, pair: Pair, sites: Sequence[Site], edits: Sequence[Edit] = ()
) -> tuple[Float[Tensor, " B"], dict[Site, Tensor], dict[Site, Tensor]]:
    """The metric per row, the activations and the metric's gradients at whole sites, on an edited base run.

    A place that the metric does not depend on has the gradient 0.
    """
    import torch  # only where a model is

    with torch.enable_grad():  # the caller may have turned gradients off
        run = model.run(pair.base, read=sites, edits=edits, logits_at=pair.base.last, gradients=True)
        assert run.logits is not None
        for x in run.reads.values():
            x.retain_grad()
        values = pair.metric(run.logits)
        values.sum().backward()
    reads = {site: x.detach() for site, x in run.reads.items()}
    found = {site: widened(x.detach() * 0 if x.grad is None else x.grad) for site, x in run.reads.items()}
    return values.detach(), reads, found


def at_places(linear: Linear, site: Site) -> Float[Tensor, "B T *units"]:
    """The estimate at every position (and head, where the site has heads; and neuron), summed over features."""
    product = linear.gradient[site] * linear.change(site)
    return product if site.kind == "neuron" else product.sum(-1)


def of_cell(places: Mapping[Site, Tensor], cell: Cell, tokens: Tokens, rows: range) -> Float[Tensor, " B"]:
    """The estimate of one cell on some rows: summed over its places and positions."""
    return sum((_pooled(_unit(places[s.whole], s), cell, tokens, rows) for s in cell.sites[1:]),
               start=_pooled(_unit(places[cell.sites[0].whole], cell.sites[0]), cell, tokens, rows))  # fmt: skip


def _unit(x: Float[Tensor, "B T *units"], site: Site) -> Float[Tensor, "B T"]:
    if site.index is not None:
        return x[:, :, site.index]
    return x.sum(-1) if x.dim() == 3 else x


def _pooled(x: Float[Tensor, "B T"], cell: Cell, tokens: Tokens, rows: range) -> Float[Tensor, " B"]:
    return (x * selected(x, cell, tokens, rows)).sum(-1)


def selected(like: Float[Tensor, "B T *more"], cell: Cell, tokens: Tokens, rows: range) -> Float[Tensor, "B T"]:
    """1 at the positions that the cell edits, 0 elsewhere and at padding; `tokens` are those of the rows."""
    width = like.shape[1]
    if cell.positions is None:
        chosen = [[float(t < n) for t in range(width)] for n in tokens.lengths]
    else:
        chosen = [[float(t in at) for t in range(width)] for at in (set(cell.positions[b]) for b in rows)]
    return like.new_tensor(chosen)
