"""Cells that write values of their own: each takes its rows, by both engines, and others keep the plan's."""

from __future__ import annotations

import pytest
import torch
from anatomist.errors import BadArguments
from anatomist.measures.metrics import Metric
from anatomist.model.edits import Edit
from anatomist.model.loading import wrap_model
from anatomist.model.sites import Site
from anatomist.model.sweep import sweep
from anatomist.model.sweep_plan import Cell, SweepPlan

from tests.backends.families import FAMILIES

ROWS = [(5, 6, 7, 8, 9), (11, 12, 13)]


@pytest.mark.positive_control
@pytest.mark.parametrize("path", ["auto", "generic"])
def test_a_cell_with_rows_of_its_own_writes_those(path: str) -> None:
    model, site = wrap_model(FAMILIES["llama"](), None, name="llama"), Site("resid_post", 1)
    tokens = model.tokenize(ROWS)
    values = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(0))
    cells = (Cell((site,), None, (4, 1)), Cell((site,)), Cell((site,), ((2,), (0,)), (5, 3)))
    metric = Metric("logit_diff", [(3,)] * 2, [(9,)] * 2)
    plan = SweepPlan(
        base=tokens, values={site: values}, value_rows=(2, 0), cells=cells, metrics=(metric,), read_at=tokens.last,
        rule="add",
    )  # fmt: skip
    found = sweep(model, plan, path=path)  # type: ignore[arg-type]
    assert found.path.startswith("fast" if path == "auto" else "generic")
    for c, (rows, places) in enumerate([((4, 1), None), ((2, 0), None), ((5, 3), (2, 0))]):
        for b, row in enumerate(rows):
            alone = model.tokenize([ROWS[b]])
            at = None if places is None else (places[b],)
            chosen = values[row, : len(ROWS[b])] if at is None else values[row, list(at)]
            edit = Edit(site=site, rule="add", positions=at, value=chosen[None])
            logits = model.run(alone, edits=[edit], logits_at=alone.last).logits
            assert logits is not None
            assert float(found.values[0, c, b]) == pytest.approx(float(logits[0, 3] - logits[0, 9]), abs=1e-4)


@pytest.mark.bad_input
def test_a_cell_needs_a_row_for_every_prompt() -> None:
    model, site = wrap_model(FAMILIES["llama"](), None, name="llama"), Site("resid_post", 1)
    tokens = model.tokenize(ROWS)
    metric = Metric("logit_diff", [(3,)] * 2, [(9,)] * 2)
    plan = SweepPlan(
        base=tokens, values={site: torch.zeros(1, 5, 32)}, cells=(Cell((site,), None, (0,)),), metrics=(metric,),
        read_at=tokens.last, rule="add",
    )  # fmt: skip
    with pytest.raises(BadArguments, match="a cell has values for 1 rows, there are 2"):
        sweep(model, plan)
