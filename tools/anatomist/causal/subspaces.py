"""Subspaces of an activation: interchanged between two runs, and learned by gradient descent.

N examples (a base run, a source run and the answer wanted after the interchange), f features of the place, k
dimensions. With B [k, f] an orthonormal basis, x the base run's activation and s the source run's:

    x' = x + (s - x) B^T B          every other direction of the place keeps the base run's value

Learned: B is the Q of a QR decomposition of free parameters, and the loss the cross-entropy of the wanted answer.
Source: Geiger et al., arXiv 2303.02536, section 3 (distributed alignment search).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments, Unsupported, WouldNotFit
from ..measures.metrics import IdSets, log_mass, loss, widened
from ..model.batches import batches
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site
from ..model.sweep_cost import row_bytes
from ..model.tokens import Tokens
from .gradients import gradient_row_bytes

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RANK = 1e-5  # singular values below this share of the largest count as none


@dataclass(frozen=True, eq=False)
class Examples:
    """Interchanges to make: row i of the base run takes from row i of the source run."""

    base: Tokens
    source: Tokens
    wanted: IdSets  # the answer after the interchange
    kept: IdSets  # the base run's own answer
    positions: tuple[int, ...]
    clusters: tuple[str, ...]

    @property
    def n(self) -> int:
        return self.base.n_rows


class Ends(NamedTuple):
    """The place's activation in both runs, [N, f]."""

    base: Float[Tensor, "N f"]
    source: Float[Tensor, "N f"]


class Outcome(NamedTuple):
    """What the model says after the interchange, per example."""

    beats: Float[Tensor, " N"]  # 1 where the wanted answer is likelier than the base run's own
    top: Float[Tensor, " N"]  # 1 where it is the likeliest of all tokens
    difference: Float[Tensor, " N"]  # log mass of the wanted answer minus that of the base run's own


class Learned(NamedTuple):
    """A basis found by gradient descent, and how the loss fell."""

    basis: Float[Tensor, "k f"]
    losses: tuple[float, ...]  # per step, nats

    @property
    def final(self) -> float:
        """Mean over the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


def ends_of(model: Model, examples: Examples, site: Site, budget_bytes: int) -> Ends:
    """Both runs read at the place."""
    return Ends(*(_read(model, t, site, examples.positions, budget_bytes) for t in (examples.base, examples.source)))


def _read(
    model: Model, tokens: Tokens, site: Site, positions: Sequence[int], budget_bytes: int
) -> Float[Tensor, "N f"]:
    found: Tensor | None = None
    for rows in batches(model.info, tokens, [site], budget_bytes):
        some = tokens.rows(rows)
        x = model.run(some, read=[site]).reads[site][list(range(some.n_rows)), [positions[r] for r in rows]]
        found = x.new_empty((tokens.n_rows, x.shape[-1])) if found is None else found
        found[list(rows)] = x
    assert found is not None
    return found


def moved(ends: Ends, basis: Float[Tensor, "k f"] | None) -> Float[Tensor, "N f"]:
    """The base run's activation with the subspace of the source run; the whole of it when there is no basis."""
    if basis is None:
        return ends.source
    change = (widened(ends.source) - widened(ends.base)) @ basis.T @ basis
    return widened(ends.base) + change


def outcome(
    model: Model, examples: Examples, site: Site, value: Float[Tensor, "N f"] | None, budget_bytes: int
) -> Outcome:
    """The answers after the place was set to a value; of the base run as it is without one."""
    found: list[Tensor] = []
    for rows in batches(model.info, examples.base, [], budget_bytes):
        logits = _pass(model, examples, site, rows, None if value is None else value[list(rows)])
        wanted, kept = ([sets[r] for r in rows] for sets in (examples.wanted, examples.kept))
        difference = log_mass(logits, wanted) - log_mass(logits, kept)
        best = logits.argmax(-1).tolist()
        top = difference.new_tensor([float(b in ids) for b, ids in zip(best, wanted, strict=True)])
        if not found:
            found = [difference.new_empty(examples.n) for _ in range(3)]
        for into, x in zip(found, ((difference > 0).to(difference), top, difference), strict=True):
            into[list(rows)] = x
    return Outcome(*(x.cpu() for x in found))


def _pass(
    model: Model, examples: Examples, site: Site, rows: Sequence[int], value: Float[Tensor, "n f"] | None,
    *, gradients: bool = False,
) -> Float[Tensor, "n V"]:  # fmt: skip
    some = examples.base.rows(rows)
    at = tuple((examples.positions[r],) for r in rows)
    edits = [] if value is None else [Edit(site=site, rule="set", positions=at, value=value[:, None])]
    run = model.run(some, edits=edits, logits_at=some.last, gradients=gradients)
    assert run.logits is not None
    return run.logits


