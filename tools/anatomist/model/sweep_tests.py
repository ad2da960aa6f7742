"""Checks that a sweep makes of itself on its own model and prompts, by the path that computed it.

Between two runs a and b, patching from b into a, these hold exactly for any causal model: a run patched into itself
does not change; all of resid_pre at layer 0 makes a into b; all heads of one layer are that layer's attn_out; the last
resid_post at the position that is read makes a into b there, and before it does nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..result import SelfTest
from .protocol import Model
from .sites import Site
from .sweep import silent, sweep, tolerance_of
from .sweep_plan import Cell, SweepPlan, SweepProgress

ROWS, CELLS = 4, 4


def into_itself(model: Model, plan: SweepPlan, budget_bytes: int, progress: SweepProgress = silent) -> SelfTest:
    """Random cells of the sweep with the run's own activations written: nothing changes.

    The name says how many places were written, as the engine counted them.
    """
    chosen = random.Random(plan.seed)
    cells = sorted(chosen.sample(range(len(plan.cells)), min(CELLS, len(plan.cells))))
    some = _few_rows(plan).some(cells)
    # 'resample' rather than 'patch': with nothing between the runs to differ, the shared prefix would skip it all.
    own = replace(some, rule="resample", source=some.base, values=None, value_rows=None)
    result = sweep(model, own, at_the_end(progress), budget_bytes, spot_check=False)
    name = f"a run patched into itself changes nothing ({sum(result.fired)} places written in {len(cells)} cells)"
    return _test(name, result.values - result.base_values[:, None], tolerance_of(model, result.values))


def between_runs(
    model: Model, plan: SweepPlan, budget_bytes: int, progress: SweepProgress = silent
) -> tuple[SelfTest, ...]:
    """The identities of patching between two runs, on a few rows."""
    some = _few_rows(plan)
    layer = random.Random(plan.seed).randrange(model.info.n_layers)
    named = _identities(model, some, layer)
    identities = replace(some, cells=tuple(named.values()))
    result = sweep(model, identities, at_the_end(progress), budget_bytes, spot_check=False)
    assert result.source_values is not None
    found = dict(zip(named, result.values.unbind(1), strict=True))
    tolerance = tolerance_of(model, torch.cat([result.values.flatten(), result.source_values.flatten()]))
    a, b = result.base_values, result.source_values
    tests = [
        _test("resid_pre of layer 0 at all positions equals the other run", found["first"] - b, tolerance),
        _test("resid_post of the last layer at the read position equals the other run", found["last"] - b, tolerance),
    ]
    if "before" in found:
        tests.append(_test("resid_post of the last layer before the read position: 0", found["before"] - a, tolerance))
    if "heads" in found:
        name = f"all heads of layer {layer} together equal its attn_out"
        tests.append(_test(name, found["heads"] - found["attn_out"], tolerance))
    return tuple(tests)


def _identities(model: Model, plan: SweepPlan, layer: int) -> dict[str, Cell]:
    """The cells of the identities that this model and these rows have."""
    info, last = model.info, model.info.n_layers - 1
    cells = {
        "first": Cell((Site("resid_pre", 0),)),
        "last": Cell((Site("resid_post", last),), tuple((p,) for p in plan.read_at)),
    }
    if min(plan.read_at) > 0:
        cells["before"] = Cell((Site("resid_post", last),), tuple(tuple(range(p)) for p in plan.read_at))
    if {"head", "attn_out"} <= set(info.sites):
        cells["heads"] = Cell(tuple(Site("head", layer, h) for h in range(info.n_heads)))
        cells["attn_out"] = Cell((Site("attn_out", layer),))
    return cells


def at_the_end(progress: SweepProgress) -> SweepProgress:
    """Progress of the self-tests: the bar is full, and they can be cancelled."""
    return lambda done, total, what: progress(1, 1, "self-tests")


def _few_rows(plan: SweepPlan) -> SweepPlan:
    rows: Sequence[int] = range(min(ROWS, plan.base.n_rows))
    return plan.some(rows=rows)


def _test(name: str, difference: Tensor, tolerance: float) -> SelfTest:
    found = float(difference.abs().max())
    return SelfTest(name=name, expected=0.0, found=found, tolerance=tolerance, passed=found <= tolerance)
