"""What is swept: prompts of a given length and number, the cells of a grid, and the arithmetic they cannot avoid."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pydoc_data.topics import topics
from typing import Literal

from anatomist.measures.metrics import Metric
from anatomist.model.backends.blocks import Anatomy
from anatomist.model.sites import Site
from anatomist.model.sweep_plan import Cell, SweepPlan
from anatomist.model.tokens import Tokens
from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
Grid = Literal["residual", "head", "head x position", "neuron", "knockout"]
NAMES = (
    "Mary", "John", "Anna", "Paul", "Tom", "Sarah", "Kate", "James", "Robert", "David", "Michael", "Peter", "Alice",
    "Mark", "Laura", "Emma", "Daniel", "Simon",
)  # fmt: skip
IOI = "When {a} and {b} went to the shops, {c} gave the bag to"
NEURONS = 64  # of each of three layers
WINDOW = 6  # layers in which an edge is cut
SOURCES = {"first name": 13, "second name": 11, "its repetition": 5, "last but one": 2}  # tokens from the end
RULES: dict[Grid, Literal["zero", "cut"]] = {"neuron": "zero", "knockout": "cut"}


@dataclass(frozen=True)
class Task:
    """A grid of cells on prompts. `patch` writes the source run's activations, `zero` zeros, `cut` cuts edges."""

    grid: Grid
    base: tuple[Ids, ...]
    source: tuple[Ids, ...]
    answers: tuple[int, ...]
    wrongs: tuple[int, ...]
    rule: Literal["patch", "zero", "cut"]
    cells: tuple[Cell, ...]
    whole: int  # cells of the whole grid, of which `cells` may be a sample

    @property
    def length(self) -> int:
        return len(self.base[0])

    @property
    def n_prompts(self) -> int:
        return len(self.base)

    @property
    def name(self) -> str:
        return f"{self.grid}, {self.length} tokens, {self.n_prompts} prompt{'s' * (self.n_prompts > 1)}"

    def some(self, cells: Sequence[int]) -> Task:
        return replace(self, cells=tuple(self.cells[i] for i in cells))

    def plan(self, *, share_prefix: bool) -> SweepPlan:
        """The same sweep for our engine. Rule 'resample' writes what 'patch' does and leaves no prefix out."""
        base = _tokens(self.base)
        rule = self.rule if self.rule != "patch" else "patch" if share_prefix else "resample"
        metric = Metric("logit_diff", [(a,) for a in self.answers], [(w,) for w in self.wrongs])
        return SweepPlan(
            base=base, source=_tokens(self.source) if self.rule == "patch" else None, cells=self.cells,
            metrics=(metric,), read_at=base.last, rule=rule,
        )  # fmt: skip


def make_task(grid: Grid, length: int, n_prompts: int, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase) -> Task:
    """IOI pairs of one length: names differ from prompt to prompt, longer prompts have plain text in front."""
    pairs = _pairs(n_prompts, tokenizer)
    base, source = zip(*(_prompts(a, b, length, tokenizer) for a, b in pairs), strict=True)
    names = [(_one(a, tokenizer), _one(b, tokenizer)) for a, b in pairs]
    cells = tuple(_cells(grid, length, n_prompts, anatomy))
    return Task(
        grid, base, source, tuple(a for a, _ in names), tuple(b for _, b in names),
        RULES.get(grid, "patch"), cells, len(cells),
    )  # fmt: skip


def flops(task: Task, anatomy: Anatomy) -> float:
    """The general floor: layers from the cell's on, positions from the cell's on, one row of logits a cell and prompt.

    Attention over other tokens is left out, and so are all savings that are not general (a shared prefix, two rows of
    the unembedding, the last layer's read position): the same count for everyone.
    """
    sizes = anatomy.sizes
    total = 0.0
    for cell in task.cells:
        first = 0 if cell.positions is None else cell.positions[0][0]
        layers = sizes.n_layers - (cell.sites[0].layer or 0)
        total += 2.0 * block_parameters(anatomy) * layers * (task.length - first) + 2.0 * sizes.d_model * sizes.d_vocab
    return total * task.n_prompts


def pass_flops(task: Task, anatomy: Anatomy) -> float:
    """Of one whole forward pass of all prompts: what the ways with one pass a cell pay for each cell."""
    blocks = 2.0 * block_parameters(anatomy) * anatomy.sizes.n_layers
    return (blocks + 2.0 * anatomy.sizes.d_model * anatomy.sizes.d_vocab) * task.length * task.n_prompts


def block_parameters(anatomy: Anatomy) -> int:
    """Numbers in the matrices of one block."""
    block = anatomy.blocks[0]
    parts = {id(x.linear.module): x.linear for x in (block.q, block.k, block.v)}
    matrices = [*parts.values(), block.o, block.mlp_in, block.mlp_out, *([block.mlp_gate] if block.mlp_gate else [])]
    return sum(matrix.weight.numel() for matrix in matrices)


def sample(task: Task, anatomy: Anatomy, most_flops: float) -> Task:
    """A random part of the grid that costs about so much arithmetic, in the grid's order."""
    order = random.Random(0).sample(range(len(task.cells)), len(task.cells))
    each = flops(task, anatomy) / len(task.cells)
    return task.some(sorted(order[: max(6, int(most_flops / each))]))


def _cells(grid: Grid, length: int, n: int, anatomy: Anatomy) -> list[Cell]:
    layers, heads = range(anatomy.sizes.n_layers), range(anatomy.sizes.n_heads)

    def at(p: int) -> tuple[Ids, ...]:
        return ((p,),) * n

    if grid == "residual":
        return [Cell((Site("resid_pre", i),), at(p)) for i, p in itertools.product(layers, range(length))]
    if grid == "head":
        return [Cell((Site("head", i, h),)) for i, h in itertools.product(layers, heads)]
    if grid == "head x position":
        pairs = itertools.product(layers, heads, range(length))
        return [Cell((Site("head", i, h),), at(p)) for i, h, p in pairs]
    if grid == "knockout":
        windows = [tuple(Site("scores", i) for i in layers[start : start + WINDOW]) for start in layers]
        pairs = itertools.product(windows, SOURCES.values())
        return [Cell(sites, at(length - 1), keys=(((length - back,),),) * n) for sites, back in pairs]
    three = (0, len(layers) // 2, len(layers) - 2)
    return [Cell((Site("neuron", i, f),)) for i, f in itertools.product(three, range(NEURONS))]


def _pairs(n: int, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    single = [name for name in NAMES if len(tokenizer(" " + name).input_ids) == 1]
    pairs = list(itertools.permutations(single, 2))
    return [pairs[0], *random.Random(0).sample(pairs[1:], n - 1)]


def _prompts(a: str, b: str, length: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """Ids of the corrupted and of the clean prompt."""
    filling = tokenizer(topics["assert"]).input_ids

    def ids(c: str) -> Ids:
        ioi = tokenizer(IOI.format(a=b, b=a, c=c)).input_ids
        assert len(ioi) <= length <= len(ioi) + len(filling), f"no prompt of {length} tokens"
        return (*filling[: length - len(ioi)], *ioi)

    return ids(a), ids(b)


def _one(name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer(" " + name).input_ids[0]


def _tokens(ids: tuple[Ids, ...]) -> Tokens:
    return Tokens(ids, tuple(tuple(map(str, row)) for row in ids), bos=False)
