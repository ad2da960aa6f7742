"""Two sets of texts that differ in a concept, as rows of one model with labels, and their activations at chosen places.

n examples (an example is one position, or the mean over positions, of one text), D model width. Label 1 is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from ..errors import BadArguments
from ..measures.labels import split_by_group
from ..model.batches import batches
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import PositionSpec, Tokens
from ..prompts.columns import resolve
from ..prompts.encoding import encode
from ..prompts.prompt_set import PromptSet
from ..result import Frozen

if TYPE_CHECKING:
    from numpy import ndarray

FEW = 20  # examples of a label in a part; with fewer a held-out figure says little


class TwoSets(Frozen):
    """The arguments that name two sets of texts and where they are read."""

    positive: tuple[str | tuple[int, ...], ...] = Field(
        default=(), description="Texts (or token ids) that have the concept; absent: the clean prompts."
    )
    negative: tuple[str | tuple[int, ...], ...] = Field(
        default=(), description="Texts that lack it; absent: the corrupted prompts."
    )
    paired: bool = Field(
        default=False, description="positive[i] and negative[i] belong together: no split or shuffle tears them apart."
    )
    position: PositionSpec = Field(
        default="last", description="Where texts are read: 'last', an integer, a role, a token, 'mean' or 'all'."
    )
    held_out_share: float = Field(
        default=0.3, gt=0, lt=1, description="Share of the groups kept back for testing, where no held-out part exists."
    )


@dataclass(frozen=True)
class Labelled:
    """Texts with a label, a group and the positions that are read; R rows."""

    tokens: Tokens
    labels: tuple[int, ...]  # per row: 1 positive, 0 negative
    groups: tuple[str, ...]  # per row: rows of one group stay together
    positions: tuple[tuple[int, ...], ...]  # per row, BOS counted
    averaged: bool  # whether a row's positions are averaged into one example
    warnings: tuple[str, ...] = ()

    def rows(self, index: Sequence[int]) -> Labelled:
        """Some of the rows."""
        pick: Callable = lambda values: tuple(values[i] for i in index)  # noqa: E731
        return Labelled(
            self.tokens.rows(index), pick(self.labels), pick(self.groups), pick(self.positions), self.averaged,
            self.warnings,
        )  # fmt: skip

    @property
    def of_example(self) -> tuple[int, ...]:
        """The row of every example."""
        times = [1 if self.averaged else len(places) for places in self.positions]
        return tuple(row for row, n in enumerate(times) for _ in range(n))

    def per_example(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Labels and groups of the examples."""
        of = self.of_example
        return tuple(self.labels[row] for row in of), tuple(self.groups[row] for row in of)


def two_sets(
    model: Model, given: TwoSets, prompts: PromptSet | None, *, bos: bool | None, part: str = ""
) -> Labelled:
    """The rows that the arguments mean: given texts, or clean prompts (positive) against corrupted ones.

    Raises:
        BadArguments: neither or both ways are used, a side is empty, or pairs that do not match in number.
        BadPrompts, BadPosition: from tokenising and from the positions.
    """
    if bool(given.positive or given.negative) == (prompts is not None):
        raise BadArguments(
            "give either `positive` and `negative` texts, or `prompts` whose clean texts are set against their "
            "corrupted ones; one of the two."
        )
    if prompts is not None:
        return _from_prompts(model, given, prompts, bos, part)
    if not given.positive or not given.negative:
        raise BadArguments("both `positive` and `negative` need at least one text; a direction is a contrast.")
    return _from_texts(model, given, bos)


def _from_texts(model: Model, given: TwoSets, bos: bool | None) -> Labelled:
    above, below = len(given.positive), len(given.negative)
    if given.paired and above != below:
        raise BadArguments(f"{above} positive and {below} negative texts are no pairs; give as many of each.")
    tokens = model.tokenize([*given.positive, *given.negative], bos=bos)
    names = [f"text {i}" for i in range(above)]
    names += names if given.paired else [f"text {above + i}" for i in range(below)]
    positions, averaged = _positions(tokens, {}, given.position)
    return Labelled(tokens, (1,) * above + (0,) * below, tuple(names), positions, averaged)


