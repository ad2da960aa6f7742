"""Interchanges at one place: the prompts that are learned from and judged on, and every control beside the subspace.

Source: Geiger et al., arXiv 2303.02536, section 3 (interchange intervention accuracy); Makelov et al., arXiv 2311.17030
(row space and null space). The maths of one interchange is in `subspaces`, what reads a place in `row_spaces`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ..errors import BadArguments, BadPrompts, Unsupported
from ..measures.statistics import Clusters, paired_difference
from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import PositionSpec, Tokens
from ..prompts.columns import Column
from ..prompts.encoding import EncodedPrompts
from ..result import Estimate
from .class_means import class_basis
from .interchanged import ClassMeans, Interchange, Place, Search, judged_in_words
from .row_spaces import halves, row_space
from .subspaces import (
    Ends,
    Examples,
    Learned,
    Outcome,
    Recipe,
    cosines,
    ends_of,
    given_basis,
    learn,
    moved,
    outcome,
    random_basis,
)
from .units import unit_name

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

HELD_OUT = 1 / 3  # of the clusters, where no prompts were kept back
FIRST_CONTROL = 1000  # seeds of random subspaces stay apart from those of searches


class Choice(Protocol):
    """The arguments that say how a place is searched."""

    @property
    def direction(self) -> Literal["both", "denoising", "noising"]: ...
    @property
    def dimension(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def seeds(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def controls(self) -> int: ...


OutcomeField = Literal["beats", "top", "difference"]
Share = Callable[[float], None]  # progress of one place, from 0 to 1


class Spot(NamedTuple):
    """A place by its site and the column of its position."""

    site: Site
    column: PositionSpec

    @property
    def name(self) -> str:
        unit = unit_name(self.site) + (f" {self.site.kind}" if self.site.index is not None else "")
        return f"{unit.removesuffix(' head')} at {self.column}"


class Split(NamedTuple):
    """Prompts to learn from and prompts to judge on."""

    discovery: EncodedPrompts
    held_out: EncodedPrompts
    words: str


def split_of(prompts: EncodedPrompts, held_out: EncodedPrompts | None, *, seed: int, learned: bool) -> Split:
    """The prompts of a generated set and those kept back; else a third of the clusters kept back, if any are needed.

    Raises:
        BadPrompts: there are too few clusters to keep some back.
    """
    if held_out is not None:
        every = set(held_out.templates)
        new = len(every - set(prompts.templates))
        words = f"the held-out part of the prompt set: other words, {new} of {len(every)} templates new"
        return Split(prompts, held_out, words)
    if not learned:
        return Split(prompts, prompts, "the prompts given: nothing is learned from them")
    labels = sorted(set(prompts.clusters))
    if len(labels) < 3:
        raise BadPrompts(
            f"{len(labels)} independent cluster(s) of prompts: some must be kept back to judge on. Give prompts with "
            "three or more different `cluster`s (names), or a handle from make_prompts."
        )
    random.Random(seed).shuffle(labels)
    back = set(labels[: max(1, round(len(labels) * HELD_OUT))])
    rows = [[i for i, c in enumerate(prompts.clusters) if (c in back) == kept] for kept in (False, True)]
    words = f"a third of the clusters of the prompts given ({len(back)} of {len(labels)}), drawn by the seed"
    return Split(prompts.rows(rows[0]), prompts.rows(rows[1]), words)


def examples_of(prompts: EncodedPrompts, column: PositionSpec, direction: str) -> Examples:
    """Interchanges of a prompt set at one position."""
    (found,) = prompts.columns((column,))
    if direction != "both":
        return _one_way(prompts, found, direction == "denoising")
    a, b = (_one_way(prompts, found, denoising) for denoising in (True, False))
    return Examples(
        base=_stack(a.base, b.base), source=_stack(a.source, b.source), wanted=(*a.wanted, *b.wanted),
        kept=(*a.kept, *b.kept), positions=a.positions + b.positions, clusters=a.clusters + b.clusters,
    )  # fmt: skip


def _one_way(prompts: EncodedPrompts, column: Column, denoising: bool) -> Examples:
    assert prompts.corrupted is not None
    assert prompts.answers is not None
    assert prompts.wrongs is not None
    base, source = (prompts.corrupted, prompts.clean) if denoising else (prompts.clean, prompts.corrupted)
    wanted, kept = (prompts.answers, prompts.wrongs) if denoising else (prompts.wrongs, prompts.answers)
    return Examples(base, source, wanted, kept, column.positions, prompts.clusters)


def _stack(a: Tokens, b: Tokens) -> Tokens:
    return Tokens(a.ids + b.ids, a.strings + b.strings, a.bos)


class Bench(NamedTuple):
    """A model with the interchanges of one place, to learn from and to judge on."""

    model: Model
    site: Site
    train: Examples
    test: Examples
    train_ends: Ends
    test_ends: Ends
    budget: int

    def judged(self, basis: Tensor | None) -> Outcome:
        value = moved(self.test_ends, basis)
        return outcome(self.model, self.test, self.site, value, self.budget)


def bench_of(model: Model, spot: Spot, split: Split, direction: str, budget: int) -> Bench:
    """Both runs of every interchange read at the place.

    Raises:
        BadArguments: the runs do not differ there.
    """
    train, test = (examples_of(p, spot.column, direction) for p in (split.discovery, split.held_out))
    ends = [ends_of(model, e, spot.site, budget) for e in (train, test)]
    if not bool((ends[0].source != ends[0].base).any()):
        raise BadArguments(
            f"{spot.name} is the same in both runs of every prompt: there is nothing to interchange. The prompts first "
            "differ later; take that position or a later one."
        )
    return Bench(model, spot.site, train, test, ends[0], ends[1], budget)


class Measured(NamedTuple):
    """A place with what is kept of it."""

    place: Place
    notes: list[str]
    bases: Tensor  # [seed, k, f], the lowest loss first
    losses: tuple[tuple[float, ...], ...]  # per seed and step
    means: Tensor | None  # [m, f], the class means' basis


def measure_place(
    model: Model, choice: Choice, spot: Spot, split: Split, given: Tensor | None, twin: Model | None, array: str,
    budget: int, progress: Share,
) -> Measured:  # fmt: skip
    """The subspace of one place, learned or given, beside every control.

    Raises:
        BadArguments: a subspace of another width, a dimension over the width, or runs that do not differ there.
        Unsupported: a backend without gradients.
    """
    bench = bench_of(model, spot, split, choice.direction, budget)
    width = bench.train_ends.base.shape[-1]
    found = _bases(choice, bench, given, width, progress, 0.9 if twin is None else 0.5)
    clusters, first = Clusters(bench.test.clusters, seed=choice.seed), found.bases[0]
    own, parts = [bench.judged(b) for b in found.bases], _parts(bench, found.bases)
    plain = None if split.discovery is split.held_out else _plain(bench, found.bases, own, clusters, choice, array)
    seeds = [FIRST_CONTROL + choice.seed + i for i in range(choice.controls)]
    chance = [bench.judged(random_basis(width, len(first), seed).to(first)) for seed in seeds]
    untouched = outcome(model, bench.test, spot.site, None, budget)
    what = "learned subspace" if given is None else "given subspace"
    twins = (None, None) if twin is None else _untrained(choice, spot, split, twin, budget, clusters, progress)
    place = Place(
        name=spot.name, width=width, dimension=len(first), array=array,
        subspace=_interchange(what, own, clusters),
        full=_interchange("whole place", [bench.judged(None)], clusters),
        none=_interchange("nothing", [untouched], clusters),
        random=_interchange("random subspace", chance, clusters) if chance else None,
        means=plain and plain.means, random_model=twins[0], random_model_none=twins[1],
        row_space=_interchange("subspace in the row space", parts.row, clusters) if parts.row else None,
        null_space=_interchange("subspace in the null space", parts.null, clusters) if parts.null else None,
        row_share=parts.share, null_dimensions=parts.dimensions, searches=found.searches,
        agreement=_agreement(found.bases),
    )  # fmt: skip
    notes = [*parts.notes, *judged_in_words(place)]
    losses = tuple(one.losses for one in found.learned)
    return Measured(place, notes, _stacked(found.bases), losses, plain and plain.basis)


class Found(NamedTuple):
    """The subspaces of one place, the one with the lowest loss first."""

    bases: list[Tensor]
    searches: tuple[Search, ...]
    learned: list[Learned]


def _bases(
    choice: Choice, bench: Bench, given: Tensor | None, width: int, progress: Share, until: float
) -> Found:
    if given is not None:
        return Found([given_basis(given, width).to(bench.train_ends.base.device)], (), [])
    if choice.dimension > width:
        raise BadArguments(f"dimension {choice.dimension} is more than the {width} features of {bench.site}.")
    found: list[tuple[Search, Learned]] = []
    for s in range(choice.seeds):
        seed = choice.seed + s
        one = learn(
            bench.model, bench.train, bench.site, bench.train_ends, _recipe(choice, seed), bench.budget,
            lambda share, s=s: progress(until * (s + share) / choice.seeds),
        )  # fmt: skip
        accuracies = [
            float(outcome(bench.model, examples, bench.site, moved(ends, one.basis), bench.budget).beats.mean())
            for examples, ends in ((bench.train, bench.train_ends), (bench.test, bench.test_ends))
        ]
        search = Search(seed=seed, loss=one.final, discovery=accuracies[0], held_out=accuracies[1])
        found.append((search, one))
    found.sort(key=lambda pair: pair[0].loss)
    return Found([one.basis for _, one in found], tuple(s for s, _ in found), [one for _, one in found])


def _recipe(choice: Choice, seed: int) -> Recipe:
    return Recipe(choice.dimension, choice.steps, choice.batch, choice.rate, seed)


def _untrained(
    choice: Choice, spot: Spot, split: Split, twin: Model, budget: int, clusters: Clusters, progress: Share,
) -> tuple[Interchange, Interchange]:  # fmt: skip
    """The same search in an untrained model, once; and nothing interchanged there."""
    bench = bench_of(twin, spot, split, choice.direction, budget)
    one = learn(
        twin, bench.train, bench.site, bench.train_ends, _recipe(choice, choice.seed), bench.budget,
        lambda share: progress(0.5 + 0.45 * share),
    )  # fmt: skip
    untouched = outcome(twin, bench.test, bench.site, None, budget)
    return (
        _interchange("search in an untrained model", [bench.judged(one.basis)], clusters),
        _interchange("nothing, untrained model", [untouched], clusters),
    )


class Plain(NamedTuple):
    """The class means of the prompts learned from, judged as the subspace was."""

    means: ClassMeans
    basis: Tensor  # [m, f]


def _plain(
    bench: Bench, bases: Sequence[Tensor], own: Sequence[Outcome], clusters: Clusters, choice: Choice, array: str
) -> Plain:
    found = class_basis(bench.train_ends, bench.train.kept, bench.train.wanted, len(bases[0]))
    outcomes = [bench.judged(found.basis)]
    gain = paired_difference(
        _averaged(own, "beats"), _averaged(outcomes, "beats"), bench.test.clusters, seed=choice.seed
    )
    angles = [c for b in bases for c in cosines(b, found.basis)]
    judged = _interchange("class means, no search", outcomes, clusters)
    means = ClassMeans(
        **dict(judged), gain=gain, cosine=sum(angles) / len(angles), classes=found.classes,
        dimension=len(found.basis), from_means=found.from_means, array=f"{array}-means",
    )  # fmt: skip
    return Plain(means, found.basis.cpu())


class Parts(NamedTuple):
    """The subspaces' parts in the row space and the null space of what follows."""

    row: list[Outcome]
    null: list[Outcome]
    share: float | None
    dimensions: int | None
    notes: list[str]


