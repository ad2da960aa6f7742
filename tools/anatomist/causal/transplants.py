"""Activations taken from some prompts and put into one target prompt, as sweeps.

L layers, B prompts, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..measures.metrics import Metric, widened
from ..model.batches import batches
from ..model.protocol import Model
from ..model.sites import Site
from ..model.sweep_plan import Cell, SweepPlan
from ..model.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Margin(Metric):
    """Logit of the answer minus the largest other one: above 0 where the answer is on top."""

    def _values(self, logits: Tensor, whole: bool) -> Tensor:
        own = widened(logits)[range(len(self.answers)), [ids[0] for ids in self.answers]]
        others = widened(logits).clone()
        others[range(len(self.answers)), [ids[0] for ids in self.answers]] = float("-inf")
        return own - others.amax(-1)


class Source(NamedTuple):
    """What is taken from the prompts."""

    residuals: Float[Tensor, "L B D"]
    logits: Float[Tensor, "B V"]  # the prompts' own prediction at the source position

    @property
    def tops(self) -> tuple[tuple[int, ...], ...]:
        return tuple((int(i),) for i in self.logits.argmax(-1))


class Target(NamedTuple):
    """Where activations are put."""

    tokens: Tokens  # one row
    position: int
    layers: tuple[int, ...]  # per source layer


def taken(
    model: Model, tokens: Tokens, at: Sequence[int], layers: Sequence[int], budget_bytes: int
) -> Source:
    """Residuals and own predictions of every row at its position.

    Raises:
        WouldNotFit: one row's reads are over the budget.
    """
    sites = [Site("resid_post", layer) for layer in layers]
    found: Source | None = None
    for rows in batches(model.info, tokens, sites, budget_bytes, extra=8 * model.info.d_vocab):
        places = [at[row] for row in rows]
        ran = model.run(tokens.rows(rows), read=sites, logits_at=places)
        assert ran.logits is not None
        if found is None:
            like = ran.reads[sites[0]]
            found = Source(
                like.new_zeros((len(sites), tokens.n_rows, like.shape[-1])),
                ran.logits.new_zeros((tokens.n_rows, ran.logits.shape[-1])),
            )
        found.logits[list(rows)] = ran.logits
        for level, site in enumerate(sites):
            found.residuals[level, list(rows)] = ran.reads[site][range(len(rows)), places]
    assert found is not None
    return found


def plans_of(
    target: Target, source: Source, values: Float[Tensor, "L B D"]
) -> Iterator[tuple[list[int], SweepPlan]]:
    """Sweeps that measure KL from the source's own prediction and the margin of its top token.

    One sweep for all layers where each goes to a layer of its own, else one a layer.
    """
    rows = values.shape[1]
    base = repeated(target.tokens, rows)
    metrics = (Metric("kl", reference=source.logits), Margin("logprob", answers=source.tops))
    own_layer = len(set(target.layers)) == len(target.layers)
    for levels in [list(range(len(target.layers)))] if own_layer else [[i] for i in range(len(target.layers))]:
        sites = [Site("resid_post", target.layers[i]) for i in levels]
        yield levels, SweepPlan(
            base=base,
            cells=tuple(Cell((site,), ((target.position,),) * rows) for site in sites),
            metrics=metrics,
            read_at=base.last,
            rule="set",
            values={site: values[i][:, None] for site, i in zip(sites, levels, strict=True)},
            value_rows=tuple(range(rows)),
        )


def repeated(tokens: Tokens, times: int) -> Tokens:
    return Tokens(tokens.ids * times, tokens.strings * times, tokens.bos)


def same_norm(residuals: Float[Tensor, "L B D"], seed: int) -> Float[Tensor, "L B D"]:
    """Random directions of the same lengths."""
    from torch import Generator, randn

    drawn = randn(residuals.shape, generator=Generator().manual_seed(seed)).to(residuals)
    return drawn / drawn.norm(dim=-1, keepdim=True) * residuals.norm(dim=-1, keepdim=True)
