"""What an ablation writes: means over other prompts, or another prompt's own activations.

Prompts are aligned with those of the same template (`alignment.py`): there position p stands for the same thing. Means
are cross-fitted: each group is split into two halves that share no cluster (names), and a prompt gets the mean of the
half it is not in. Resampling gives every prompt the activations of another one of its group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import WouldNotFit
from ..model.protocol import Model
from ..model.sites import Site
from ..model.sweep_cost import fit, pieces, row_bytes, site_bytes
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts
from .alignment import Layout, aligned_groups, layout_of, matched

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MOST_ROWS = 64  # prompts read in one pass


class Replacements(NamedTuple):
    """Activations to write, by whole site."""

    values: Mapping[Site, Tensor]  # [R, T, *feature]
    value_rows: tuple[int, ...]  # per prompt, its row of the values


class Means(NamedTuple):
    """Mean activations of reference prompts."""

    values: Mapping[Site, Tensor]  # [R, T, *feature]
    value_rows: tuple[int, ...]  # per prompt, its row of the values: a mean over the half it is not in
    fewest: int  # prompts in the smallest reference


def deranged(prompts: EncodedPrompts, seed: int) -> tuple[int, ...]:
    """For every row another row of its group, each used once.

    Within a group, rows of a cluster stand side by side and the row further on by the largest cluster is taken: where
    no cluster holds more than half of the group, every row gets one of another cluster.

    Raises:
        BadPrompts: see `aligned_groups`.
    """
    other = [0] * prompts.n
    for rows in aligned_groups(prompts, seed):
        labels = [prompts.clusters[row] for row in rows]
        step = max(labels.count(label) for label in set(labels))
        for i, row in enumerate(rows):
            other[row] = rows[(i + step) % len(rows)]
    return tuple(other)


def halves(prompts: EncodedPrompts, seed: int) -> list[tuple[list[int], list[int]]]:
    """Each aligned group cut in two that share no cluster, as evenly as its clusters allow."""
    found: list[tuple[list[int], list[int]]] = []
    for rows in aligned_groups(prompts, seed):
        cuts = [i for i in range(1, len(rows)) if prompts.clusters[rows[i]] != prompts.clusters[rows[i - 1]]]
        cut = min(cuts, key=lambda i: abs(2 * i - len(rows)))
        found.append((rows[:cut], rows[cut:]))
    return found


def cross_fitted_means(
    model: Model, prompts: EncodedPrompts, sites: Sequence[Site], seed: int, budget_bytes: int
) -> Means:
    """Means of whole sites at matched positions over the half that a prompt is not in.

    Raises:
        BadPrompts: see `aligned_groups`.
        WouldNotFit: the activations of one prompt, or all the means together, are over half of the budget.
    """
    pairs = halves(prompts, seed)
    wanted = [(a, b) for pair in pairs for a, b in (pair, pair[::-1])]  # rows that get a mean, rows it is over
    keys = [(i, layout) for i, (rows, _) in enumerate(wanted) for layout in _layouts(prompts, rows)]
    place = {key: number for number, key in enumerate(keys)}
    _check_room(model, sites, len(keys) * prompts.clean.width, budget_bytes)
    value_rows = [0] * prompts.n
    values: dict[Site, Tensor] = {}
    for i, (rows, reference) in enumerate(wanted):
        for row in rows:
            value_rows[row] = place[i, layout_of(prompts, row)]
        for layout, same in _layouts(prompts, reference).items():
            for site, total in summed(model, prompts.clean.rows(same), sites, budget_bytes).items():
                if site not in values:
                    values[site] = total.new_zeros((len(keys), prompts.clean.width, *total.shape[1:]))
                for target in _layouts(prompts, rows):
                    values[site][place[i, target], : target.length] += total[matched(target, layout)] / len(reference)
    return Means(values, tuple(value_rows), min(len(reference) for _, reference in wanted))


def resampled(
    model: Model, prompts: EncodedPrompts, sites: Sequence[Site], other: Sequence[int], budget_bytes: int
) -> Replacements:
    """Activations of another prompt for each, at matched positions: row b gets those of prompt other[b].

    Raises:
        WouldNotFit: all of them together are over half of the budget.
    """
    width = prompts.clean.width
    _check_room(model, sites, prompts.n * width, budget_bytes)
    values: dict[Site, Tensor] = {}
    for row, taken in enumerate(other):
        index = matched(layout_of(prompts, row), layout_of(prompts, taken))
        for site, x in model.run(prompts.clean.rows([taken]), read=sites).reads.items():
            if site not in values:
                values[site] = x.new_zeros((prompts.n, width, *x.shape[2:]))
            values[site][row, : len(index)] = x[0, index]
    return Replacements(values, tuple(range(prompts.n)))


def overall_means(
    model: Model, prompts: EncodedPrompts, sites: Sequence[Site], budget_bytes: int
) -> dict[Site, Float[Tensor, "1 1 *feature"]]:
    """Means over all prompts and positions: for text that no prompt is aligned with."""
    totals: dict[Site, Tensor] = {}
    for rows in _by_length(prompts.clean):
        for site, total in summed(model, prompts.clean.rows(rows), sites, budget_bytes).items():
            totals[site] = totals[site] + total.sum(0) if site in totals else total.sum(0)
    places = sum(prompts.clean.lengths)
    return {site: (total / places)[None, None] for site, total in totals.items()}


def summed(
    model: Model, tokens: Tokens, sites: Sequence[Site], budget_bytes: int
) -> dict[Site, Float[Tensor, " T *feature"]]:
    """Float32 sums over rows of equal length, read a few rows at a time."""
    each = site_bytes(model.info, sites, tokens.width) + row_bytes(model.info, tokens.width, 0)
    at_once = min(MOST_ROWS, fit(budget_bytes / 2, each, "prompt with its reads"))
    sums: dict[Site, Tensor] = {}
    for part in pieces(tokens.n_rows, at_once):
        for site, x in model.run(tokens.rows(part), read=sites).reads.items():
            total = x.float().sum(0)
            sums[site] = sums[site] + total if site in sums else total
    return sums


def _layouts(prompts: EncodedPrompts, rows: Sequence[int]) -> dict[Layout, list[int]]:
    """Rows by layout."""
    found: dict[Layout, list[int]] = {}
    for row in rows:
        found.setdefault(layout_of(prompts, row), []).append(row)
    return found


def _by_length(tokens: Tokens) -> Iterator[list[int]]:
    """Rows of equal length together: no padding among them."""
    for length in sorted(set(tokens.lengths)):
        yield [row for row, n in enumerate(tokens.lengths) if n == length]


def _check_room(model: Model, sites: Sequence[Site], places: int, budget_bytes: int) -> None:
    need = site_bytes(model.info, sites, places) * 2  # means are held in float32, whatever the model's type
    if need > budget_bytes / 2:
        raise WouldNotFit(
            f"the activations to write need {need / 2**20:.0f} MiB and may use {budget_bytes / 2**21:.0f} MiB, half of "
            "the budget. Ablate fewer layers, use fewer prompts, or raise the budget."
        )