def _from_prompts(model: Model, given: TwoSets, prompts: PromptSet, bos: bool | None, part: str) -> Labelled:
    encoded = encode(prompts, model, bos=bos, need=("corrupted",))
    assert encoded.corrupted is not None
    tokens = Tokens(
        encoded.clean.ids + encoded.corrupted.ids, encoded.clean.strings + encoded.corrupted.strings, encoded.clean.bos
    )
    roles = {role: places * 2 for role, places in encoded.roles.items()}
    positions, averaged = _positions(tokens, roles, given.position)
    groups = tuple(f"{part}{cluster}" for cluster in encoded.clusters)
    return Labelled(tokens, (1,) * encoded.n + (0,) * encoded.n, groups * 2, positions, averaged, encoded.warnings)


def _positions(
    tokens: Tokens, roles: dict[str, tuple[int, ...]], spec: PositionSpec
) -> tuple[tuple[tuple[int, ...], ...], bool]:
    if spec in ("mean", "all"):
        return tuple(tuple(range(tokens.bos, n)) for n in tokens.lengths), spec == "mean"
    (column,) = resolve(tokens, roles, (spec,))
    return tuple((place,) for place in column.positions), True


def fit_and_held_out(
    model: Model, given: TwoSets, prompts: PromptSet | None, held_out: PromptSet | None, *, bos: bool | None, seed: int
) -> tuple[Labelled, Labelled]:
    """The part to fit on and the part to test on: the prompts' own held-out part, or a split that keeps groups whole.

    Raises:
        BadArguments, BadPrompts, BadPosition: see `two_sets` and `split_by_group`.
    """
    found = two_sets(model, given, prompts, bos=bos)
    if prompts is not None and held_out is not None:
        return found, two_sets(model, given, held_out, bos=bos, part="held out ")
    parts = split_by_group(found.labels, found.groups, given.held_out_share, seed)
    return found.rows(parts[0]), found.rows(parts[1])


def few_examples(parts: Sequence[Labelled]) -> tuple[str, ...]:
    """A warning where a part has few groups of a label."""
    kinds = [{(y, g) for y, g in zip(p.labels, p.groups, strict=True)} for p in parts]
    fewest = min(sum(y == label for y, _ in kind) for kind in kinds for label in (0, 1))
    if fewest >= FEW:
        return ()
    return (
        f"A part has only {fewest} independent texts of one label: separation is rough, and a direction found on so "
        f"few is mostly noise in a wide model. Give {FEW} or more of each label in each part.",
    )


def activations(
    model: Model, labelled: Labelled, sites: Sequence[Site], budget_bytes: int, *, edits: Sequence[Edit] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Site, ndarray]:  # fmt: skip
    """Activations of every example at each site, float32 [n, D], in the rows' order.

    `edits` act at the positions that are read, in every row (edits that name positions keep their own).

    Raises:
        BadArguments: a site whose activations are not of the model's width.
        WouldNotFit: see `batches`.
    """
    import numpy as np

    of, width = labelled.of_example, model.info.d_model
    start = {row: len(of) - len(of[of.index(row) :]) for row in dict.fromkeys(of)}
    found = {site: np.empty((len(of), width), dtype=np.float32) for site in sites}
    done = 0
    for rows in batches(model.info, labelled.tokens, sites, budget_bytes):
        part = labelled.rows(rows)
        here = tuple(edit if edit.positions is not None else _at(edit, part.positions) for edit in edits)
        reads = model.run(part.tokens, read=tuple(sites), edits=here).reads
        for site, x in reads.items():
            if x.dim() != 3 or x.shape[-1] != width:
                raise BadArguments(f"{site} is not of the model's width {width}; choose a residual, or an output.")
            for i, (row, places) in enumerate(zip(rows, part.positions, strict=True)):
                taken = x[i, list(places)].float()
                taken = taken.mean(0, keepdim=True) if labelled.averaged else taken
                found[site][start[row] : start[row] + len(taken)] = taken.cpu().numpy()
        done += len(rows)
        progress(done, labelled.tokens.n_rows)
    return found


def _at(edit: Edit, positions: tuple[tuple[int, ...], ...]) -> Edit:
    return replace(edit, positions=positions)
