"""One sweep against the same edits made one by one, and everything a sweep must refuse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from anatomist.errors import (
    BadArguments,
    BadPosition,
    BadPrompts,
    BadSite,
    Cancelled,
    EditDidNotFire,
    WouldNotFit,
)
from anatomist.measures.metrics import Metric
from anatomist.model.backends.local import LocalModel
from anatomist.model.backends.toy_circuits import random_toy
from anatomist.model.edits import Edit
from anatomist.model.fast import FastEngine
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.model.sweep import Proof, choose, prove, sweep
from anatomist.model.sweep_generic import GenericEngine
from anatomist.model.sweep_plan import SWEEPABLE, Cell, Measured, SweepPlan
from anatomist.model.sweep_tests import between_runs, into_itself
from torch import Tensor

from tests.backends.families import llama

BUDGET = 2**28
BASE = ((1, 2, 3, 4, 5, 6), (7, 8, 9, 10), (3, 1, 4, 1, 5))
SOURCE = ((1, 2, 9, 4, 5, 7), (7, 3, 9, 10), (3, 1, 4, 2, 5))
METRICS = (Metric("logit_diff", [(1,), (2,), (3,)], [(4,), (5, 6), (7,)]), Metric("logprob", [(1,), (2,), (3,)]))


@pytest.fixture(scope="module")
def model() -> Model:
    return random_toy(layers=3, heads=4, kv_heads=2)


def plan_of(model: Model, *cells: Cell, **changes: object) -> SweepPlan:
    base, source = model.tokenize(BASE), model.tokenize(SOURCE)
    plan = SweepPlan(base=base, source=source, cells=cells, metrics=METRICS, read_at=base.last)
    return replace(plan, **changes)  # type: ignore[arg-type]


def one_by_one(model: Model, plan: SweepPlan) -> Tensor:
    """[M, C, B]: a run for each cell and row alone, its edits written out here."""
    out = torch.zeros(len(plan.metrics), len(plan.cells), plan.base.n_rows)
    for (c, cell), b in itertools.product(enumerate(plan.cells), range(plan.base.n_rows)):
        alone = plan.base.rows([b])
        places = range(alone.width) if cell.positions is None else cell.positions[b]
        edits = []
        for site in cell.sites:
            value = None
            if plan.source is not None:
                value = model.run(plan.source.rows([b]), read=[site]).reads[site][:, list(places)]
            elif plan.values is not None:
                whole = plan.values[site.whole][0 if plan.value_rows is None else plan.value_rows[b]]
                part = whole if site.index is None else whole[:, site.index]
                value = part[list(places)][None]
            rule = {"patch": "set"}.get(plan.rule, plan.rule)
            edits.append(Edit(site=site, rule=rule, positions=tuple(places), value=value, factor=plan.factor))  # type: ignore[arg-type]
        logits = model.run(alone, edits=edits, logits_at=[plan.read_at[b]]).logits
        assert logits is not None
        for m, metric in enumerate(plan.metrics):
            out[m, c, b] = metric.rows([b])(logits)
    return out


@pytest.mark.parametrize("kind", sorted(SWEEPABLE))
def test_every_kind_of_place_is_patched_as_by_single_runs(model: Model, kind: str) -> None:
    index = 1 if kind in ("head", "q", "k", "v", "neuron") else None
    cells = (
        Cell((Site(kind, 1, index),), ((2,), (0,), (4,))),  # type: ignore[arg-type]
        Cell((Site(kind, 2, index),)),  # type: ignore[arg-type]
        Cell((Site(kind, 0),), ((0, 3), (1, 2), (4, 0))),  # type: ignore[arg-type]
    )
    plan = plan_of(model, *cells)
    result = sweep(model, plan, path="generic")
    # Rules out: rows mixed up in the batch, positions shifted by padding, the source of another row, a lost index.
    torch.testing.assert_close(result.values, one_by_one(model, plan), atol=1e-5, rtol=0)
    assert result.fired == (3, 15, 6)  # one position a row; 6 + 4 + 5 positions; two a row


@pytest.mark.positive_control
def test_a_patch_moves_the_metric_where_the_runs_differ(model: Model) -> None:
    result = sweep(model, plan_of(model, Cell((Site("resid_pre", 0),))))
    assert result.source_values is not None
    assert (result.values[0, 0] - result.base_values[0]).abs().min() > 1e-3
    torch.testing.assert_close(result.values[:, 0], result.source_values, atol=1e-6, rtol=0)


@pytest.mark.negative_control
def test_a_patch_before_the_first_difference_moves_nothing(model: Model) -> None:
    same = Cell((Site("resid_post", 1),), ((1,), (0,), (2,)))  # BASE and SOURCE first differ at 2, 1 and 3
    result = sweep(model, plan_of(model, same))
    torch.testing.assert_close(result.values[:, 0], result.base_values, atol=1e-6, rtol=0)


def test_several_places_are_edited_jointly(model: Model) -> None:
    joint = Cell((Site("head", 0, 1), Site("head", 2, 3), Site("mlp_out", 1)))
    plan = plan_of(model, joint, rule="zero", source=None)
    result = sweep(model, plan, path="generic")
    torch.testing.assert_close(result.values, one_by_one(model, plan), atol=1e-5, rtol=0)
    assert result.fired == (45,)  # three places at 15 positions


@pytest.mark.parametrize("rule", ["mean", "set", "add"])
def test_values_are_written_by_row(model: Model, rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    values = {Site("head", 1): torch.randn(2, 6, 4, 4, generator=generator)}
    cells = (Cell((Site("head", 1, 2),), ((5,), (1,), (0,))), Cell((Site("head", 1),)))
    plan = plan_of(model, *cells, rule=rule, source=None, values=values, value_rows=(1, 0, 1), factor=0.5)
    # Rules out: value rows taken in order of the batch, and the factor left out of `add` or put into `set`.
    torch.testing.assert_close(sweep(model, plan, path="generic").values, one_by_one(model, plan), atol=1e-5, rtol=0)


def test_the_unedited_runs_are_measured_too(model: Model) -> None:
    plan = plan_of(model, Cell((Site("head", 1, 0),)))
    result = sweep(model, plan)
    for tokens, found in ((plan.base, result.base_values), (plan.source, result.source_values)):
        assert tokens is not None
        logits = model.run(tokens, logits_at=tokens.last).logits
        assert logits is not None
        assert found is not None
        torch.testing.assert_close(found, torch.stack([m(logits) for m in METRICS]), atol=1e-6, rtol=0)


def test_chunks_stay_within_the_budget_and_give_the_same_numbers(model: Model) -> None:
    plan = plan_of(model, *(Cell((Site("head", layer, h),)) for layer in range(3) for h in range(4)))
    roomy, tight = (sweep(model, plan, budget_bytes=b, path="generic") for b in (BUDGET, 120_000))
    torch.testing.assert_close(roomy.values, tight.values, atol=1e-6, rtol=0)
    assert tight.work.peak_bytes <= 120_000
    assert tight.work.largest_chunk < roomy.work.largest_chunk
    assert tight.work.chunks > roomy.work.chunks


@pytest.mark.bad_input
def test_a_budget_below_one_row_is_refused_with_its_figures(model: Model) -> None:
    with pytest.raises(WouldNotFit, match=r"needs \d+ MiB and the sweep may use"):
        sweep(model, plan_of(model, Cell((Site("head", 0, 0),))), budget_bytes=1000, path="generic")


@pytest.mark.hand_worked
def test_the_work_is_counted(model: Model) -> None:
    cells = (Cell((Site("head", 0, 0),)), Cell((Site("head", 1, 0),)))
    result = sweep(model, plan_of(model, *cells), path="generic")
    # Rows of a pass are as wide as its widest: base 3 x 6, source 3 x 6, cells 2 x 3 x 6 tokens; three layers each.
    assert result.work.layer_tokens == 3 * (18 + 18 + 36)
    # A token through a block: q and o 16 x 16, k and v 16 x 8, MLP 2 x 16 x 8 = 1,024 multiply-adds; a pair of
    # positions 2 x 16. A row: 6 x (2048 + 64 x 6) x 3 layers + 11 logits x 32. Twelve rows.
    assert result.work.flops == 12 * (3 * 6 * (2048 + 64 * 6) + 11 * 32)


def test_cancelling_between_chunks_ends_it(model: Model) -> None:
    seen: list[float] = []

    def stop(done: float, total: float, what: str) -> None:
        seen.append(done / total)
        if done:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        sweep(model, plan_of(model, *(Cell((Site("head", 0, h),)) for h in range(4))), stop, path="generic")
    assert len(seen) <= 3


def test_progress_rises_to_its_end(model: Model) -> None:
    seen: list[float] = []
    cells = tuple(Cell((Site("head", layer, h),)) for layer in range(3) for h in range(4))
    sweep(model, plan_of(model, *cells), lambda d, t, _: seen.append(d / t), 120_000, path="generic")
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) >= 4


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("cell", "changes", "error", "told"),
    [
        (Cell((Site("head", 9, 0),)), {}, BadSite, "layers are 0 to 2"),
        (Cell((Site("v", 0, 3),)), {}, BadSite, "v runs from 0 to 1"),
        (Cell((Site("pattern", 0, 0),)), {}, BadSite, "cannot be swept"),
        (Cell((Site("logits"),)), {}, BadSite, "cannot be swept"),
        (Cell(()), {}, BadArguments, "no place"),
        (Cell((Site("head", 0, 0),), ((0,), (4,), (0,))), {}, BadPosition, "position 4 is outside prompt 1"),
        (Cell((Site("head", 0, 0),), ((0,), (), (0,))), {}, BadPosition, "no position is chosen in prompt 1"),
        (Cell((Site("head", 0, 0),), ((0,),)), {}, BadPosition, "1 rows, there are 3"),
        (Cell((Site("head", 0, 0),)), {"source": None}, BadArguments, "needs either a source run or values"),
        (Cell((Site("head", 0, 0),)), {"source": None, "values": {}}, BadArguments, "no values to write"),
        (Cell((Site("head", 0, 0),)), {"metrics": ()}, BadArguments, "at least one cell and one metric"),
        (Cell((Site("head", 0, 0),)), {"read_at": (0, 9, 0)}, BadPosition, "position 9 is outside prompt 1"),
        (Cell((Site("head", 0, 0),)), {"read_at": (0,)}, BadArguments, "one a row"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(
    model: Model, cell: Cell, changes: dict, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        sweep(model, plan_of(model, cell, **changes))


@pytest.mark.bad_input
def test_runs_of_different_lengths_are_refused(model: Model) -> None:
    plan = plan_of(model, Cell((Site("head", 0, 0),)), source=model.tokenize(((1, 2), *SOURCE[1:])))
    with pytest.raises(BadPrompts, match="equal lengths row by row"):
        sweep(model, plan)


@pytest.mark.bad_input
def test_a_cell_that_fired_too_rarely_is_an_error(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GenericEngine.measure

    def forgetful(self: GenericEngine, *given: object) -> Measured:
        return replace(whole(self, *given), fired=(14,))  # type: ignore[arg-type]

    monkeypatch.setattr(GenericEngine, "measure", forgetful)
    with pytest.raises(EditDidNotFire, match="wrote 14 places instead of 15"):
        sweep(model, plan_of(model, Cell((Site("head", 0, 0),))), path="generic")


def test_a_toy_takes_the_generic_path_and_says_why(model: Model) -> None:
    result = sweep(model, plan_of(model, Cell((Site("head", 0, 0),))))
    assert result.path == "generic"
    assert "anatomy" in result.reason


@pytest.fixture(scope="module")
def tiny_llama() -> LocalModel:
    return LocalModel(llama(), None, name="tiny-llama")


def test_the_fast_engine_is_proven_on_the_model_and_then_used(tiny_llama: LocalModel) -> None:
    plan = plan_of(tiny_llama, *(Cell((Site("resid_pre", 1),), ((p,),) * 3) for p in range(4)))
    result = sweep(tiny_llama, plan)
    proof = prove(tiny_llama)
    assert proof.fast
    assert proof.cells >= 30
    assert result.path == "fast+shared-prefix"
    assert result.reason == proof.reason
    (spot,) = result.self_tests
    assert spot.passed
    assert spot.found > 0 or spot.tolerance == pytest.approx(1e-4)
    torch.testing.assert_close(
        result.values, sweep(tiny_llama, plan, path="generic").values, atol=1e-4, rtol=0
    )


def test_a_fast_engine_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel(llama(), None, name="tiny-llama")
    right = FastEngine.measure

    def wrong(self: FastEngine, *given: object) -> Measured:
        found = right(self, *given)  # type: ignore[arg-type]
        return replace(found, values=found.values + 1e-3)

    monkeypatch.setattr(FastEngine, "measure", wrong)
    assert not prove(model).fast
    engine, reason = choose(model, plan_of(model, Cell((Site("head", 0, 0),))))
    assert isinstance(engine, GenericEngine)
    assert "differs from whole forward passes" in reason


def test_a_proof_does_not_keep_a_model_alive() -> None:
    import gc
    import weakref

    model = random_toy()
    prove(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_the_identities_of_patching_hold(model: Model, tiny_llama: LocalModel) -> None:
    for each in (model, tiny_llama):
        plan = plan_of(each, *(Cell((Site("head", layer, 1),)) for layer in range(3)))
        tests = [into_itself(each, plan, BUDGET), *between_runs(each, plan, BUDGET)]
        assert len(tests) == 5
        assert all(test.passed for test in tests), tests
        assert "45 places" in tests[0].name  # three cells at 15 positions
        assert "places written" in tests[0].name


def test_the_identities_find_a_sweep_that_changes_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GenericEngine.measure

    def idle(self: GenericEngine, *given: object) -> Measured:
        found = whole(self, *given)  # type: ignore[arg-type]
        return replace(found, values=found.base_values[:, None].expand_as(found.values))

    monkeypatch.setattr(GenericEngine, "measure", idle)
    plan = plan_of(model, Cell((Site("head", 1, 1),)))
    names = [test.name for test in between_runs(model, plan, BUDGET) if not test.passed]
    assert any("layer 0" in name for name in names)
    assert any("last layer at the read position" in name for name in names)


def test_a_proof_says_what_was_compared() -> None:
    proof = prove(random_toy())
    assert isinstance(proof, Proof)
    assert not proof.fast
    assert proof.max_difference is None