class Recipe(NamedTuple):
    """How a subspace is learned."""

    dimension: int
    steps: int
    batch: int
    rate: float  # of Adam at the first step; falls to 0 in a straight line
    seed: int


def learn(
    model: Model, examples: Examples, site: Site, ends: Ends, recipe: Recipe, budget_bytes: int,
    progress: Callable[[float], None],
) -> Learned:  # fmt: skip
    """An orthonormal basis whose interchange gives the wanted answer.

    Raises:
        Unsupported: this backend gives no gradients.
        WouldNotFit: the gradient of one example is over the budget.
    """
    import torch  # the optimiser: only where something is learned

    batch = _batch(model, examples, recipe.batch, budget_bytes)
    generator = torch.Generator().manual_seed(recipe.seed)
    start = torch.randn(ends.base.shape[-1], recipe.dimension, generator=generator)
    free = start.to(device=ends.base.device).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=recipe.rate)
    drawn, losses = _draws(examples.n, batch, recipe.seed), list[float]()
    for step in range(recipe.steps):
        progress(step / recipe.steps)
        optimiser.param_groups[0]["lr"] = recipe.rate * (1 - step / recipe.steps)
        rows = next(drawn)
        with torch.enable_grad():
            basis = torch.linalg.qr(free).Q.T
            value = moved(Ends(ends.base[rows], ends.source[rows]), basis)
            logits = _pass(model, examples, site, rows, value, gradients=True)
            _need_gradients(model, logits)
            cost = loss(logits, [examples.wanted[r] for r in rows]).mean()
            optimiser.zero_grad()
            cost.backward()
        optimiser.step()
        losses.append(float(cost.detach()))
    return Learned(torch.linalg.qr(free.detach()).Q.T, tuple(losses))


def _need_gradients(model: Model, logits: Tensor) -> None:
    if not logits.requires_grad:
        raise Unsupported(
            f"the {model.info.backend} backend gives no gradients here, and a subspace is learned by them. Load the "
            "model with backend='local', or give a `subspace`: it is then interchanged without learning."
        )


def _batch(model: Model, examples: Examples, wanted: int, budget_bytes: int) -> int:
    width = examples.base.width
    each = gradient_row_bytes(model.info, width) + row_bytes(model.info, width, None)
    if each > budget_bytes:
        raise WouldNotFit(
            f"the gradient of one prompt of {width} tokens needs about {each / 2**20:,.0f} MiB and "
            f"{budget_bytes / 2**20:,.0f} MiB may be used. Use shorter prompts, or unload a model."
        )
    return min(wanted, examples.n, budget_bytes // each)


def _draws(n: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Batches without end: every example once before any comes again."""
    order, left = random.Random(seed), list[int]()
    while True:
        while len(left) < batch:
            left += order.sample(range(n), n)
        chosen, left = left[:batch], left[batch:]
        yield chosen


def random_basis(features: int, dimension: int, seed: int) -> Float[Tensor, "k f"]:
    """A random orthonormal basis, every subspace of this dimension as likely."""
    import torch

    drawn = torch.randn(features, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q.T


def orthonormal(directions: Float[Tensor, "k f"], tolerance: float = RANK) -> Float[Tensor, "r f"]:
    """A basis of what the directions span; directions shorter than the tolerance (of the longest) are left out."""
    import torch

    _, sizes, rows = torch.linalg.svd(widened(directions), full_matrices=False)
    return rows[sizes > tolerance * max(float(sizes.max()), 1e-30)]


def cosines(a: Float[Tensor, "k f"], b: Float[Tensor, "m f"]) -> list[float]:
    """Cosines of the principal angles between two subspaces, largest first; both bases orthonormal."""
    import torch

    return torch.linalg.svdvals(a.to(b) @ b.T).clamp(max=1).tolist()


def directions_of(rows: Sequence[Sequence[float]]) -> Float[Tensor, "k f"]:
    """Lists of numbers as directions.

    Raises:
        BadArguments: none, or of unequal length.
    """
    import torch

    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise BadArguments("the subspace's directions must be lists of the same length, at least one.")
    return torch.tensor([list(row) for row in rows])


def given_basis(directions: Float[Tensor, "k f"], features: int) -> Float[Tensor, "k f"]:
    """Directions that were given as an orthonormal basis.

    Raises:
        BadArguments: another width than the place's, or directions that do not span as many dimensions.
    """
    if directions.shape[-1] != features:
        raise BadArguments(
            f"the subspace has directions of {directions.shape[-1]} numbers; this place has {features}. Take the site, "
            "layer and head that it was found at."
        )
    basis = orthonormal(directions)
    if len(basis) < len(directions) or not directions.isfinite().all() or not directions.any():
        raise BadArguments(
            f"the {len(directions)} directions given span {len(basis) if directions.any() else 0} dimensions: give "
            "directions none of which is 0 or follows from the others."
        )
    return basis
