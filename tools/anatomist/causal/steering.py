"""Adding vectors to a run: the metric and the loss on other text under each of many vectors.

A condition is one vector (or none) added at a lever's places; B prompts, C conditions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..measures.metrics import Metric
from ..model.batches import batches
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site, SiteKind, check_site
from ..model.tokens import PositionSpec, Tokens
from ..prompts.encoding import EncodedPrompts
from .grids import together
from .neutral import total_loss
from .units import unit_name

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor


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


def steered_values(
    model: Model, lever: Lever, metric: Metric, conditions: Sequence[Tensor | None], budget_bytes: int
) -> ndarray:
    """The metric of every prompt under every condition, [C, B]; conditions share passes."""
    import numpy as np

    n = lever.tokens.n_rows
    pairs = [(c, b) for c in range(len(conditions)) for b in range(n)]
    everything = lever.tokens.rows([b for _, b in pairs])
    out = np.empty(len(pairs))
    logit_bytes = 4 * model.info.d_vocab
    for chosen in batches(model.info, everything, (), budget_bytes, extra=logit_bytes):
        tokens = everything.rows(chosen)
        edits = _edits(lever, [pairs[i] for i in chosen], conditions)
        logits = model.run(tokens, edits=edits, logits_at=tokens.last).logits
        assert logits is not None
        values = metric.rows([pairs[i][1] for i in chosen])(logits)
        out[list(chosen)] = values.double().cpu().numpy()
    return out.reshape(len(conditions), n)


def _edits(
    lever: Lever, pairs: Sequence[tuple[int, int]], conditions: Sequence[Tensor | None]
) -> tuple[Edit, ...]:
    """One edit a site, each row with its own vector; rows without one are left out."""
    rows = tuple(i for i, (c, _) in enumerate(pairs) if conditions[c] is not None)
    if not rows or not lever.sites:
        return ()
    vectors = [v for i in rows if (v := conditions[pairs[i][0]]) is not None]
    value = vectors[0].new_tensor([v.tolist() for v in vectors])[:, None]
    positions = None if lever.positions is None else tuple(lever.positions[pairs[i][1]] for i in rows)
    return tuple(Edit(site=s, rule="add", rows=rows, positions=positions, value=value) for s in lever.sites)


def losses(model: Model, lever: Lever, texts: Tokens, conditions: Sequence[Tensor | None]) -> list[Losses]:
    """Loss on texts under every condition, the vector added at every position."""
    counted = sum(texts.lengths) - texts.n_rows
    return [Losses(total_loss(model, texts, everywhere(lever, c)) / counted, counted) for c in conditions]


def everywhere(lever: Lever, vector: Tensor | None) -> tuple[Edit, ...]:
    """The vector added at every position of the lever's places."""
    if vector is None:
        return ()
    return tuple(Edit(site=s, rule="add", value=vector) for s in lever.sites)
