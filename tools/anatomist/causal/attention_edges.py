"""Attention edges between positions, cut: which query may no longer read which key, as cells of a sweep.

B prompts, T positions, H heads. An edge (q, s) is the weight of query position q on key position s <= q. Two cuts:

| how | what happens | the other keys of that query |
|---|---|---|
| renormalise | the score becomes minus infinity before the softmax | share the weight that is set free |
| zero | the weight becomes 0 after the softmax | keep their weights; the query reads less |

Source: Geva et al., arXiv 2304.14767, section 4.1 (attention knockout over windows of layers).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from einops import einsum

from ..errors import BadArguments, BadSite, Unsupported
from ..measures.metrics import widened
from ..model.batches import batches, read_bytes
from ..model.protocol import Model
from ..model.sites import Site, SiteKind, check_site
from ..model.sweep_plan import Cell, Keys
from ..model.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

How = Literal["renormalise", "zero"]
Edge = tuple[int, int]  # query position, key position
RowEdges = tuple[tuple[Edge, ...], ...]  # per prompt
Place = tuple[int, int | None]  # layer, head; None: every head
WRITTEN_AT: dict[How, SiteKind] = {"renormalise": "scores", "zero": "pattern"}


def need_attention(model: Model, how: How) -> None:
    """
    Raises:
        Unsupported: this backend does not show the scores (or the pattern) of this architecture.
    """
    try:
        check_site(Site(WRITTEN_AT[how], 0), model.info.shape)
    except BadSite as error:
        raise Unsupported(f"attention edges cannot be cut here: {error} Load the model with backend='local'.") from None


def edges_between(queries: Sequence[Sequence[int]], sources: Sequence[Sequence[int]]) -> RowEdges:
    """Every causal edge from a query to a source, per prompt."""
    return tuple(
        tuple((q, s) for q in dict.fromkeys(at) for s in dict.fromkeys(of) if s <= q)
        for at, of in zip(queries, sources, strict=True)
    )


class ByQuery(NamedTuple):
    """Edges the way a cell holds them: per prompt its queries, and the keys of each."""

    queries: tuple[tuple[int, ...], ...]
    keys: tuple[Keys, ...]


def by_query(edges: RowEdges) -> ByQuery:
    """The edges of every prompt, query by query."""
    rows: list[dict[int, list[int]]] = []
    for row in edges:
        rows.append(found := {})
        for q, s in row:
            found.setdefault(q, []).append(s)
    return ByQuery(tuple(tuple(r) for r in rows), tuple(tuple(map(tuple, r.values())) for r in rows))


def cut_cell(places: Sequence[Place], edges: ByQuery, how: How) -> Cell:
    """The same edges cut at some heads."""
    return Cell(tuple(Site(WRITTEN_AT[how], *place) for place in places), edges.queries, keys=edges.keys)


def need_a_key(cell: Cell, model: Model, name: str) -> None:
    """A softmax over nothing is undefined: every query has to keep a key.

    Raises:
        BadArguments: all keys that a query sees at one of the layers are cut.
    """
    windows = {_window(model, site.layer or 0) for site in cell.sites}
    for row, (queries, keys) in enumerate(zip(cell.positions or (), cell.keys or (), strict=True)):
        for q, gone in zip(queries, keys, strict=True):
            for window in windows:
                seen = range(0 if window is None else max(0, q - window + 1), q + 1)
                if set(seen) <= set(gone):
                    raise BadArguments(
                        f"cutting {name} leaves position {q} of prompt {row} no key to attend to (it sees {seen[0]} to "
                        f"{q}): the softmax would be over nothing. Leave a source out, or take how='zero'."
                    )


def _window(model: Model, layer: int) -> int | None:
    try:
        return model.weights.attention_rule(layer).window
    except Unsupported:
        return None


class Drawn(NamedTuple):
    """Random edges, as many as were chosen, and how they were drawn."""

    sets: tuple[RowEdges, ...]
    note: str


def random_edges(edges: RowEdges, lengths: Sequence[int], *, count: int, seed: int, name: str) -> Drawn:
    """Random sets of as many edges in every prompt, of the same queries where these see enough other keys.

    A query's own position and the first position (where much attention rests unused) are drawn only if the chosen
    edges hold such ones. Where one prompt has too few other edges there are no sets.
    """
    found: list[RowEdges] = []
    widened_to_others = False
    for draw in range(count):
        rows: list[tuple[Edge, ...]] = []
        for row, (chosen, length) in enumerate(zip(edges, lengths, strict=True)):
            one = _random_row(chosen, length, random.Random(f"{seed} {name} {draw} {row}"))
            if one is None:
                return Drawn((), f"none: prompt {row} has fewer than {len(chosen)} other edges")
            widened_to_others |= {q for q, _ in one} != {q for q, _ in chosen}
            rows.append(one)
        found.append(tuple(rows))
    where = "the same queries to other keys" + (", and of other queries where these see too few" * widened_to_others)
    return Drawn(tuple(found), where if found else "none asked for")


def _random_row(chosen: Sequence[Edge], length: int, draw: random.Random) -> tuple[Edge, ...] | None:
    gone, queries = set(chosen), {q for q, _ in chosen}
    to_self, to_first = any(q == s for q, s in chosen), any(s == 0 for _, s in chosen)

    def others(q: int, own: bool) -> list[Edge]:
        return [(q, s) for s in range(q + 1) if (q, s) not in gone and (own or s != q) and (to_first or s != 0)]

    found: list[Edge] = []
    for q in sorted(queries):
        pool = others(q, to_self)
        found += draw.sample(pool, min(len(pool), sum(e[0] == q for e in chosen)))
    elsewhere = [edge for q in range(length) if q not in queries for edge in others(q, False)]
    missing = len(chosen) - len(found)
    return None if missing > len(elsewhere) else tuple(found + draw.sample(elsewhere, missing))


def attended(
    model: Model, tokens: Tokens, groups: Sequence[RowEdges], layers: Sequence[int], budget_bytes: int
) -> Float[Tensor, "L H G"]:
    """The intact weight that a query has on a group's edges, averaged over queries and prompts."""
    sites = [Site("pattern", layer) for layer in layers]
    extra = 4 * len(groups) * tokens.width**2
    total: Tensor | None = None
    for part in batches(model.info, tokens, sites[:1] * 2, budget_bytes, extra=extra + _all(model, sites, tokens)):
        some = tokens.rows(part)
        reads = model.run(some, read=sites).reads
        like = widened(reads[sites[0]])
        share = like.new_zeros((len(groups), len(part), some.width, some.width))
        for g, edges in enumerate(groups):
            for i, row in enumerate(part):
                n = len({q for q, _ in edges[row]})
                share[g, i, [q for q, _ in edges[row]], [s for _, s in edges[row]]] = 1 / max(n, 1)
        total = like.new_zeros((len(layers), like.shape[1], len(groups))) if total is None else total
        for n, site in enumerate(sites):
            total[n] += einsum(widened(reads[site]), share, "b h q k, g b q k -> h g")
    assert total is not None
    return total / tokens.n_rows


