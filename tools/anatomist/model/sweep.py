"""Sweeps: a grid of edits as one batched computation that says what it did, what it cost and how it knows.

    plan = SweepPlan(base=corrupted, source=clean, cells=cells, metrics=metrics, read_at=corrupted.last)
    result = sweep(model, plan, progress, budget_bytes)
    result.values        [M, C, B]: every metric of every cell on every row
    result.path          'generic', 'fast' or 'fast+shared-prefix', and `result.reason` why

Two engines take the same plan (`sweep_plan.py`): the generic one sends cells x rows through `Model.run`; the fast one
(`fast/`) computes only what a cell can change. The fast one is used on a model only after `prove` has compared random
cells of both on that very model, and every sweep recomputes a few of its own cells the generic way.
"""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import EditDidNotFire, NotFinite, Unsupported
from ..measures.metrics import Metric
from ..result import SelfTest
from .protocol import Model
from .sites import Site, SiteKind
from .sweep_generic import GenericEngine
from .sweep_plan import CUTTABLE, SWEEPABLE, Cell, Engine, Measured, SweepPlan, SweepProgress, Work, check_plan
from .tokens import first_difference

Path = Literal["generic", "fast", "fast+shared-prefix"]
BUDGET = 2 * 1024**3  # bytes beyond the weights, where the caller names none
SPOT_CELLS, SPOT_ROWS = 3, 4  # of every fast sweep that are recomputed the generic way
PROOF_LENGTHS = (7, 5)  # two rows, so that a ragged batch is part of the proof


@dataclass(frozen=True)
class Proof:
    """What comparing the fast engine with whole forward passes gave, on one model."""

    fast: bool  # whether the fast engine may be used
    reason: str
    cells: int  # compared
    max_difference: float | None  # in logits; None where nothing could be compared
    tolerance: float


@dataclass(frozen=True, eq=False)
class SweepResult:
    """A finished sweep; tensors are float32."""

    values: Float[Tensor, "M C B"]
    base_values: Float[Tensor, "M B"]
    source_values: Float[Tensor, "M B"] | None
    fired: tuple[int, ...]  # per cell: places written, counted while writing; needless ones count too
    path: Path
    reason: str
    work: Work
    seconds: float
    self_tests: tuple[SelfTest, ...]


def silent(done: float, total: float, what: str) -> None:
    """Progress that nobody looks at."""


def sweep(
    model: Model,
    plan: SweepPlan,
    progress: SweepProgress = silent,
    budget_bytes: int = BUDGET,
    *,
    path: Literal["auto", "generic"] = "auto",
    spot_check: bool = True,
) -> SweepResult:
    """Compute every cell on every row, by the fastest way that is proven on this model.

    With `spot_check` a few random cells of a fast sweep are recomputed by whole forward passes: a self-test.

    Raises:
        BadArguments, BadSite, BadPosition, BadPrompts: from `check_plan`.
        WouldNotFit: one row does not fit in the budget.
        EditDidNotFire: a cell wrote fewer or more places than it asks for.
        NotFinite: a metric is NaN or infinite.
        Cancelled: raised by `progress` between chunks.
    """
    start = time.perf_counter()
    check_plan(plan, model.info)
    engine, reason = choose(model, plan, path, progress)
    with torch.no_grad():
        measured = engine.measure(plan, progress, budget_bytes)
        _check(plan, measured)
        fast = not isinstance(engine, GenericEngine)
        tests = _spot_check(model, plan, measured, budget_bytes) if fast and spot_check else ()
    name: Path = "generic" if not fast else "fast+shared-prefix" if measured.shared_prefix else "fast"
    return SweepResult(
        measured.values, measured.base_values, measured.source_values, measured.fired, name, reason, measured.work,
        time.perf_counter() - start, tests,
    )  # fmt: skip


def choose(
    model: Model, plan: SweepPlan, path: Literal["auto", "generic"] = "auto", progress: SweepProgress = silent
) -> tuple[Engine, str]:
    """The engine for this plan, and why."""
    if path == "generic":
        return GenericEngine(model), "the generic path was asked for"
    proof = prove(model, progress)
    if not proof.fast:
        return GenericEngine(model), proof.reason
    engine = fast_engine(model)
    refusal = engine.refuses(plan)
    return (GenericEngine(model), refusal) if refusal else (engine, proof.reason)


