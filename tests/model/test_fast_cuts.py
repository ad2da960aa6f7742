"""Cut attention edges in a sweep: against bare torch and whole passes, hand-worked work, what must be refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from anatomist.errors import BadArguments, BadPosition, BadSite, EditDidNotFire, NotFinite
from anatomist.model.backends.architecture import anatomy_of
from anatomist.model.backends.toy_circuits import random_toy
from anatomist.model.fast import FastEngine, arithmetic
from anatomist.model.fast.walk import Walk
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site, SiteKind
from anatomist.model.sweep import prove, sweep
from anatomist.model.sweep_plan import Cell, SweepPlan, check_plan

from tests.backends.families import FAMILIES
from tests.backends.test_architecture import ALL
from tests.model import bare_hooks
from tests.model.test_fast import BASE, LOGIT_DIFF, PLENTY, PROB, agree, anatomy, plan, tokens

KINDS: tuple[SiteKind, ...] = ("scores", "pattern")
Rows = tuple[tuple[int, ...], ...]
LAST: Rows = ((6,), (4,), (6,))
QUERIES: tuple[Rows, ...] = (LAST, ((2,), (3,), (4,)), ((1, 3, 6), (4, 2), (5,)), ((4, 5), (1,), (2, 6)))


def cut(sites: Sequence[Site], queries: Rows, seed: int = 0, most: int = 2) -> Cell:
    """Some keys of every query; never its own position, which the narrowest window leaves in sight."""
    chosen = random.Random(f"{seed} {sites} {queries}")
    keys = tuple(tuple(tuple(chosen.sample(range(q), min(most, q))) for q in row) for row in queries)
    return Cell(tuple(sites), queries, keys=keys)


def cutting(cells: Sequence[Cell], **changes: Any) -> SweepPlan:
    return plan(list(cells), rule="cut", source=None, **changes)


def grid(kind: SiteKind, layers: Sequence[int] = (0, 1, 2), heads: Sequence[int | None] = (None, 0, 3)) -> list[Cell]:
    return [cut([Site(kind, layer, h)], at) for layer, h, at in itertools.product(layers, heads, QUERIES)]


@pytest.mark.positive_control
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ALL)
def test_every_cut_in_every_family_is_that_of_bare_torch(family: str, kind: SiteKind) -> None:
    """Ragged rows, one head and all, one query and several. Rules out: keys of another row, heads in the order of
    shared keys, a cap or a sliding window behind the cut, a query that stands elsewhere after its first layer."""
    values = agree(family, cutting(grid(kind)))
    assert float((values[0] - values[0, :1]).abs().max()) > 1e-2  # the cells are not all alike


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3"])
def test_cuts_in_several_layers_at_several_heads_both_ways_agree(family: str) -> None:
    """An item that entered with its queries goes on whole: later layers cut among its own keys."""
    pool = [Site(kind, layer, h) for kind in KINDS for layer in range(3) for h in (None, 1, 2)]
    chosen = random.Random(2)
    cells = [cut(chosen.sample(pool, chosen.choice([2, 3, 6])), chosen.choice(QUERIES), i) for i in range(16)]
    agree(family, cutting(cells))
    agree(family, cutting(cells, read_at=(4, 3, 5)))


def test_metrics_of_the_whole_vocabulary_and_narrow_budgets_give_the_same_numbers() -> None:
    sweeping = cutting(grid("scores"), metrics=(LOGIT_DIFF, PROB))
    agree("qwen3", sweeping)
    whole = FastEngine(anatomy("qwen3")).measure(sweeping, lambda *_: None, PLENTY)
    small = FastEngine(anatomy("qwen3")).measure(sweeping, lambda *_: None, 150_000)
    assert whole.work.chunks == 1
    assert small.work.chunks > 3
    assert small.work.peak_bytes <= 150_000
    torch.testing.assert_close(small.values, whole.values, atol=1e-5, rtol=0)
    assert small.fired == whole.fired


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_of_cuts_goes_the_fast_way_and_equals_whole_passes(family: str, how: SiteKind) -> None:
    model = wrap_model(FAMILIES[family](), None, name=family)
    base = model.tokenize(BASE)
    cells = (*grid(how, heads=(None, 2))[::2], cut([Site(how, 0, 1), Site(how, 1), Site(how, 2, 3)], QUERIES[2]))
    given = replace(cutting(cells), base=base)
    fast, whole = sweep(model, given), sweep(model, given, path="generic")
    assert (fast.path, whole.path) == ("fast", "generic")
    torch.testing.assert_close(fast.values, whole.values, atol=1e-4, rtol=0)
    assert fast.fired == whole.fired == tuple(cell.writes(base.lengths) for cell in cells)
    assert all(test.passed for test in fast.self_tests)
    assert fast.self_tests


def test_half_precision_differs_from_bare_torch_by_rounding_alone() -> None:
    half = anatomy_of(ALL["gemma3"]().to(torch.bfloat16))  # type: ignore[arg-type]
    sweeping = cutting((grid("scores") + grid("pattern"))[::3])
    found = FastEngine(half).measure(sweeping, lambda *_: None, PLENTY)
    plain, single = bare_hooks.measure(half, sweeping), bare_hooks.measure(anatomy("gemma3"), sweeping)
    assert (found.values - plain).abs().mean() < 1.5 * (plain - single).abs().mean()


@pytest.mark.negative_control
@pytest.mark.parametrize("kind", KINDS)
def test_an_edge_that_a_sliding_window_hides_changes_nothing_when_cut(kind: SiteKind) -> None:
    """mistral here sees three tokens: position 6 sees 4 to 6. Of the first row 3 is hidden, of the last 4 is seen."""
    cell = Cell((Site(kind, 1),), LAST, keys=(((3,),), ((1,),), ((4,),)))
    found = FastEngine(anatomy("mistral")).measure(cutting([cell]), lambda *_: None, PLENTY)
    moved = (found.values[0, 0] - found.base_values[0]).abs()
    assert moved[:2].max() < 1e-5
    assert moved[2] > 1e-3
    assert found.fired == (3,)


@pytest.mark.negative_control
def test_a_cut_behind_the_read_position_changes_nothing_and_computes_nothing() -> None:
    behind = Cell((Site("scores", 1),), LAST, keys=(((3,),), ((1,),), ((4,),)))
    found = FastEngine(anatomy("llama")).measure(cutting([behind], read_at=(5, 3, 5)), lambda *_: None, PLENTY)
    assert torch.equal(found.values, found.base_values[:, None])
    assert found.work.layer_tokens == (6 + 4 + 6) * 3
    assert found.fired == (3,)


@pytest.mark.hand_worked
def test_only_the_query_and_what_follows_is_computed() -> None:
    """One row of 7 tokens, 3 layers: the base run has 7 x 3 = 21. Cut at the last token in layers 0 and 2: its query
    enters layer 0 behind the projections and goes through 2 more, one token each: 2. Cut at position 4 in layer 1:
    positions 4 to 6 join at layer 2: 3. Together 26 (row, position, layer) triples."""
    cells = [cut([Site("scores", 0), Site("scores", 2)], LAST), cut([Site("pattern", 1, 2)], ((4,), (2,), (4,)))]
    sweeping = cutting(cells).some(rows=[0])
    found = FastEngine(anatomy("llama")).measure(sweeping, lambda *_: None, PLENTY)
    assert found.work.layer_tokens == 26
    assert found.fired == (2, 1)


@pytest.mark.hand_worked
def test_all_keys_but_one_cut_leave_all_weight_on_it_and_all_zeroed_leave_nothing() -> None:
    """Layer 2 is the last. With every other key cut z of the last token is its own value; with all weights zeroed it is
    0: what a sweep gives that writes the last token's v, or zero, at head."""
    a = anatomy("gpt2")
    own = bare_hooks.read(a, BASE[1], Site("v", 2))  # [5, H, h]
    alone = Cell((Site("scores", 2),), ((4,),), keys=(((0, 1, 2, 3),),))
    nothing = Cell((Site("pattern", 2),), ((4,),), keys=(((0, 1, 2, 3, 4),),))
    given = replace(cutting([alone, nothing]), base=tokens(BASE[1:2]), read_at=(4,), metrics=(LOGIT_DIFF.rows([1]),))
    found = FastEngine(a).measure(given, lambda *_: None, PLENTY)
    head = Cell((Site("head", 2),), ((4,),))
    for c, value in enumerate((own[None], torch.zeros_like(own)[None])):
        written = replace(given, rule="set", cells=(head,), values={Site("head", 2): value})
        torch.testing.assert_close(found.values[:, c], bare_hooks.measure(a, written)[:, 0], atol=1e-5, rtol=0)


