"""Sweeps by every way: the same prompts, weights and cells; values compared, seconds beside the arithmetic floor."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from anatomist.model.backends.blocks import Anatomy
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .clock import Rate, timed
from .tasks import Grid, Task, flops, make_task, pass_flops, sample
from .ways import Ours, Way

REFERENCE = "bare hooks"
ONE_BY_ONE = 6  # cells of a sampled grid that the ways with one pass a cell compute, at most
ONE_BY_ONE_FLOPS = 5e11  # arithmetic of them together, about three seconds on two cores; two cells at the least
SAMPLED_FLOPS = 4e11  # arithmetic of a sampled grid, about two seconds on two cores


class Case(NamedTuple):
    """One grid on prompts of one length and number."""

    grid: Grid
    length: int
    prompts: int
    whole: tuple[str, ...] = ()  # the ways that compute the whole grid; the others compute some of its cells
    repeats: tuple[tuple[str, int], ...] = ()  # of a way, by its name; the others run once


OURS, LENS = "anatomist", "TransformerLens bridge"
ALL = (OURS, LENS, "nnterp", "bare hooks")
WHOLE = [
    Case("residual", 14, 1, ALL, ((OURS, 5), (LENS, 2))),
    Case("head", 14, 1, ALL, ((OURS, 5),)),
    Case("residual", 14, 32, (OURS,)),
    Case("head", 14, 32),
    Case("head x position", 14, 1, (OURS,)),
    Case("neuron", 14, 1, (OURS,)),
    Case("knockout", 14, 8, (OURS,)),
]
SAMPLED = [
    Case("residual", length, prompts)
    for length in (14, 32, 64, 128)
    for prompts in (1, 8, 32)
    if (length, prompts) not in ((14, 1), (14, 32))
]
GRIDS: tuple[Grid, ...] = ("residual", "head", "head x position", "neuron", "knockout")
FULL = [Case(grid, 14, prompts, ALL, tuple((way, 3) for way in ALL)) for grid in GRIDS[:2] for prompts in (1, 32)] + [
    Case(grid, length, prompts)
    for grid in GRIDS
    for length in (14, 32, 64, 128)
    for prompts in (1, 8, 32)
    if grid not in GRIDS[:2] or (length, prompts) not in ((14, 1), (14, 32))
]


@dataclass(frozen=True)
class Row:
    """One way on one case."""

    case: str
    way: str
    seconds: float  # of the whole grid: measured, or in proportion where only some cells were computed
    spread: tuple[float, float]  # least and most of the repeats, in the same unit
    cells: int  # computed
    grid: int  # cells of the whole grid
    flops: float  # the general floor of the whole grid
    floor: float  # the same in seconds, at the best rate of the run
    max_difference: float | None  # from bare hooks on the cells that both computed, in logits

    @property
    def sampled(self) -> bool:
        return self.cells < self.grid

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "times_the_floor": self.seconds / self.floor}


class Timing(NamedTuple):
    """What one way took on a case."""

    way: str
    seconds: list[float]  # of the whole grid: measured, or reckoned from some of its cells
    chosen: list[int]  # cells of the whole grid that were computed
    values: Tensor  # [cells, prompts]


def run_case(
    case: Case, ways: Sequence[Way], anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase, rate: Rate,
    say: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """Every way on one case; our way a second time with the shared prefix where whole grids are computed."""
    task = make_task(case.grid, case.length, case.prompts, anatomy, tokenizer)
    timings: list[Timing] = []
    for way in _with_sharing(ways, task) if case.whole else ways:
        say(f"{task.name}: {way.name}")
        rate.measure(repeats=2)
        timings.append(_time(way, task, case, anatomy))
    rate.measure(repeats=2)
    return [_row(timing, timings, task, anatomy, rate) for timing in timings]


def at_rate(row: Row, rate: float) -> Row:
    """The same row with its floor at another rate."""
    return replace(row, floor=row.flops / rate)


def _with_sharing(ways: Sequence[Way], task: Task) -> Iterator[Way]:
    for way in ways:
        yield way
        if isinstance(way, Ours) and task.rule == "patch":
            yield way.sharing()


def _time(way: Way, task: Task, case: Case, anatomy: Anatomy) -> Timing:
    """Seconds for the whole grid, or for a part of it: by arithmetic for the engine, by cells for one pass a cell."""
    name = way.name.split(",")[0]
    repeats, warm = dict(case.repeats).get(name, 1), pass_flops(task, anatomy) <= ONE_BY_ONE_FLOPS
    if name in case.whole:
        return _measure(way, task, list(range(task.whole)), repeats, warm)
    part = sample(task, anatomy, SAMPLED_FLOPS)
    numbered = {cell: i for i, cell in enumerate(task.cells)}
    chosen = [numbered[cell] for cell in part.cells]
    if way.at_once:
        return _in_proportion(_measure(way, part, chosen, repeats, warm), way, part, task, anatomy)
    n = min(ONE_BY_ONE, max(2, int(ONE_BY_ONE_FLOPS / pass_flops(task, anatomy))))
    few = chosen[:: max(1, len(chosen) // n)][:n]
    return _measure(way, task.some(few), few, repeats, warm, task.whole / len(few))


def _measure(
    way: Way, task: Task, chosen: list[int], repeats: int, warm: bool, times: float = 1.0
) -> Timing:
    if warm:  # what is made once, at the first use; nothing beside passes that take seconds each
        way.prepare(task)
        way.cells(task, task.cells[:1])
    seconds, values = [], torch.empty(0)
    for _ in range(repeats):
        prepared, _none = timed(lambda: way.prepare(task))  # once for the whole grid
        taken, values = timed(lambda: way.cells(task, task.cells))
        seconds.append(prepared + taken * times)
    return Timing(way.name, seconds, chosen, values)


def _in_proportion(timing: Timing, way: Way, part: Task, task: Task, anatomy: Anatomy) -> Timing:
    """The whole grid from a part of it: the runs that a sweep makes once, found by a sweep of its cheapest cell, are
    counted once; the rest grows with the arithmetic."""
    least = task.some([len(task.cells) - 1])
    once = min(timed(lambda: way.cells(least, least.cells))[0], *timing.seconds)
    done, cheapest, all_of_it = (flops(t, anatomy) for t in (part, least, task))
    return timing._replace(
        seconds=[once + (s - once) * (all_of_it - cheapest) / (done - cheapest) for s in timing.seconds]
    )


def _row(timing: Timing, all_timings: list[Timing], task: Task, anatomy: Anatomy, rate: Rate) -> Row:
    reference = next((t for t in all_timings if t.way == REFERENCE), None)
    return Row(
        case=task.name, way=timing.way, seconds=statistics.median(timing.seconds),
        spread=(min(timing.seconds), max(timing.seconds)),
        cells=len(timing.chosen), grid=task.whole, flops=(work := flops(task, anatomy)), floor=work / rate.best,
        max_difference=None if reference is None else _difference(timing, reference),
    )  # fmt: skip


def _difference(a: Timing, b: Timing) -> float | None:
    """The largest difference on cells that both computed."""
    place = {cell: i for i, cell in enumerate(b.chosen)}
    pairs = [(i, place[cell]) for i, cell in enumerate(a.chosen) if cell in place]
    if not pairs:
        return None
    mine, theirs = (torch.tensor(index) for index in zip(*pairs, strict=True))
    return float((a.values[mine] - b.values[theirs]).detach().abs().max())