def fast_engine(model: Model) -> Engine:
    """The fast engine of this model. It is built anew each time: kept, it would keep the weights of a closed model.

    Raises:
        Unsupported: the architecture is not one the fast engine knows.
    """
    from .fast import engine

    return engine(model)


_PROOFS: weakref.WeakKeyDictionary[Model, Proof] = weakref.WeakKeyDictionary()


def prove(model: Model, progress: SweepProgress = silent) -> Proof:
    """Compare random cells of every kind of place between both engines; kept per model.

    The tolerance is 1e-4 in float32; in narrower types four rounding steps of the largest logit.
    """
    if model not in _PROOFS:
        with torch.no_grad():
            _PROOFS[model] = _prove(model, at_the_start(progress, "comparing the fast engine with whole passes"))
    return _PROOFS[model]


def at_the_start(progress: SweepProgress, what: str) -> SweepProgress:
    """Progress of a preliminary: it moves no bar, and it can be cancelled."""
    return lambda done, total, _: progress(0, 1, what)


def _prove(model: Model, progress: SweepProgress) -> Proof:
    try:
        engine = fast_engine(model)
    except Unsupported as error:
        return Proof(False, f"generic path: {error}", 0, None, 0.0)
    worst, cells, tolerance = 0.0, 0, 0.0
    for plan in _proof_plans(model):
        if engine.refuses(plan):
            continue
        a, b = (e.measure(plan, progress, BUDGET) for e in (engine, GenericEngine(model)))
        tolerance = max(tolerance, tolerance_of(model, b.values))
        worst = max(worst, float((a.values - b.values).abs().max()), float((a.base_values - b.base_values).abs().max()))
        cells += len(plan.cells)
        if a.fired != b.fired or not worst <= tolerance:
            return Proof(
                False, f"generic path: on this model the fast engine differs from whole forward passes by {worst:.2g} "
                f"logits in {cells} random cells (accepted: {tolerance:.2g})", cells, worst, tolerance,
            )  # fmt: skip
    if not cells:
        return Proof(False, "generic path: the fast engine takes none of the proof's sweeps", 0, None, 0.0)
    reason = f"{cells} random cells agree with whole forward passes on this model (to {worst:.1e} logits)"
    return Proof(True, reason, cells, worst, tolerance)


def tolerance_of(model: Model, values: Float[Tensor, "*any"]) -> float:
    """1e-4, or four rounding steps of the largest value where the model's type is coarser than that."""
    dtype = getattr(torch, model.info.dtype.removeprefix("torch."))
    return max(1e-4, 4 * torch.finfo(dtype).eps * float(values.abs().max()))


def _proof_plans(model: Model) -> list[SweepPlan]:
    """Random cells of every kind, patched between two random runs with a shared beginning, and some of them zeroed."""
    chosen = random.Random(0)
    n_vocab = model.info.d_vocab
    base = [[chosen.randrange(n_vocab) for _ in range(n)] for n in PROOF_LENGTHS]
    source = [row[:2] + [chosen.randrange(n_vocab) for _ in row[2:]] for row in base]
    runs = model.tokenize(base, bos=False), model.tokenize(source, bos=False)
    pairs = [chosen.sample(range(n_vocab), 2) for _ in base]
    metric = (Metric("logit_diff", [(a,) for a, _ in pairs], [(b,) for _, b in pairs]),)
    cells = tuple(c for kind in sorted(SWEEPABLE & set(model.info.sites)) for c in _random_cells(model, kind, chosen))
    patch = SweepPlan(base=runs[0], source=runs[1], cells=cells, metrics=metric, read_at=runs[0].last)
    plans = [patch, replace(patch, rule="zero", source=None, cells=cells[1::3])]
    cut = tuple(c for kind in sorted(CUTTABLE & set(model.info.sites)) for c in _random_cuts(model, kind, chosen))
    return plans if not cut else [*plans, replace(patch, rule="cut", source=None, cells=cut)]


