"""Show where attention heads look, and score every head on a set of prompts.

Idea: the pattern of a head says, for each query position, how much of each earlier position it mixes in. Averages of
such weights tell the well-known kinds of head apart: previous token, induction, duplicate token, first token (sink).

Source: Elhage et al. 2021, https://transformer-circuits.pub/2021/framework (patterns, QK); Olsson et al., arXiv
2209.11895 (prefix-matching score); formulas in `causal/attention_scores.py`. The baseline is uniform attention.

Does not show: what is moved from there, or whether the model uses it: a pattern is a description, not a cause. Jain &
Wallace, arXiv 1902.10186: very different patterns can give the same output. Patch or ablate the head for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..causal.attention_scores import SCORES, ScoreName, scores, uniform
from ..errors import BadArguments, BadPosition, BadPrompts
from ..figures import Figure, Heatmap
from ..measures.statistics import Clusters
from ..model.batches import batches, read_bytes
from ..model.protocol import ModelInfo
from ..model.sites import Site, check_site, head_name, parse_head
from ..model.sweep_cost import row_bytes
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts, encode
from ..result import Estimate, Frozen, Grid, Result, grid
from ..technique import Context, Heads, OnPrompts

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "Attention patterns"
QUESTIONS = (
    "Where does this head look?",
    "What does L9H4 attend to?",
    "Which heads are induction or previous-token heads on these prompts?",
)
Ranking = Literal["previous_token", "induction", "duplicate_token", "first_token"]
MOST_SHOWN = 12  # heads whose patterns are drawn


class Arguments(OnPrompts):
    """Arguments of attention_patterns."""

    heads: Heads = Field(default=None, description="Heads L23H3 to show; absent: the top heads by `rank_by`.")
    rank_by: Ranking = Field(default="induction", description="Score that chooses the heads when none are named.")
    top: int = Field(default=4, ge=1, le=MOST_SHOWN, description="How many heads to show when none are named.")
    prompt: int = Field(default=0, ge=0, description="Which prompt's patterns are drawn.")
    side: Literal["clean", "corrupted"] = Field(default="clean", description="Which side of the prompts.")


class HeadScores(Frozen):
    """One head's scores over the prompts."""

    head: str = Field(description="The head.")
    scores: dict[str, Estimate] = Field(description="Mean weight by score; entropy in nats. Absent: no such position.")
    looks_at: tuple[str, ...] = Field(description="From the last token of the shown prompt: keys with most weight.")


class AttentionPatternsResult(Result):
    """Scores of heads and the patterns of the shown ones."""

    heads: tuple[HeadScores, ...] = Field(description="The heads shown, best first.")
    patterns: tuple[Grid, ...] = Field(description="Per head shown: query position by key position, weights.")
    all_scores: tuple[Grid, ...] = Field(description="Per score: layer by head, mean over prompts.")
    baseline: dict[str, float] = Field(description="Each score of uniform attention on the same prompts.")
    defined_on: dict[str, int] = Field(description="Per score: prompts that have a position it is defined on.")
    prompt: int = Field(description="Which prompt the patterns are of.")
    tokens: tuple[str, ...] = Field(description="Its tokens.")


class Scored(NamedTuple):
    """Scores of every head: per score [rows, layers, heads] and the rows it is defined on."""

    values: dict[ScoreName, ndarray]
    defined: dict[ScoreName, ndarray]


def run(context: Context, arguments: Arguments) -> AttentionPatternsResult:
    """Read the patterns of every head on every prompt, score them, keep those of the shown heads.

    Raises:
        BadPrompts: no prompts, or no corrupted side where it is asked for.
        BadSite: this backend cannot give patterns, or a head that does not exist.
        BadPosition: `prompt` is not one of the prompts.
        BadArguments: too many heads, one named twice, or a ranking that no prompt defines.
    """
    model, shape = context.model, context.model.info.shape
    check_site(Site("pattern", 0), shape)
    prompts, tokens = _tokens(context, arguments)
    named = _named(arguments, context)
    found = _score_all(context, tokens)
    chosen = named or _top(found, arguments)
    clusters = prompts.clusters
    one = tokens.rows([arguments.prompt])
    reads = [read[0].float() for read in _read(context, one, chosen)]
    patterns = tuple(_pattern(context, one, place, read) for place, read in zip(chosen, reads, strict=True))
    base = scores(uniform(tokens, reads[0], causal=model.info.causal), tokens)
    baseline: dict[str, float] = {name: float(v[d].mean()) for name, (v, d) in base.items() if bool(d.any())}
    heads = tuple(
        _head_scores(found, place, clusters, arguments.seed, pattern)
        for place, pattern in zip(chosen, patterns, strict=True)
    )
    defined: dict[str, int] = {name: int(found.defined[name].sum()) for name in SCORES}
    return AttentionPatternsResult(
        summary=_summary(heads, baseline, prompts.n, arguments, bool(named)),
        warnings=_warnings(defined, prompts),
        heads=heads,
        patterns=patterns,
        all_scores=tuple(_layer_by_head(found, name) for name in SCORES if defined[name]),
        baseline=baseline,
        defined_on=defined,
        prompt=arguments.prompt,
        tokens=model.token_strings(one.ids[0]),
    )


