"""Adding vectors to a run: the metric and the loss on other text under each of many vectors.

A condition is one vector added at a lever's places; B prompts, C conditions, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..measures.metrics import Metric
from ..model.batches import batches
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site, SiteKind, check_site
from ..model.sweep_cost import fit, pieces, row_bytes
from ..model.sweep_plan import Cell
from ..model.tokens import PositionSpec, Tokens
from ..prompts.encoding import EncodedPrompts
from ..result import SelfTest
from .grids import together
from .neutral import text_losses
from .units import unit_name

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

LOGIT_COPIES = 3  # of a text's logits that are held at once


@dataclass(frozen=True, eq=False)
class Lever:
    """Where vectors are added, on which prompts."""

    tokens: Tokens
    sites: tuple[Site, ...]
    positions: tuple[tuple[int, ...], ...] | None  # per prompt; None: all, also those that are generated
    median_norm: float  # of the activations there
    where: str
    units: tuple[Tensor, ...]  # per site, the activations there divided by their length [n, D]

    @classmethod
    def nowhere(cls, tokens: Tokens) -> Lever:
        """Prompts to which nothing is added."""
        return cls(tokens, (), None, 1.0, "nowhere", ())

    def rows(self, index: Sequence[int]) -> Lever:
        """The same lever on some of the prompts."""
        places = None if self.positions is None else tuple(self.positions[i] for i in index)
        return replace(self, tokens=self.tokens.rows(index), positions=places)

    def cosine(self, unit: Float[Tensor, " d_model"]) -> float:
        """Mean cosine between a unit vector and the activations."""
        found = [float((u @ unit).mean()) for u in self.units]
        return sum(found) / len(found)


class Losses(NamedTuple):
    """Next-token loss on a text."""

    mean: float  # nats a token
    tokens: int


def lever_at(
    model: Model, prompts: EncodedPrompts, kind: SiteKind, layers: Sequence[int],
    positions: Sequence[PositionSpec] | Literal["all"], budget_bytes: int,
) -> Lever:  # fmt: skip
    """The places of some layers, with the median length of what stands there on these prompts.

    Raises:
        BadSite, BadPosition: places the model or the prompts do not have.
    """
    sites = tuple(check_site(Site(kind, layer), model.info.shape) for layer in layers)
    places = None if positions == "all" else together(prompts.columns(positions))
    norms: list[float] = []
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows in batches(model.info, prompts.clean, sites, budget_bytes):
        part = prompts.clean.rows(rows)
        reads = model.run(part, read=sites).reads
        for site in sites:
            for i, row in enumerate(rows):
                x = reads[site][i, list(range(part.lengths[i]) if places is None else places[row])].float()
                length = x.norm(dim=-1, keepdim=True)
                norms += length[:, 0].tolist()
                found[site].append(x / length.clamp_min(1e-30))
    norms.sort()
    where = unit_name(sites[0]) if len(sites) == 1 else f"{kind} of layers {', '.join(map(str, layers))} together"
    units = tuple(parts[0].new_tensor([row for p in parts for row in p.tolist()]) for parts in found.values())
    return Lever(prompts.clean, sites, places, norms[len(norms) // 2], where, units)


def random_vectors(like: Float[Tensor, " d_model"], count: int, seed: int) -> list[Float[Tensor, " d_model"]]:
    """Unit vectors drawn evenly from the sphere."""
    import numpy as np

    drawn = np.random.default_rng(seed).standard_normal((count, len(like)))
    return [like.new_tensor(v / np.linalg.norm(v)) for v in drawn]


class Steered(NamedTuple):
    """The metric of every prompt under every condition."""

    base: ndarray  # [B], nothing added
    values: ndarray  # [C, B]
    tests: tuple[SelfTest, ...]  # of the sweep that computed them


def steered_values(
    model: Model, lever: Lever, metric: Metric, vectors: Sequence[Tensor], budget_bytes: int,
    progress: Callable[[float, float, str], None] = lambda done, total, what: None, *, seed: int = 0,
) -> Steered:  # fmt: skip
    """Every vector added at the lever's places, a cell of one sweep each: what stands before them is computed once."""
    from ..model.sweep import SweepPlan, sweep  # torch, only where a model is

    n = lever.tokens.n_rows
    added = vectors[0].new_tensor([v.tolist() for v in vectors])[:, None]
    cells = tuple(Cell(lever.sites, lever.positions, (c,) * n) for c in range(len(vectors)))
    plan = SweepPlan(
        base=lever.tokens, cells=cells, metrics=(metric,), read_at=lever.tokens.last, rule="add",
        values=dict.fromkeys(lever.sites, added), seed=seed,
    )  # fmt: skip
    result = sweep(model, plan, progress, budget_bytes)
    base, values = (x[0].double().cpu().numpy() for x in (result.base_values, result.values))
    return Steered(base, values, result.self_tests)


def losses(
    model: Model, lever: Lever, texts: Tokens, vectors: Sequence[Tensor], budget_bytes: int
) -> list[Losses]:
    """Loss on texts with each vector added at every position: all vectors of one text go through side by side.

    Raises:
        WouldNotFit: one text with all its logits is over the budget.
    """
    counted = sum(texts.lengths) - texts.n_rows
    totals = [0.0] * len(vectors)
    for row in range(texts.n_rows):
        width = texts.lengths[row]
        each = row_bytes(model.info, width, None) + LOGIT_COPIES * 4 * width * model.info.d_vocab
        for part in pieces(len(vectors), fit(budget_bytes, each, "text with all its logits")):
            added = vectors[0].new_tensor([vectors[i].tolist() for i in part])[:, None]
            edits = [Edit(site=s, rule="add", value=added) for s in lever.sites]
            for i, loss in zip(part, text_losses(model, texts.rows([row] * len(part)), edits), strict=True):
                totals[i] += loss
    return [Losses(total / counted, counted) for total in totals]


def everywhere(lever: Lever, vector: Tensor | None) -> tuple[Edit, ...]:
    """The vector added at every position of the lever's places."""
    if vector is None:
        return ()
    return tuple(Edit(site=s, rule="add", value=vector) for s in lever.sites)
