"""The fast engine gives, cell by cell, what whole forward passes with bare hooks give."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from anatomist.errors import Cancelled, EditDidNotFire, Unsupported, WouldNotFit
from anatomist.measures.metrics import Metric
from anatomist.model import sweep as sweeping
from anatomist.model.backends.architecture import anatomy_of
from anatomist.model.backends.blocks import Anatomy
from anatomist.model.fast import FastEngine, engine
from anatomist.model.fast.walk import Walk
from anatomist.model.loading import wrap_model
from anatomist.model.sites import Site, SiteKind
from anatomist.model.sweep_plan import Cell, SweepPlan
from anatomist.model.tokens import Tokens

from tests.backends.families import FAMILIES
from tests.backends.test_architecture import ALL
from tests.model import bare_hooks

KINDS: tuple[SiteKind, ...] = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head", "q", "k", "v", "neuron",
)  # fmt: skip
BASE = ((5, 9, 3, 77, 12, 40, 8), (1, 2, 3, 4, 5), (6, 9, 14, 21, 33, 60, 90))
SOURCE = ((5, 9, 3, 70, 12, 41, 8), (1, 2, 80, 4, 50), (7, 9, 14, 21, 33, 60, 90))
LOGIT_DIFF = Metric("logit_diff", [(3,), (50, 51), (4,)], [(9,), (60,), (5,)])
PROB = Metric("prob", [(3,), (50, 51), (4,)])
PLENTY = 2**30


@cache
def anatomy(family: str) -> Anatomy:
    return anatomy_of(ALL[family]())


def tokens(ids: tuple[tuple[int, ...], ...]) -> Tokens:
    return Tokens(ids, tuple(tuple(f"t{i}" for i in row) for row in ids), bos=False)


def plan(cells: list[Cell], **changes) -> SweepPlan:
    base = tokens(BASE)
    given = {"base": base, "source": tokens(SOURCE), "metrics": (LOGIT_DIFF,), "read_at": base.last}
    return SweepPlan(**{**given, "cells": tuple(cells), **changes})


def cells_of(family: str, kind: SiteKind, layers: tuple[int, ...] = (0, 1, 2)) -> list[Cell]:
    """Of every layer: each position alone, two together, all; heads and neurons singly and as a whole."""
    sizes = anatomy(family).sizes
    if kind == "resid_mid" and anatomy(family).parallel:
        return []
    count = {"head": sizes.n_heads, "q": sizes.n_heads, "k": sizes.n_kv_heads, "v": sizes.n_kv_heads, "neuron": 2}
    indices = [None, *range(count.get(kind, 0))]
    places = [None, ((1, 3), (0, 2), (4, 0)), *(((p, ), (min(p, 4), ), (p, )) for p in (0, 3, 4, 6))]
    chosen = random.Random(0)
    grid = [Cell((Site(kind, layer, i),), at) for layer in layers for i in indices for at in places]
    return grid if len(grid) <= 24 else chosen.sample(grid, 24)


def agree(family: str, sweep: SweepPlan, tolerance: float = 1e-4, budget: int = PLENTY) -> torch.Tensor:
    found = FastEngine(anatomy(family)).measure(sweep, lambda *_: None, budget)
    expected = bare_hooks.measure(anatomy(family), sweep)
    torch.testing.assert_close(found.values, expected, atol=tolerance, rtol=1e-5)
    assert found.fired == tuple(cell.writes(sweep.base.lengths) for cell in sweep.cells)
    return found.values


@pytest.mark.positive_control
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ALL)
def test_every_kind_of_place_in_every_family_is_patched_as_by_whole_forward_passes(family: str, kind: SiteKind) -> None:
    cells = cells_of(family, kind)
    if not cells:
        pytest.skip("parallel blocks have no residual between attention and MLP")
    values = agree(family, plan(cells))
    assert float((values[0] - values[0, :1]).abs().max()) > 1e-2  # the cells are not all alike


@pytest.mark.parametrize("rule", ["zero", "mean", "add", "resample"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "gpt_neox"])
def test_ablations_and_additions_agree_and_take_no_shared_prefix(family: str, rule: str) -> None:
    """Zeroing before the first differing token changes the result: rules out the prefix being skipped for ablations."""
    a = anatomy(family)
    kinds: list[SiteKind] = ["resid_pre", "attn_out", "head", "v", "neuron", "mlp_out"]
    cells = [c for kind in kinds for c in cells_of(family, kind)[:8]]
    if rule == "zero":
        sweep = plan(cells, rule="zero", source=None)
    elif rule == "resample":
        sweep = plan(cells, rule="resample")
    else:
        sweep = plan(cells, rule=rule, source=None, values=values_for(a, cells, rule), value_rows=(1, 0, 1), factor=0.7)
    found = FastEngine(a).measure(sweep, lambda *_: None, PLENTY)
    torch.testing.assert_close(found.values, bare_hooks.measure(a, sweep), atol=1e-4, rtol=1e-5)
    assert not found.shared_prefix
    assert (found.values[0] != found.base_values[0]).any(-1).sum() > len(cells) // 2


def values_for(a: Anatomy, cells: list[Cell], rule: str) -> dict[Site, torch.Tensor]:
    """Two rows of replacements; of one position for `mean`, of every position for `add`."""
    generator = torch.Generator().manual_seed(0)
    s = a.sizes
    shapes = {"head": (s.n_heads, s.d_head), "v": (s.n_kv_heads, s.d_head), "neuron": (s.d_mlp,)}
    wide = 1 if rule == "mean" else 7
    whole = {site.whole for cell in cells for site in cell.sites}
    return {
        site: torch.randn(2, wide, *shapes.get(site.kind, (s.d_model,)), generator=generator)
        for site in sorted(whole, key=str)
    }


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_cells_of_several_places_at_once_agree(family: str) -> None:
    """Joint cells write again while they travel: in one layer, in later layers, before and behind attention."""
    pool = [
        Site("head", 0, 1), Site("head", 0, 3), Site("q", 1, 2), Site("k", 1, 0), Site("v", 2), Site("mlp_out", 1),
        Site("neuron", 1, 5), Site("resid_pre", 1), Site("resid_post", 0), Site("head", 2, 0), Site("attn_out", 2),
        Site("q", 0), Site("mlp_out", 0), Site("resid_post", 2), Site("q", 2),
    ]  # fmt: skip
    chosen = random.Random(1)
    places = [None, ((1, 3), (0, 2), (4, 6)), ((6,), (4,), (6,))]
    cells = [Cell(tuple(chosen.sample(pool, chosen.choice([2, 3, 5]))), chosen.choice(places)) for _ in range(40)]
    agree(family, plan(cells))
    agree(family, plan(cells, rule="zero", source=None))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_several_metrics_come_from_one_pass_with_the_whole_vocabulary_where_one_needs_it(family: str) -> None:
    reference = torch.stack([bare_hooks.logits(anatomy(family), row)[-1] for row in BASE])
    metrics = (LOGIT_DIFF, PROB, Metric("kl", reference=reference))
    values = agree(family, plan(cells_of(family, "head"), metrics=metrics))
    assert values.shape[0] == 3


@pytest.mark.hand_worked
def test_patching_before_the_first_difference_is_skipped_and_gives_the_base_value() -> None:
    """Rows differ first at 3, 2 and 0. Of the cells at position 1 only the last row's moves anything, and that row's
    two others are the base value to the last bit, since nothing was computed for them."""
    cells = [Cell((Site("resid_pre", layer),), ((1,), (1,), (1,))) for layer in range(3)]
    found = FastEngine(anatomy("llama")).measure(plan(cells), lambda *_: None, PLENTY)
    assert found.shared_prefix
    assert torch.equal(found.values[0, :, :2], found.base_values[0, None, :2].expand(3, 2))
    assert (found.values[0, 1:, 2] != found.base_values[0, 2]).all()
    assert found.fired == (3, 3, 3)


@pytest.mark.negative_control
def test_a_run_patched_into_itself_is_unchanged_though_every_edit_fired() -> None:
    cells = cells_of("gemma3", "resid_mid") + cells_of("gemma3", "head")
    found = FastEngine(anatomy("gemma3")).measure(plan(cells, source=tokens(BASE)), lambda *_: None, PLENTY)
    assert torch.equal(found.values, found.base_values[:, None].expand_as(found.values))
    assert min(found.fired) >= 3
    resampled = plan(cells, source=tokens(BASE), rule="resample")
    found = FastEngine(anatomy("gemma3")).measure(resampled, lambda *_: None, PLENTY)
    torch.testing.assert_close(found.values, found.base_values[:, None].expand_as(found.values), atol=1e-5, rtol=0)


def test_the_whole_other_run_patched_in_at_layer_0_gives_its_value() -> None:
    found = FastEngine(anatomy("qwen3")).measure(plan([Cell((Site("resid_pre", 0),))]), lambda *_: None, PLENTY)
    assert found.source_values is not None
    torch.testing.assert_close(found.values[:, 0], found.source_values, atol=1e-5, rtol=0)


def test_reading_before_the_end_of_a_row_leaves_out_what_comes_behind() -> None:
    sweep = plan(cells_of("llama", "resid_pre") + cells_of("llama", "v"), read_at=(4, 2, 5))
    agree("llama", sweep)


@pytest.mark.parametrize("kind", ["resid_pre", "head", "k"])
def test_the_same_numbers_come_from_a_budget_that_allows_only_a_few_cells_at_once(kind: SiteKind) -> None:
    cells = cells_of("qwen2", kind)
    whole = FastEngine(anatomy("qwen2")).measure(plan(cells), lambda *_: None, PLENTY)
    small = FastEngine(anatomy("qwen2")).measure(plan(cells), lambda *_: None, 150_000)
    assert whole.work.chunks == 1
    assert small.work.chunks > 4
    assert small.work.peak_bytes <= 150_000
    torch.testing.assert_close(small.values, whole.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_half_precision_differs_from_whole_forward_passes_by_rounding_alone(family: str) -> None:
    """Both round to bfloat16 (8 bits) on the way: close to each other as each is to single precision, on average."""
    half = anatomy_of(ALL[family]().to(torch.bfloat16))
    sweep = plan(cells_of(family, "resid_pre") + cells_of(family, "head"))
    found = FastEngine(half).measure(sweep, lambda *_: None, PLENTY)
    plain, single = bare_hooks.measure(half, sweep), bare_hooks.measure(anatomy(family), sweep)
    assert found.values.dtype == torch.float32
    assert (found.values - plain).abs().mean() < 1.5 * (plain - single).abs().mean()
    assert (found.values - plain).abs().mean() < 0.05 * single.std()


@pytest.mark.bad_input
def test_a_budget_below_one_cell_is_refused_with_the_figures() -> None:
    with pytest.raises(WouldNotFit, match=r"needs .* MiB for its own runs and one cell"):
        FastEngine(anatomy("qwen2")).measure(plan(cells_of("qwen2", "head")), lambda *_: None, 10_000)


@pytest.mark.bad_input
def test_a_model_without_a_known_anatomy_is_refused() -> None:
    class Info:
        architecture, backend = "SomethingElse", "toy"

    class Model:
        info, anatomy = Info(), None

    with pytest.raises(Unsupported, match="SomethingElse"):
        engine(Model())  # type: ignore[arg-type]


def test_progress_reaches_its_total_and_can_cancel() -> None:
    steps: list[tuple[float, float]] = []
    sweep = plan(cells_of("llama", "head"))
    FastEngine(anatomy("llama")).measure(sweep, lambda done, total, what: steps.append((done, total)), PLENTY)
    assert steps[-1][0] == steps[-1][1]
    assert [d for d, _ in steps] == sorted(d for d, _ in steps)

    def stop(done: float, total: float, what: str) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        FastEngine(anatomy("llama")).measure(sweep, stop, PLENTY)


@pytest.mark.hand_worked
def test_only_layers_from_the_cell_on_and_positions_from_the_cell_on_are_computed() -> None:
    """One row of 7 tokens, 3 layers. Base: 7 x 3 = 21; source from its first difference (3) on: 4 x 3 = 12; the cell at
    resid_pre 2, position 5: 2 tokens in 1 layer = 2. Together 35 (row, position, layer) triples."""
    sweep = plan([Cell((Site("resid_pre", 2),), ((5,), (4,), (5,)))]).some(rows=[0])
    work = FastEngine(anatomy("llama")).measure(sweep, lambda *_: None, PLENTY).work
    assert work.layer_tokens == 35


@pytest.mark.negative_control
def test_an_edit_that_is_not_made_is_an_error_and_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    # The wrong engine this rules out: one that forgets the edits of a kind of place, and reports no effect.
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    base, source = model.tokenize([(1, 2, 3, 4)]), model.tokenize([(5, 6, 7, 8)])
    plan = SweepPlan(
        base=base, source=source, cells=(Cell((Site("attn_out", 0),)),), read_at=(3,),
        metrics=(Metric("logit_diff", [(5,)], [(6,)]),),
    )  # fmt: skip
    assert sweeping.sweep(model, plan).fired == (4,)
    write = Walk._write

    def forgetful(self: Walk, step: object, kind: str, layer: int, x: torch.Tensor) -> None:
        if kind != "attn_out":
            write(self, step, kind, layer, x)  # type: ignore[arg-type]

    monkeypatch.setattr(Walk, "_write", forgetful)
    with pytest.raises(EditDidNotFire, match="wrote 0 places instead of 4"):
        sweeping.sweep(model, plan)