@pytest.mark.negative_control
def test_an_engine_that_forgets_to_cut_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten in the walk, nothing is counted; forgotten in the arithmetic, the proof sees other numbers."""
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    given = replace(cutting([cut([Site("scores", 1)], LAST)]), base=model.tokenize(BASE))
    assert prove(model).fast

    def none(*_: object) -> Iterator[Any]:
        return iter(())

    with monkeypatch.context() as patched:
        patched.setattr(Walk, "_cuts", none)
        with pytest.raises(EditDidNotFire, match="wrote 0 places instead of 3"):
            sweep(model, given)
    monkeypatch.setattr(arithmetic, "_fill", lambda *_: None)
    assert not all(test.passed for test in sweep(model, given).self_tests)
    other = wrap_model(FAMILIES["llama"](), None, name="another llama")
    assert "differs from whole forward passes" in prove(other).reason
    assert sweep(other, replace(given, base=other.tokenize(BASE))).path == "generic"


@pytest.fixture(scope="module")
def toy() -> Model:
    return random_toy(layers=3, heads=4, kv_heads=2)


S1 = (Site("scores", 1),)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("cell", "changes", "error", "told"),
    [
        (Cell(S1, ((2,), (1,)), keys=(((1,),), ((2,),))), {}, BadPosition, "position 1 of prompt 1 .* keys 0 to 1"),
        (Cell(S1, ((2,), (1,)), keys=(((-1,),), ((0,),))), {}, BadPosition, "cannot be cut from"),
        (Cell(S1, ((2,), (1,)), keys=(((),), ((0,),))), {}, BadPosition, "cannot be cut from"),
        (Cell(S1, ((2, 2), (1,)), keys=(((0,), (1,)), ((0,),))), {}, BadPosition, "name each once"),
        (Cell(S1, ((2,), (9,)), keys=(((0,),), ((0,),))), {}, BadPosition, "outside prompt 1"),
        (Cell(S1, ((2,), (1,)), keys=(((0,),), ((1, 0),))), {}, BadArguments, "position 1 .* keep no key"),
        (Cell(S1, ((2,), (1,)), keys=(((0,), (1,)), ((0,),))), {}, BadArguments, "keys of each of them"),
        (Cell(S1, None, keys=(((0,),), ((0,),))), {}, BadArguments, "needs its queries"),
        (Cell(S1, ((2,), (1,))), {}, BadArguments, "and of no other"),
        (Cell((Site("head", 1),), ((2,), (1,)), keys=(((0,),), ((0,),))), {"rule": "zero"}, BadArguments, "no other"),
        (Cell((Site("head", 1),), ((2,), (1,)), keys=(((0,),), ((0,),))), {}, BadSite, "cut.* pattern, scores"),
        (Cell((Site("scores", 1, 4),), ((2,), (1,)), keys=(((0,),), ((0,),))), {}, BadSite, "runs from 0 to 3"),
        (Cell(S1, ((2,), (1,)), keys=(((0,),), ((0,),))), {"rule": "zero"}, BadSite, "cannot be swept"),
    ],
)
def test_cuts_that_cannot_be_made_are_refused(
    toy: Model, cell: Cell, changes: dict, error: type[Exception], told: str
) -> None:
    base = toy.tokenize(((1, 2, 3, 4), (5, 6, 7)))
    given = SweepPlan(base=base, cells=(cell,), metrics=(LOGIT_DIFF.rows([0, 1]),), read_at=base.last, rule="cut")
    with pytest.raises(error, match=told):
        check_plan(replace(given, **changes), toy.info)


@pytest.mark.bad_input
def test_a_cut_takes_nothing_from_another_run(toy: Model) -> None:
    base = toy.tokenize(((1, 2, 3, 4),))
    cell = Cell(S1, ((2,),), keys=(((0,),),))
    given = SweepPlan(base=base, cells=(cell,), metrics=(LOGIT_DIFF.rows([0]),), read_at=base.last, rule="cut")
    assert check_plan(given, toy.info) is given
    for more in ({"source": base}, {"values": {Site("scores", 1): torch.zeros(1, 1, 4)}}):
        with pytest.raises(BadArguments, match="leave `source` and `values` out"):
            check_plan(replace(given, **more), toy.info)


@pytest.mark.bad_input
def test_a_softmax_that_a_window_leaves_nothing_is_no_number() -> None:
    """Position 6 of mistral sees 4 to 6 alone: with these cut its softmax is over nothing."""
    cell = Cell((Site("scores", 0),), LAST, keys=(((4, 5, 6),), ((1,),), ((1,),)))
    model = wrap_model(ALL["mistral"](), None, name="mistral")
    with pytest.raises(NotFinite):
        sweep(model, replace(cutting([cell]), base=model.tokenize(BASE)))
