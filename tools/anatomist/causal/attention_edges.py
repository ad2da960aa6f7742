"""Attention edges between positions, cut: which query may no longer read which key, as edits of scores or pattern.

B prompts, T positions, H heads. An edge (q, s) is the weight of query position q on key position s <= q. Two cuts:

| how | what happens | the other keys of that query |
|---|---|---|
| renormalise | the score becomes minus infinity before the softmax | share the weight that is set free |
| zero | the weight becomes 0 after the softmax | keep their weights; the query reads less |

Source: Geva et al., arXiv 2304.14767, section 4.1 (attention knockout over windows of layers).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from einops import einsum

from ..errors import BadArguments, BadSite, EditDidNotFire, Unsupported
from ..measures.metrics import Metric, widened
from ..model.batches import batches, read_bytes
from ..model.edits import Edit
from ..model.protocol import Model, ModelInfo
from ..model.sites import Site, check_site
from ..model.sweep_cost import fit, pieces, row_bytes
from ..model.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

How = Literal["renormalise", "zero"]
Edge = tuple[int, int]  # query position, key position
RowEdges = tuple[tuple[Edge, ...], ...]  # per prompt
Place = tuple[int, int | None]  # layer, head; None: every head
EVERY: tuple[int, ...] = ()
MOST_ROWS = 64  # (cut, prompt) pairs that go through the model together


class Cut(NamedTuple):
    """Edges that are cut at some heads, the same in each."""

    places: tuple[Place, ...]
    edges: RowEdges

    def heads_at(self, layer: int) -> tuple[int, ...] | None:
        """The heads of a layer where it cuts; empty for every head, None for no head."""
        here = [head for at, head in self.places if at == layer]
        if not here:
            return None
        return EVERY if None in here else tuple(sorted(h for h in here if h is not None))


def need_attention(model: Model, how: How) -> None:
    """
    Raises:
        Unsupported: this backend does not show the scores (or the pattern) of this architecture.
    """
    try:
        check_site(Site("scores" if how == "renormalise" else "pattern", 0), model.info.shape)
    except BadSite as error:
        raise Unsupported(f"attention edges cannot be cut here: {error} Load the model with backend='local'.") from None


def edges_between(queries: Sequence[Sequence[int]], sources: Sequence[Sequence[int]]) -> RowEdges:
    """Every causal edge from a query to a source, per prompt."""
    return tuple(
        tuple((q, s) for q in dict.fromkeys(at) for s in dict.fromkeys(of) if s <= q)
        for at, of in zip(queries, sources, strict=True)
    )


def need_a_key(cut: Cut, model: Model, name: str) -> None:
    """A softmax over nothing is undefined: every query has to keep a key.

    Raises:
        BadArguments: all keys that a query sees at one of the layers are cut.
    """
    windows = {_window(model, layer) for layer, _ in cut.places}
    for row, edges in enumerate(cut.edges):
        gone = set(edges)
        for q in {q for q, _ in edges}:
            for window in windows:
                seen = range(0 if window is None else max(0, q - window + 1), q + 1)
                if all((q, s) in gone for s in seen):
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


def cut_values(
    model: Model, tokens: Tokens, metric: Metric, cuts: Sequence[Cut], how: How, like: Tensor, budget_bytes: int,
    progress: Callable[[float, float, str], None],
) -> Float[Tensor, "C B"]:  # fmt: skip
    """The metric of every prompt under every cut: cuts and prompts go through the model side by side.

    `like` is any tensor on the model's device.

    Raises:
        EditDidNotFire: a cut wrote fewer queries than it holds.
        WouldNotFit: one prompt is over the budget.
    """
    items = [(c, row) for c in range(len(cuts)) for row in range(tokens.n_rows)]
    each = row_bytes(model.info, tokens.width, None) + _mask_bytes(model.info, tokens, cuts)
    size = min(MOST_ROWS, fit(budget_bytes, each, "prompt with its cut edges"))
    values = like.new_zeros((len(cuts), tokens.n_rows)).float().cpu()
    for part in pieces(len(items), size):
        progress(part.start, len(items), "attention edges cut")
        chosen = [items[i] for i in part]
        rows = [row for _, row in chosen]
        found = cut_pass(model, tokens, [(cuts[c], row) for c, row in chosen], how, like, ())
        values[[c for c, _ in chosen], rows] = metric.rows(rows)(found.logits).float().cpu()
    progress(1, 1, "attention edges cut")
    return values


class Passed(NamedTuple):
    """One pass with edges cut."""

    logits: Tensor  # [N, V]
    patterns: Mapping[Site, Tensor]  # [N, H, T, T]


def cut_pass(
    model: Model, tokens: Tokens, items: Sequence[tuple[Cut, int]], how: How, like: Tensor, read: Sequence[Site]
) -> Passed:
    """One pass over (cut, prompt) pairs."""
    some = tokens.rows([row for _, row in items])
    edits = _edits([(cut, cut.edges[row]) for cut, row in items], how, some.width, model.info, like)
    run = model.run(some, read=read, edits=edits, logits_at=some.last)
    for edit, fired in zip(edits, run.fired, strict=True):
        wanted = sum(len(p) for p in edit.positions or () if isinstance(p, tuple))
        if fired != wanted:
            raise EditDidNotFire(f"'{edit.site}' was cut at {fired} queries instead of {wanted}; report the model.")
    assert run.logits is not None
    return Passed(run.logits, run.reads)


def _edits(
    items: Sequence[tuple[Cut, tuple[Edge, ...]]], how: How, width: int, info: ModelInfo, like: Tensor
) -> list[Edit]:
    """One edit a layer that is cut; layers cut alike share their value."""
    found: list[Edit] = []
    values: dict[tuple[tuple[int, tuple[int, ...]], ...], Tensor] = {}
    for layer in sorted({layer for cut, _ in items for layer, _ in cut.places}):
        at = [(i, heads) for i, (cut, _) in enumerate(items) if (heads := cut.heads_at(layer)) is not None]
        key = tuple(at)
        queries = [tuple(sorted({q for q, _ in items[i][1]})) for i, _ in at]
        if key not in values:
            values[key] = _value([(items[i][1], heads) for i, heads in at], queries, how, width, info, like)
        site = Site("scores" if how == "renormalise" else "pattern", layer)
        rule = "add" if how == "renormalise" else "multiply"
        found.append(
            Edit(site=site, rule=rule, rows=tuple(i for i, _ in at), positions=tuple(queries), value=values[key])
        )
    return found


def _value(
    chosen: Sequence[tuple[tuple[Edge, ...], tuple[int, ...]]], queries: Sequence[tuple[int, ...]], how: How,
    width: int, info: ModelInfo, like: Tensor,
) -> Float[Tensor, "N P h T"]:  # fmt: skip
    """What is added to the scores (minus infinity at cut edges), or what the pattern is multiplied by (0 there)."""
    heads = 1 if all(of == EVERY for _, of in chosen) else info.n_heads
    cut = like.new_zeros((len(chosen), max(map(len, queries)), heads, width)).float()
    index = [
        (i, queries[i].index(q), head, s)
        for i, (edges, of) in enumerate(chosen)
        for q, s in edges
        for head in (range(heads) if of == EVERY else of)
    ]
    cut[tuple(map(list, zip(*index, strict=True)))] = 1
    return 1 - cut if how == "zero" else cut.masked_fill(cut.bool(), float("-inf"))


def _mask_bytes(info: ModelInfo, tokens: Tokens, cuts: Sequence[Cut]) -> int:
    """Bytes of the values of one prompt at the cut that needs most; twice, for the comparison that makes them."""
    queries = max(len({q for q, _ in edges}) for cut in cuts for edges in cut.edges)
    heads = 1 if all(head is None for cut in cuts for _, head in cut.places) else info.n_heads
    layers = max(len({layer for layer, _ in cut.places}) for cut in cuts)
    return 8 * queries * heads * tokens.width * (1 if heads == 1 else layers)


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


def left_on_cut(
    model: Model, tokens: Tokens, cut: Cut, rows: Sequence[int], how: How, like: Tensor
) -> tuple[float, float]:
    """After the cut: the largest weight left on a cut edge, and how far a query's weights on what it sees miss 1."""
    sites = [Site("pattern", layer) for layer in sorted({layer for layer, _ in cut.places})]
    found = cut_pass(model, tokens, [(cut, row) for row in rows], how, like, sites)
    worst, missing = 0.0, 0.0
    for site in sites:
        heads = cut.heads_at(site.layer or 0) or range(model.info.n_heads)
        pattern = widened(found.patterns[site])[:, list(heads)]
        for i, row in enumerate(rows):
            for q, s in cut.edges[row]:
                worst = max(worst, float(pattern[i, :, q, s].abs().max()))
                missing = max(missing, float((pattern[i, :, q, : q + 1].sum(-1) - 1).abs().max()))
    return worst, missing