def _random_cells(model: Model, kind: SiteKind, chosen: random.Random) -> list[Cell]:
    """One cell at one position of each row, one at all positions, and one of a whole site, in random layers."""
    info = model.info
    count = info.shape.count(kind)
    indexed = kind in ("head", "q", "k", "v", "neuron")

    def one(index: int | None) -> tuple[Site]:
        return (Site(kind, chosen.randrange(info.n_layers), index),)

    def some() -> int | None:
        return chosen.randrange(count) if indexed else None

    at = tuple((chosen.randrange(n),) for n in PROOF_LENGTHS)
    return [Cell(one(some()), at), Cell(one(some())), Cell(one(None), at)]


def _random_cuts(model: Model, kind: SiteKind, chosen: random.Random) -> list[Cell]:
    """Edges of the last position at one head, of two positions at a head and in whole later layers, and in the last."""
    info = model.info
    layers = sorted(chosen.sample(range(info.n_layers), min(3, info.n_layers)))
    head = Site(kind, layers[0], chosen.randrange(info.n_heads))
    one = tuple((n - 1,) for n in PROOF_LENGTHS)
    two = tuple((chosen.randrange(1, n - 1), n - 1) for n in PROOF_LENGTHS)

    def cell(sites: Sequence[Site], queries: tuple[tuple[int, ...], ...]) -> Cell:
        # A query keeps its own position, which no sliding window hides: its softmax is never over nothing.
        keys = tuple(tuple(tuple(chosen.sample(range(q), min(2, q))) for q in row) for row in queries)
        return Cell(tuple(sites), queries, keys=keys)

    later = [Site(kind, layer) for layer in layers[1:]]
    return [cell([head], one), cell([head, *later], two), cell([Site(kind, info.n_layers - 1)], one)]


def _check(plan: SweepPlan, measured: Measured) -> None:
    """Every cell fired as often as it should, and every number is finite."""
    for cell, fired in zip(plan.cells, measured.fired, strict=True):
        if fired != (wanted := cell.writes(plan.base.lengths)):
            raise EditDidNotFire(
                f"the cell {', '.join(map(str, cell.sites[:4]))} wrote {fired} places instead of {wanted}; "
                "its numbers cannot be trusted. Report the model's architecture and the site."
            )
    if not measured.values.isfinite().all() or not measured.base_values.isfinite().all():
        raise NotFinite("a metric of the sweep is NaN or infinite; check the weights, the values written, the dtype.")


def _spot_check(
    model: Model, plan: SweepPlan, measured: Measured, budget_bytes: int
) -> tuple[SelfTest, ...]:
    """A few random cells of this very sweep, by whole forward passes."""
    chosen = random.Random(plan.seed)
    rows = sorted(chosen.sample(range(plan.base.n_rows), min(SPOT_ROWS, plan.base.n_rows)))
    cells = sorted({*chosen.sample(range(len(plan.cells)), min(SPOT_CELLS, len(plan.cells))), *_skipped(plan, rows)})
    plain = GenericEngine(model).measure(plan.some(cells, rows), silent, budget_bytes)
    difference = float((plain.values - measured.values[:, cells][:, :, rows]).abs().max())
    tolerance = tolerance_of(model, plain.values)
    name = f"largest difference of {len(cells)} random cells on {len(rows)} prompts from whole forward passes"
    return (SelfTest(name=name, expected=0, found=difference, tolerance=tolerance, passed=difference <= tolerance),)


def _skipped(plan: SweepPlan, rows: Sequence[int]) -> list[int]:
    """The last cell that lies wholly before the first difference of one of the rows: proof that it changes nothing."""
    if not plan.shares_prefix or plan.source is None:
        return []
    starts = {b: first_difference(plan.base.ids[b], plan.source.ids[b]) for b in rows}
    before = [
        c for c, cell in enumerate(plan.cells)
        if cell.positions is not None and any(max(cell.positions[b]) < starts[b] for b in rows)
    ]  # fmt: skip
    return before[-1:]


__all__ = [
    "BUDGET", "Cell", "Engine", "Measured", "Proof", "SweepPlan", "SweepResult", "Work", "at_the_start", "check_plan",
    "choose", "fast_engine", "prove", "silent", "sweep", "tolerance_of",
]  # fmt: skip