def plot(result: AttentionPatternsResult) -> Figure:
    """One square per head, on one scale."""
    panels = tuple(
        Heatmap(title=f"{head.head}: weight of query (row) on key", grid=pattern, diverging=False, domain=(0, 1))
        for head, pattern in zip(result.heads, result.patterns, strict=True)
    )
    return Figure(
        title=f"Attention of {', '.join(h.head for h in result.heads)}",
        caption=f"Attention weights on prompt {result.prompt}, rows sum to 1. Where a head looks, not what it moves.",
        panels=panels,
        columns=2 if len(panels) > 1 else 1,
    )


def _tokens(context: Context, arguments: Arguments) -> tuple[EncodedPrompts, Tokens]:
    if context.prompts is None:
        raise BadPrompts("there are no prompts; give a handle from make_prompts or a list of prompts.")
    need = ("corrupted",) if arguments.side == "corrupted" else ()
    prompts = encode(context.prompts, context.model, bos=arguments.bos, need=need)
    tokens = prompts.corrupted if arguments.side == "corrupted" else prompts.clean
    assert tokens is not None
    if arguments.prompt >= prompts.n:
        raise BadPosition(f"prompt {arguments.prompt} does not exist: there are {prompts.n} (0 to {prompts.n - 1}).")
    return prompts, tokens


def _named(arguments: Arguments, context: Context) -> list[tuple[int, int]]:
    if arguments.heads is None:
        return []
    places = [parse_head(text, context.model.info.shape) for text in arguments.heads]
    if not places or len(set(places)) < len(places) or len(places) > MOST_SHOWN:
        raise BadArguments(f"heads {list(arguments.heads)}: name 1 to {MOST_SHOWN}, each once; or leave `heads` out.")
    return places


def _score_all(context: Context, tokens: Tokens) -> Scored:
    """Every head's scores, a batch of prompts and a few layers at a time."""
    import numpy as np

    info = context.model.info
    shape = (tokens.n_rows, info.n_layers, info.n_heads)
    values: dict[ScoreName, ndarray] = {name: np.zeros(shape) for name in SCORES}
    defined: dict[ScoreName, ndarray] = {name: np.zeros(tokens.n_rows, dtype=bool) for name in SCORES}
    groups = _layer_groups(info, tokens, context.budget_bytes)
    done, total = 0, tokens.n_rows * len(groups)
    for sites in groups:
        own = _working_bytes(info, tokens)
        for rows in batches(info, tokens, sites, context.budget_bytes, extra=own):
            context.progress(done, total, "reading attention patterns")
            batch = tokens.rows(rows)
            reads = context.model.run(batch, read=sites).reads
            for site in sites:
                for name, (value, where) in scores(reads[site].float(), batch).items():
                    values[name][list(rows), site.layer] = value.cpu().numpy()
                    defined[name][list(rows)] = where.cpu().numpy()
            done += len(rows)
    return Scored(values, defined)


def _working_bytes(info: ModelInfo, tokens: Tokens) -> int:
    """What the scores of one layer and prompt take: the pattern in float32, twice over, and where it counts."""
    return (8 * info.n_heads + 8) * tokens.width**2


