"""First-order effect of taking each feature away, for all features of a dictionary in one backward pass.

With g = dM/dy at the site the dictionary explains: estimate_i = - sum over positions of scale(x) f_i (g . d_i); the
error's is - sum of g . (y - y_hat). (Marks et al., arXiv 2403.19647, equation 2 with the ablated value 0.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..dictionaries.protocol import Dictionary
from ..dictionaries.reading import flat, sites_of
from ..errors import BadArguments
from ..measures.metrics import Metric
from ..model.protocol import Model
from ..model.sweep_plan import Cell
from ..model.tokens import Tokens
from .gradients import gradients_at, pairs_of, selected

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Positions = tuple[tuple[int, ...], ...] | None


class Scores(NamedTuple):
    """Estimates of all features that are active somewhere."""

    active: tuple[int, ...]
    estimates: Float[Tensor, "n B"]  # in the metric's unit
    means: list[float]  # over prompts
    share: list[float]  # of the prompts on which each is active
    error: Float[Tensor, " B"]  # of the dictionary's error


def scores(
    model: Model, dictionary: Dictionary, tokens: Tokens, metric: Metric, positions: Positions, budget_bytes: int,
    progress: Callable[[float, float, str], None],
) -> Scores:  # fmt: skip
    """Estimates of every feature on every row, at some positions together.

    Raises:
        BadArguments: no feature is active there. WouldNotFit: the gradient of one row is over the budget.
    """
    sites = sites_of(dictionary.info)
    cell = Cell((dictionary.info.writes,), positions)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for pair in pairs_of(model, tokens, tokens, metric, sites, budget_bytes):
        progress(pair.rows.start, tokens.n_rows, "gradients")
        _, reads, gradients = gradients_at(model, pair, sites)
        x, y = flat(reads[dictionary.info.reads]), flat(reads[dictionary.info.writes])
        g = flat(gradients[dictionary.info.writes])
        there = selected(g, cell, pair.base, pair.rows)[..., None]
        g = g * there
        f = dictionary.encode(x)
        toward = g.to(f) @ dictionary.directions.T
        error = (g * (y - dictionary.decode(f, x))).sum((-1, -2))
        here = (f * there != 0).any(1)
        parts.append((-(dictionary.scale(x) * f * toward).sum(1).float(), here, -error.float()))
    progress(tokens.n_rows, tokens.n_rows, "gradients")
    return _scores(dictionary, parts)


def _scores(dictionary: Dictionary, parts: list[tuple[Tensor, Tensor, Tensor]]) -> Scores:
    import torch

    estimates, here, error = (torch.cat([part[k] for part in parts]) for k in range(3))
    active = here.any(0).nonzero()[:, 0]
    if not len(active):
        raise BadArguments(
            f"no feature of {dictionary.info.name} is active at these positions; choose others, or look at what "
            "load_sae says of the dictionary."
        )
    chosen = estimates[:, active].T.cpu()
    share = here[:, active].float().mean(0).tolist()
    return Scores(tuple(active.tolist()), chosen, chosen.double().mean(1).tolist(), share, error.cpu())
