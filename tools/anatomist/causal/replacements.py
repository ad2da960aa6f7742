"""What an ablation writes: means over other prompts, or other prompts' own activations.

Prompts are aligned with those of the same template and length: there position p stands for the same thing. Means are
cross-fitted: each group is split into two halves that share no cluster (names), and a prompt gets the mean of the
half it is not in. Resampling gives every prompt the activations of another one of its group.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadPrompts
from ..model.protocol import Model
from ..model.sites import Site
from ..model.sweep_cost import fit, pieces, row_bytes, site_bytes
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MOST_ROWS = 64  # prompts read in one pass


class Means(NamedTuple):
    """Mean activations of reference prompts."""

    values: Mapping[Site, Tensor]  # [halves, T, *feature]
    value_rows: tuple[int, ...]  # per prompt, the half whose mean it gets: never its own
    fewest: int  # prompts in the smallest reference


def aligned_groups(prompts: EncodedPrompts, seed: int) -> list[list[int]]:
    """Rows by template and length, each group in random order with the rows of a cluster side by side.

    Raises:
        BadPrompts: a prompt has no other cluster beside it in its group.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for row in range(prompts.n):
        groups.setdefault((prompts.templates[row], prompts.clean.lengths[row]), []).append(row)
    for (template, length), rows in groups.items():
        if len({prompts.clusters[row] for row in rows}) < 2:
            raise BadPrompts(
                f"template {template!r} at {length} tokens has {len(rows)} prompt(s) of one cluster (first: prompt "
                f"{rows[0]}): there is no other prompt to take a mean or a sample from. Give at least two prompts with "
                "different names for each template and length (make_prompts with a larger n), or use ablation='zero'."
            )
    return [_shuffled(prompts, rows, random.Random(f"{seed} {key}")) for key, rows in sorted(groups.items())]


def _shuffled(prompts: EncodedPrompts, rows: Sequence[int], chosen: random.Random) -> list[int]:
    labels = sorted({prompts.clusters[row] for row in rows})
    chosen.shuffle(labels)
    return sorted(rows, key=lambda row: labels.index(prompts.clusters[row]))


def deranged(prompts: EncodedPrompts, seed: int) -> tuple[int, ...]:
    """For every row another row of its template and length, each used once.

    Within a group, rows of a cluster stand side by side and the row further on by the largest cluster is taken: where
    no cluster holds more than half of the group, every row gets one of another cluster.
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
    """Per-position means of whole sites over the half that a prompt is not in.

    Raises:
        BadPrompts: see `aligned_groups`.
        WouldNotFit: one prompt's activations are over the budget.
    """
    parts = [half for pair in halves(prompts, seed) for half in pair]
    value_rows = [0] * prompts.n
    for number, half in enumerate(parts):
        for row in half:
            value_rows[row] = number ^ 1  # halves of a pair stand side by side
    sums: dict[Site, Tensor] = {}
    for number, half in enumerate(parts):
        for site, total in summed(model, prompts.clean.rows(half), sites, budget_bytes).items():
            if site not in sums:
                sums[site] = total.new_zeros((len(parts), prompts.clean.width, *total.shape[1:]))
            sums[site][number, : total.shape[0]] = total / len(half)
    return Means(sums, tuple(value_rows), min(map(len, parts)))


def overall_means(
    model: Model, prompts: EncodedPrompts, sites: Sequence[Site], budget_bytes: int
) -> dict[Site, Float[Tensor, "1 1 *feature"]]:
    """Means over all prompts and positions: for text that no prompt is aligned with."""
    totals: dict[Site, Tensor] = {}
    for rows in aligned_by_length(prompts.clean):
        for site, total in summed(model, prompts.clean.rows(rows), sites, budget_bytes).items():
            totals[site] = totals[site] + total.sum(0) if site in totals else total.sum(0)
    places = sum(prompts.clean.lengths)
    return {site: (total / places)[None, None] for site, total in totals.items()}


def aligned_by_length(tokens: Tokens) -> list[list[int]]:
    """Rows of equal length together: no padding among them."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(tokens.lengths):
        groups.setdefault(length, []).append(row)
    return list(groups.values())


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