def _all(model: Model, sites: Sequence[Site], tokens: Tokens) -> int:
    return sum(read_bytes(model.info, site, tokens.width) for site in sites)


def left_on_cut(model: Model, tokens: Tokens, cell: Cell, rows: Sequence[int]) -> tuple[float, float]:
    """After the cut: the largest weight left on a cut edge, and how far a query's weights on what it sees miss 1."""
    from ..model.sweep_cuts import cut_edit  # torch, only where a model is

    some = tokens.rows(rows)
    sites = sorted({Site("pattern", site.layer) for site in cell.sites})
    edits = [cut_edit(cell, site, list(enumerate(rows)), some.width) for site in cell.sites]
    patterns = model.run(some, read=sites, edits=edits).reads
    worst, missing = 0.0, 0.0
    for at in cell.sites:
        pattern = widened(patterns[Site("pattern", at.layer)])
        heads = slice(None) if at.index is None else [at.index]
        for i, row in enumerate(rows):
            for q, keys in zip((cell.positions or ())[row], (cell.keys or ())[row], strict=True):
                weights = pattern[i, heads, q]
                worst = max(worst, float(weights[:, list(keys)].abs().max()))
                missing = max(missing, float((weights[:, : q + 1].sum(-1) - 1).abs().max()))
    return worst, missing
