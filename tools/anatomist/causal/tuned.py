"""Affine maps from the residual of each layer to that of the last, trained so that the lens reads what the model says.

n tokens, D model width, V vocabulary. With h a residual as a row, its map gives h A + b; the loss is the mean over
tokens of KL(model || lens(h A + b)). A map is trained as h + u (z B + c) with z the residual whitened over the training
tokens and u a fixed unit (the median spread of the layer's own dimensions over D, so that Adam's rate is about the
share of that spread which a token moves in a step): the few dimensions of huge activation that language models have
would otherwise decide how fast all else is learnt, and a step sized by the last residual would swamp the small ones of
early layers.

Training starts from whichever reads the check part best: the identity (B and c 0), or the ridge regression of the last
residual on this one at one of some penalties, which is exact in one product and leaves little to descend. The best map
met on the way is kept, by the check part as well: a layer with nothing to gain keeps the identity.

Source: Belrose et al., arXiv 2303.08112, section 3 (loss, identity start); the regression as a start is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import WouldNotFit
from ..measures.metrics import kl, widened
from ..model.batches import batches
from ..model.protocol import Model, ModelInfo
from ..model.sites import Site
from ..model.sweep_cost import item_bytes, pieces
from ..model.tokens import Tokens
from .lens import lens

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

FLOOR = 1e-4  # of the mean variance: axes of less are not blown up by whitening
CHECKS = 8  # times in a training that the check part is looked at
LOGIT_COPIES = 6  # of one batch's logits that a step holds
PENALTIES = (0.01, 0.1, 1.0)  # of the regression, in units of the whitened residual's variance


class Map(NamedTuple):
    """h -> h @ weight + bias."""

    weight: Float[Tensor, "D D"]
    bias: Float[Tensor, " D"]

    def __call__(self, h: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        return (widened(h) @ self.weight + self.bias).to(h.dtype)


@dataclass(frozen=True)
class Recipe:
    """How maps are trained."""

    steps: int
    batch: int  # tokens a step
    rate: float  # Adam's, falling to 0 along a line
    seed: int


def read_places(
    model: Model, tokens: Tokens, sites: Sequence[Site], positions: Sequence[Sequence[int]], budget_bytes: int,
    progress: Callable[[int], None],
) -> dict[Site, Float[Tensor, "n D"]]:  # fmt: skip
    """Residuals at some positions of each row, row after row."""
    import torch

    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows in batches(model.info, tokens, sites, budget_bytes, in_order=True):
        reads = model.run(tokens.rows(rows), read=sites).reads
        for site in sites:
            found[site] += [reads[site][i, list(positions[row])] for i, row in enumerate(rows)]
        progress(len(rows))
    return {site: torch.cat(parts) for site, parts in found.items()}


def groups_of(info: ModelInfo, sites: Sequence[Site], n: int, batch: int, budget_bytes: int) -> list[list[Site]]:
    """Places in groups whose residuals and maps under training fit in the budget together.

    Raises:
        WouldNotFit: one place does not.
    """
    logits = LOGIT_COPIES * batch * info.d_vocab * 4
    each = n * info.d_model * item_bytes(info) + 4 * 8 * info.d_model**2  # map, gradient, two moments, best, whitening
    fixed = n * info.d_model * item_bytes(info) + logits
    room = int((budget_bytes // 2 - fixed) // each)
    if room < 1:
        raise WouldNotFit(
            f"training one map of width {info.d_model} on {n} tokens takes {(each + fixed) / 2**20:,.0f} MiB, "
            f"{logits / 2**20:,.0f} MiB of them for logits; half of the budget, {budget_bytes / 2**21:,.0f} MiB, may "
            "be used. Give fewer tokens or a smaller batch."
        )
    return [[sites[i] for i in part] for part in pieces(len(sites), room)]


def train(
    model: Model, residuals: Sequence[Float[Tensor, "n D"]], final: Float[Tensor, "n D"], check: Int[Tensor, " m"],
    recipe: Recipe, progress: Callable[[int], None],
) -> list[Map]:  # fmt: skip
    """One map for each place, all trained on the same batches; tokens of `check` choose when to stop, and only that."""
    import torch

    source = torch.Generator().manual_seed(recipe.seed)
    left = torch.ones(len(final), dtype=torch.bool)
    left[check.cpu()] = False
    usable = left.nonzero()[:, 0]
    with torch.no_grad():
        reference = [lens(model, final[check[p]]) for p in _slices(len(check), recipe.batch)]

    def checked(own: _Trained, x: Tensor) -> float:
        with torch.no_grad():
            parts = [check[p] for p in _slices(len(check), recipe.batch)]
            found = [kl(lens(model, own(x[p])), r) for p, r in zip(parts, reference, strict=True)]
        return float(torch.cat(found).mean())

    trained = [_Trained(x[usable], recipe) for x in residuals]
    for x, own in zip(residuals, trained, strict=True):
        own.start(x[usable], final[usable], lambda own=own, x=x: checked(own, x))
        progress(0)
    every = max(1, recipe.steps // CHECKS)
    for step in range(recipe.steps):
        chosen = usable[torch.randint(len(usable), (recipe.batch,), generator=source)].to(final.device)
        with torch.no_grad():
            target = lens(model, final[chosen])
        looking = (step + 1) % every == 0 or step + 1 == recipe.steps
        for x, own in zip(residuals, trained, strict=True):
            own.step(lambda h, target=target: kl(lens(model, h), target).mean(), x[chosen])
            if looking:
                own.look(checked(own, x))
        progress(1)
    return [own.best() for own in trained]


class _Trained:
    """One map under training."""

    def __init__(self, x: Float[Tensor, "n D"], recipe: Recipe) -> None:
        from torch.optim import Adam
        from torch.optim.lr_scheduler import LinearLR

        x = widened(x)
        self.mean, self.unit = x.mean(0), float(x.std(0).median()) / x.shape[1]
        self.into = _whitening(x - self.mean)
        self.change = x.new_zeros(x.shape[1], x.shape[1], requires_grad=True)
        self.shift = x.new_zeros(x.shape[1], requires_grad=True)
        self.adam = Adam([self.change, self.shift], lr=recipe.rate)
        self.falling = LinearLR(self.adam, 1.0, 0.0, total_iters=max(1, recipe.steps))
        self.lowest, self.kept = float("inf"), (self.change.detach().clone(), self.shift.detach().clone())

    def start(
        self, x: Float[Tensor, "n D"], final: Float[Tensor, "n D"], checked: Callable[[], float]
    ) -> None:
        """Begin where the check part is read best: at the identity, or at a regression of the last residual."""
        self.look(checked())
        z, missing = (widened(x) - self.mean) @ self.into, widened(final) - widened(x)
        spread, mean = z.pow(2).mean(0)[:, None], missing.mean(0)
        slope = z.T @ (missing - mean) / len(z)
        for penalty in PENALTIES:
            self._set(slope / (spread + penalty) / self.unit, mean / self.unit)
            self.look(checked())
        self._set(*self.kept)

    def _set(self, change: Float[Tensor, "D D"], shift: Float[Tensor, " D"]) -> None:
        self.change.data.copy_(change)
        self.shift.data.copy_(shift)

    def __call__(self, h: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        z = (widened(h) - self.mean) @ self.into
        return (widened(h) + self.unit * (z @ self.change + self.shift)).to(h.dtype)

    def step(self, loss: Callable[[Tensor], Tensor], h: Float[Tensor, "n D"]) -> None:
        import torch

        with torch.enable_grad():
            self.adam.zero_grad(set_to_none=True)
            loss(self(h)).backward()
        self.adam.step()
        self.falling.step()

    def look(self, value: float) -> None:
        """Keep the map where it reads the check part best; the identity is the first candidate."""
        if value < self.lowest:
            self.lowest, self.kept = value, (self.change.detach().clone(), self.shift.detach().clone())

    def best(self) -> Map:
        change, shift = self.kept
        moved = self.unit * (self.into @ change)
        return Map(moved + identity(change).weight, self.unit * shift - self.mean @ moved)


def identity(like: Float[Tensor, "* D"]) -> Map:
    """The map that changes nothing."""
    import torch

    width = like.shape[-1]
    like = widened(like)
    return Map(torch.eye(width, dtype=like.dtype, device=like.device), like.new_zeros(width))


def _whitening(centred: Float[Tensor, "n D"]) -> Float[Tensor, "D D"]:
    """Columns that turn centred rows into ones of unit variance along each axis, weak axes left weak."""
    import torch

    variance, turn = torch.linalg.eigh((centred.T @ centred / len(centred)).double())
    variance = variance.clamp(min=0)
    return (turn / (variance + FLOOR * variance.mean()).sqrt()).to(centred.dtype)


class Reading(NamedTuple):
    """What a lens reads at every token of one level."""

    kl: Float[Tensor, " n"]  # KL(model || lens), nats
    bits: Float[Tensor, " n"]  # -log2 probability of the token that follows


def readings(
    model: Model, levels: Sequence[tuple[Float[Tensor, "n D"], Map | None]], final: Float[Tensor, "n D"],
    following: Int[Tensor, " n"], at_once: int,
) -> list[Reading]:  # fmt: skip
    """Every level through its map (None: as it is), a few tokens at a time; the model's own logits are made once."""
    import torch

    found: list[list[Reading]] = [[] for _ in levels]
    for p in _slices(len(final), at_once):
        with torch.no_grad():
            target = lens(model, final[p])
            for (x, own), parts in zip(levels, found, strict=True):
                logits = lens(model, x[p] if own is None else own(x[p]))
                surprise = -logits.log_softmax(-1).gather(-1, following[p][:, None])[:, 0]
                parts.append(Reading(kl(logits, target), surprise / math.log(2)))
    return [Reading(*map(torch.cat, zip(*parts, strict=True))) for parts in found]


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(p.start, p.stop) for p in pieces(n, size))
