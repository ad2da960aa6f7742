"""Which rows and items travel together: chunks that fit in the budget, and what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ...errors import WouldNotFit
from ..backends.blocks import Anatomy
from ..sweep_plan import SweepPlan
from .items import Item, differences, items_of
from .schedule import Chunk
from .walk import attention_bytes

# On a processor a product gains nothing from more tokens than this, and what no longer fits in its caches loses a tenth
# of the speed (measured with 6, 12 and 49 thousand). A chunk is cut there even where the budget would allow more, but
# not so short that the rows' own runs, computed anew in each chunk, weigh more than a fiftieth.
ENOUGH_TOKENS = 6_656
ENOUGH_FLOPS = 1e11  # of one layer, about a second on a few cores: between layers a sweep can be cancelled
ENOUGH_RUNS = 48
MANY_TOKENS = 131_072  # on an accelerator, whose memory has no such knee
ATTENTION_SHARE = LOGIT_SHARE = 8  # one part in so many of the budget is for a piece of attention, and of unembedding
ENOUGH_ATTENTION = 64 * 2**20
MANY_RESULTS = 512
EDGE_BYTES = 12 * 8  # of one edge: a dozen numbers say where it is, while they are sorted


class Budget(NamedTuple):
    """How a budget is spent."""

    tokens: int  # that may travel together
    token_bytes: int
    attention: int  # bytes of one piece of attention
    logits: int  # bytes of one piece of unembedding
    logit_rows: int  # results unembedded at once

    def peak(self, tokens: int) -> int:
        """Bytes planned for a chunk of so many tokens."""
        return tokens * self.token_bytes + self.attention + self.logits


def token_bytes(anatomy: Anatomy) -> int:
    """Bytes that one token holds at the fullest moment of a block: residuals and norms (4 D), queries, rotated queries
    and z (4 H h), keys and values (6 K h), the MLP's hidden layer with its gate (3 F)."""
    sizes = anatomy.sizes
    numbers = 4 * sizes.d_model + 4 * sizes.n_heads * sizes.d_head + 6 * sizes.n_kv_heads * sizes.d_head
    return (numbers + 3 * sizes.d_mlp) * anatomy.reference.element_size()


def budget_of(anatomy: Anatomy, plan: SweepPlan, budget_bytes: int) -> Budget:
    """Split a budget; `tokens` below 1 when one piece of attention and one result already exceed it."""
    width = max(plan.read_at) + 1
    least = attention_bytes(anatomy, width, width)
    attention = max(least, min(budget_bytes // ATTENTION_SHARE, ENOUGH_ATTENTION))
    fixed, result = logit_bytes(anatomy, plan)
    rows = max(1, min(MANY_RESULTS, (budget_bytes // LOGIT_SHARE - fixed) // result))
    logits = fixed + rows * result
    each = token_bytes(anatomy) + edge_bytes(plan)
    runs = width * (1 if plan.source is None else 2)
    enough = min(ENOUGH_TOKENS, int(ENOUGH_FLOPS // token_flops(anatomy)))
    most = max(enough, ENOUGH_RUNS * runs) if anatomy.reference.is_cpu else MANY_TOKENS
    tokens = min(most, (budget_bytes - attention - logits) // each)
    return Budget(tokens, each, attention, logits, rows)


def edge_bytes(plan: SweepPlan) -> int:
    """Bytes of the places of the attention edges of one query that are cut in a layer, at the most."""
    if plan.rule != "cut":
        return 0
    sites = max(max(Counter(site.layer for site in cell.sites).values()) for cell in plan.cells)
    keys = max(len(of) for cell in plan.cells for row in cell.keys or () for of in row)
    return EDGE_BYTES * sites * keys


def token_flops(anatomy: Anatomy) -> int:
    """Operations of one token in one block, attention over other tokens left out; a multiply-add counts as two."""
    sizes = anatomy.sizes
    heads = 2 * (sizes.n_heads + sizes.n_kv_heads) * sizes.d_head
    matrices = 2 if anatomy.blocks[0].mlp_gate is None else 3
    return 2 * sizes.d_model * (heads + matrices * sizes.d_mlp)


def logit_bytes(anatomy: Anatomy, plan: SweepPlan) -> tuple[int, int]:
    """Bytes of the chosen columns of the unembedding, and of one result: its logits and a metric's copies of them."""
    columns, s = plan.vocabulary, anatomy.reference.element_size()
    if columns is None:
        return 0, (s + 4 * 4) * anatomy.sizes.d_vocab
    return len(columns) * anatomy.sizes.d_model * s, (s + 4 * 4) * len(columns)


def chunks_of(plan: SweepPlan, n_layers: int, budget: Budget) -> Iterator[Chunk]:
    """Rows together while they fit; a row with more items than fit is cut into several chunks.

    Made one at a time: the items of a large grid on many prompts would take more memory than their activations.

    Raises:
        WouldNotFit: a row's own runs and one item are over the budget.
    """
    differs = differences(plan)
    together: list[Chunk] = []
    size = 0
    for row in range(plan.base.n_rows):
        own = None if differs is None or differs[row] > plan.read_at[row] else differs[row]
        for part in _parts(plan, row, own, items_of(plan, row, n_layers, differs), budget):
            if together and (size + part.tokens > budget.tokens or together[-1].rows == part.rows):
                yield _joined(together)
                together, size = [], 0
            together.append(part)
            size += part.tokens
    if together:
        yield _joined(together)


def _parts(
    plan: SweepPlan, row: int, differs: int | None, items: list[Item], budget: Budget
) -> Iterator[Chunk]:
    """A row with its items, in as few chunks as the budget allows, those that enter late together."""
    alone = Chunk((row,), (plan.read_at[row],), (differs,), ())
    room = budget.tokens - alone.tokens
    longest = max((item.length for item in items), default=0)
    if longest > room or room < 0:
        raise WouldNotFit(
            f"a sweep of prompt {row} needs {budget.peak(alone.tokens + longest) / 2**20:.0f} MiB for its own runs and "
            f"one cell; the budget allows {max(budget.tokens, 0)} tokens at once. Use a shorter prompt or a larger "
            "budget."
        )
    found: list[Item] = []
    filled = 0
    for item in sorted(items, key=lambda item: item.layer):
        if filled + item.length > room:
            yield replace(alone, items=tuple(found))
            found, filled = [], 0
        found.append(item)
        filled += item.length
    yield replace(alone, items=tuple(found))


def _joined(chunks: list[Chunk]) -> Chunk:
    return Chunk(
        tuple(row for c in chunks for row in c.rows),
        tuple(last for c in chunks for last in c.lasts),
        tuple(d for c in chunks for d in c.differs),
        tuple(item for c in chunks for item in c.items),
    )