def _layer_groups(info: ModelInfo, tokens: Tokens, budget: int) -> list[list[Site]]:
    """Layers that one pass reads: all of them, unless the patterns of the longest prompt would not fit."""
    sites = [Site("pattern", layer) for layer in range(info.n_layers)]
    room = budget - row_bytes(info, tokens.width, None) - _working_bytes(info, tokens)
    at_once = max(1, room // read_bytes(info, sites[0], tokens.width))
    return [sites[i : i + at_once] for i in range(0, len(sites), at_once)]


def _top(found: Scored, arguments: Arguments) -> list[tuple[int, int]]:
    rows = found.defined[arguments.rank_by]
    if not rows.any():
        raise BadArguments(
            f"no prompt has a position that {arguments.rank_by} is defined on (a token that occurs again); name heads, "
            "rank by another score, or use prompts with repeated tokens (make_prompts, task 'induction')."
        )
    mean = found.values[arguments.rank_by][rows].mean(0)
    order = (-mean).ravel().argsort(kind="stable")[: arguments.top]
    return [(int(i) // mean.shape[1], int(i) % mean.shape[1]) for i in order]


def _read(context: Context, one: Tokens, places: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The patterns of some heads on one prompt, [1, T, T] each."""
    sites = [Site("pattern", layer, head) for layer, head in places]
    reads = context.model.run(one, read=sites).reads
    return [reads[site] for site in sites]


def _pattern(context: Context, one: Tokens, place: tuple[int, int], read: Tensor) -> Grid:
    """One head's pattern with a label a position; what a query cannot see is left out."""
    name = head_name(*place)
    context.keep(f"pattern_{name}", read, axes=("query", "key"), unit="weight")
    labels = [one.label(0, p) for p in range(one.width)]
    lower = [v if j <= p else None for p, row in enumerate(read.tolist()) for j, v in enumerate(row)]
    return grid(f"attention of {name}", "weight", [("query", labels), ("key", labels)], lower)


def _head_scores(
    found: Scored, place: tuple[int, int], labels: tuple[str, ...], seed: int, pattern: Grid
) -> HeadScores:
    layer, head = place
    means = {}
    for name in SCORES:
        rows = found.defined[name]
        if rows.any():
            kept = [label for label, there in zip(labels, rows, strict=True) if there]
            means[name] = Clusters(kept, seed=seed).means(found.values[name][rows, layer, head]).estimate()
    return HeadScores(head=head_name(layer, head), scores=means, looks_at=_looks_at(pattern))


def _looks_at(pattern: Grid) -> tuple[str, ...]:
    """The three keys that the last query weighs most."""
    assert pattern.values is not None
    keys = pattern.axes[1].labels
    last = pattern.values[-len(keys) :]
    best = sorted(range(len(keys)), key=lambda j: -(last[j] or 0.0))[:3]
    return tuple(f"{keys[j]} {last[j] or 0.0:.2f}" for j in best)


def _layer_by_head(found: Scored, name: ScoreName) -> Grid:
    mean = found.values[name][found.defined[name]].mean(0)
    unit = "nats" if name == "entropy" else "weight"
    layers, heads = mean.shape
    return grid(name, unit, [("layer", range(layers)), ("head", range(heads))], mean.ravel().tolist())


def _summary(
    heads: tuple[HeadScores, ...], baseline: dict[str, float], n: int, arguments: Arguments, named: bool
) -> str:
    by = None if named else arguments.rank_by
    told = "; ".join(f"{h.head}: {_kinds(h, baseline, by)}, at the last token {', '.join(h.looks_at)}" for h in heads)
    how = "" if named else f", chosen by {arguments.rank_by}"
    return (
        f"Heads on {n} prompts ({arguments.side} side{how}). {told}. Weights say where a head looks, not what it moves "
        "or whether the model uses it: patch or ablate it for that."
    )


def _kinds(head: HeadScores, baseline: dict[str, float], ranked: str | None) -> str:
    """The score that chose the head, and the one furthest above uniform attention."""
    above = {name: e.mean - baseline[name] for name, e in head.scores.items() if name != "entropy"}
    if not above:
        return "no score is defined"
    shown = dict.fromkeys(name for name in (ranked, max(above, key=lambda k: above[k])) if name is not None)
    return ", ".join(f"{name} {head.scores[name].mean:.2f} (uniform {baseline[name]:.2f})" for name in shown)


def _warnings(defined: dict[str, int], prompts: EncodedPrompts) -> tuple[str, ...]:
    few = [f"{name} is defined on {k} of {prompts.n} prompts only." for name, k in defined.items() if 0 < k < prompts.n]
    none = [f"{name} is not defined on these prompts: no token occurs again." for name, k in defined.items() if not k]
    return (*few, *none, *prompts.warnings)