def _parts(bench: Bench, bases: Sequence[Tensor]) -> Parts:
    try:
        read = row_space(bench.model, bench.site)
    except Unsupported as error:
        return Parts([], [], None, None, [f"No row space: {error}"])
    if read is None:
        note = f"{bench.site}: queries and keys are read by each other, not by fixed weights: no row or null space."
        return Parts([], [], None, None, [note])
    split = [halves(b, read.to(b.device)) for b in bases]
    row = [bench.judged(h.row) for h in split if h.row is not None]
    null = [bench.judged(h.null) for h in split if h.null is not None]
    return Parts(row, null, sum(h.share for h in split) / len(split), split[0].null_dimensions, [])


def _interchange(what: str, outcomes: Sequence[Outcome], clusters: Clusters) -> Interchange:
    """Averaged over seeds or draws, prompt by prompt."""

    def mean(field: OutcomeField) -> Estimate:
        return clusters.means(_averaged(outcomes, field)).estimate()

    return Interchange(what=what, accuracy=mean("beats"), top1=mean("top"), logit_diff=mean("difference"))


def _averaged(outcomes: Sequence[Outcome], field: OutcomeField) -> ndarray:
    """Per interchange, [N]."""
    values: list[ndarray] = [getattr(o, field).double().numpy() for o in outcomes]
    return sum(values[1:], values[0]) / len(values)


def _stacked(bases: Sequence[Tensor]) -> Tensor:
    out = bases[0].new_empty((len(bases), *bases[0].shape))
    for i, basis in enumerate(bases):
        out[i] = basis
    return out.cpu()


def _agreement(bases: Sequence[Tensor]) -> float | None:
    pairs = [(a, b) for i, a in enumerate(bases) for b in bases[:i]]
    means = [sum(c) / len(c) for c in (cosines(a, b) for a, b in pairs)]
    return sum(means) / len(means) if means else None
