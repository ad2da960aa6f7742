"""attention_knockout: the hand-set circuit edge by edge, plain models with an attention of our own, random edges."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from anatomist.causal.attention_edges import edges_between, random_edges
from anatomist.errors import BadArguments, BadPosition, BadSite, Cancelled, Unsupported
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.edits import Edit
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.prompts.encoding import encode
from anatomist.prompts.given import inline_set
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context
from anatomist.techniques.attention_knockout import Arguments, KnockoutResult, plot, run

from tests.backends.families import FAMILIES
from tests.backends.plain import Plain

ONE = [{"clean": "t1 t2 t3 t1", "answer": "t2", "wrong": "t3"}]


def knock(model: Model, prompts: PromptSet, **more: Any) -> KnockoutResult:
    return run(Context(model, prompts), Arguments(model="m", prompts="given", **more))


def changes(found: KnockoutResult) -> dict[tuple[str, ...], float]:
    return {cell.labels: cell.value for cell in found.effects.change.top(10_000)}


@pytest.fixture(scope="module")
def hard() -> ToyModel:
    return induction()


@pytest.fixture(scope="module")
def prompts(hard: ToyModel) -> PromptSet:
    return make_prompts("induction", 24, 0, hard)[0]


@pytest.mark.hand_worked
@pytest.mark.parametrize(("how", "expected"), [("renormalise", -10 - 10 / 3), ("zero", -10.0)])
def test_the_edge_to_the_answer_has_the_change_worked_out_on_paper(
    hard: ToyModel, how: str, expected: float
) -> None:
    """t1 t2 t3 t1: L1H2 at position 3 reads t2 at position 1 with weight 1 (score 40 against 0 elsewhere): logit
    difference 10. With the score cut the three other keys, all at score 0, get a third each: t3 has 10/3, t2 nothing:
    -10/3. With the weight zeroed nothing is read: 0. Rules out that the two ways are mixed up."""
    found = knock(hard, inline_set(ONE), sources=(1,), window=1, how=how, controls=0)
    assert changes(found) == {
        ("L0", "1:t2"): pytest.approx(0, abs=1e-4), ("L1", "1:t2"): pytest.approx(expected, abs=1e-4),
        ("all layers", "1:t2"): pytest.approx(expected, abs=1e-4),
    }  # fmt: skip
    assert found.how == how
    assert found.attention.at(1, 0) == pytest.approx(sum_of_heads(hard) / 4, abs=1e-5)
    assert all(test.passed for test in found.self_tests)


def sum_of_heads(model: ToyModel) -> float:
    tokens = model.tokenize(["t1 t2 t3 t1"])
    return float(model.run(tokens, read=[Site("pattern", 1)]).reads[Site("pattern", 1)][0, :, 3, 1].sum())


@pytest.mark.hand_worked
def test_the_edge_that_fills_the_buffer_is_cut_at_its_own_query(hard: ToyModel) -> None:
    """Position 1 may not read position 0 at layer 0: its buffer then holds its own token t2, nothing matches t1, and
    all four keys of layer 1 are at score 0: t2 and t3 get a quarter each, the difference is 0."""
    found = knock(hard, inline_set(ONE), queries=(1,), sources=(0,), window=1, controls=0)
    assert changes(found)["L0", "0:t1"] == pytest.approx(-10, abs=1e-4)
    assert changes(found)["L1", "0:t1"] == pytest.approx(0, abs=1e-6)


@pytest.mark.positive_control
def test_of_all_heads_only_the_induction_head_needs_the_answer(hard: ToyModel, prompts: PromptSet) -> None:
    found = knock(hard, prompts, queries=("END",), sources=("A1", "B1", "rest"), by="head")
    assert [s.cell for s in found.stand_out] == ["L1H2 from B1"]
    assert found.no_more_than_random == ()
    values = changes(found)
    largest = {labels for labels, v in values.items() if abs(v) > 1e-3}
    assert largest == {("L1H2", "B1")}
    assert found.specific is not None
    assert found.specific.at(6, 1) == pytest.approx(found.effects.change.at(6, 1), abs=1e-3)  # random edges: nothing
    assert len(plot(found).panels) == 3


@pytest.mark.negative_control
def test_edges_of_heads_that_do_nothing_change_nothing(hard: ToyModel, prompts: PromptSet) -> None:
    found = knock(hard, prompts, heads=("L0H0", "L0H2", "L1H0", "L1H3"))
    assert set(changes(found).values()) == {0.0}
    assert found.stand_out == ()


@pytest.mark.negative_control
def test_random_edges_are_told_from_themselves_by_nothing() -> None:
    """Answers swapped at random: no cell of an untrained model stands out of random edges by name."""
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    g = torch.Generator().manual_seed(3)
    rows = torch.randint(97, (12, 9), generator=g).tolist()
    given = inline_set([{"clean": r, "answer": 5 + i % 2, "wrong": 6 - i % 2} for i, r in enumerate(rows)])
    found = knock(model, given, sources=(3, 5), controls=3)
    assert found.stand_out == ()


@cache
def wrapped(family: str, backend: str) -> Model:
    return wrap_model(FAMILIES[family](), None, name=f"{family}-{backend}", backend=backend)


@pytest.mark.parametrize(("family", "backend"), [("llama", "local"), ("llama", "nnsight"), ("gpt2", "local")])
@pytest.mark.parametrize("how", ["renormalise", "zero"])
def test_a_cut_agrees_with_a_plain_model_that_computes_attention_itself(family: str, backend: str, how: str) -> None:
    """Shared keys (llama has 2 for 4 heads), one head and all heads, prompts of two lengths in one pass."""
    model = wrapped(family, backend)
    rows: list[list[int]] = [[3, 17, 42, 9, 88, 17, 5, 60, 31], [71, 2, 2, 50, 33, 12]]
    given = inline_set(
        [{"clean": r, "answer": 4, "wrong": 9, "roles": {"X": at}} for r, at in zip(rows, (6, 2), strict=True)]
    )
    encoded = encode(given, model)
    plain = Plain(FAMILIES[family](), family, model.info.d_head)
    for heads, by in ((None, "window"), (("L1H2",), "head")):
        found = knock(
            model, given, sources=("X",), by=by, heads=heads, layers=(1,), how=how, controls=2, metric="logit_diff"
        )
        differences = []
        for at, tokens in zip((6, 2), (encoded.clean.rows([0]), encoded.clean.rows([1])), strict=True):
            mask = torch.zeros(1, 1, 1, tokens.width) if heads is None else torch.zeros(1, 1, tokens.width)
            mask[..., at] = float("-inf")
            index = None if heads is None else 2
            edit = Edit(
                site=Site("scores" if how == "renormalise" else "pattern", 1, index),
                rule="add" if how == "renormalise" else "multiply", positions=(tokens.width - 1,),
                value=mask if how == "renormalise" else mask.exp(),
            )  # fmt: skip
            logits = [plain.run(tokens, e)[1][0, tokens.width - 1] for e in (edit, None)]
            differences.append(float((logits[0][4] - logits[0][9]) - (logits[1][4] - logits[1][9])))
        assert found.effects.change.at(0, 0) == pytest.approx(sum(differences) / 2, abs=1e-4)
        assert all(test.passed for test in found.self_tests)


@pytest.mark.hand_worked
def test_random_edges_are_as_many_of_the_same_query_and_never_chosen_ones() -> None:
    """Query 5 is cut from 2 and 3; of its keys 0 is the first position, 5 itself: only 1 and 4 are left to draw."""
    edges = edges_between([(5,)], [(2, 3)])
    assert edges == (((5, 2), (5, 3)),)
    drawn = random_edges(edges, [6], count=4, seed=0, name="x")
    assert {tuple(sorted(one[0])) for one in drawn.sets} == {((5, 1), (5, 4))}
    few = random_edges(edges_between([(3,)], [(1, 2)]), [6], count=2, seed=0, name="x")
    assert all(len(set(one[0])) == 2 and not {(3, 1), (3, 2)} & set(one[0]) for one in few.sets)
    assert "of other queries" in few.note
    assert random_edges(edges_between([(1,)], [(0, 1)]), [2], count=2, seed=0, name="x").sets == ()


def test_windows_cover_the_layers_and_end_with_all_of_them(hard: ToyModel) -> None:
    model = wrapped("llama", "local")
    given = inline_set([{"clean": [3, 17, 42, 9], "answer": 4, "wrong": 9}])

    def rows(**more: Any) -> tuple[str, ...]:
        return knock(model, given, sources=(1,), controls=0, **more).effects.change.axes[0].labels

    assert rows() == ("L0", "L1", "L2", "all layers")
    assert rows(window=2, stride=1) == ("L0-1", "L1-2", "all layers")
    assert rows(window=2) == ("L0-1", "L2", "all layers")
    assert rows(window=3) == ("L0-2",)
    assert rows(layers=(0, 2)) == ("L0", "L2", "these layers")
    assert rows(heads=("L1H0", "L1H3")) == ("L1",)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"queries": (1,), "sources": (2,)}, BadPosition, "no query of prompt 0 can see"),
        ({"sources": ((0, 1, 2, 3),)}, BadArguments, "no key to attend to"),
        ({"sources": (1, 1)}, BadPosition, "name each group once"),
        ({"sources": (9,)}, BadPosition, "outside prompt 0's 4 tokens"),
        ({"heads": ("L7H0",)}, BadSite, "does not exist|runs from"),
        ({"by": "head", "window": 2}, BadArguments, "leave `window` and `stride` out"),
    ],
)
def test_cuts_that_cannot_be_are_refused(
    hard: ToyModel, more: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        knock(hard, inline_set(ONE), **more)


@pytest.mark.bad_input
def test_a_backend_that_hides_attention_says_which_one_shows_it(hard: ToyModel) -> None:
    blind = induction()
    blind.info = blind.info.model_copy(update={"sites": tuple(k for k in blind.info.sites if k != "scores")})
    with pytest.raises(Unsupported, match="backend='local'"):
        knock(blind, inline_set(ONE), sources=(1,))


def test_every_key_can_be_zeroed(hard: ToyModel) -> None:
    """Nothing is read: the answer's logit is 0. The softmax is left alone, so this is allowed."""
    found = knock(hard, inline_set(ONE), sources=((0, 1, 2, 3),), how="zero", window=1)
    assert changes(found)["L1", "0:t1 + 1:t2 + 2:t3 + 3:t1"] == pytest.approx(-10, abs=1e-4)
    assert any("Without random edges" in w for w in found.warnings)


@pytest.mark.hand_worked
def test_only_the_cut_queries_and_what_follows_them_are_computed_and_the_cost_says_so() -> None:
    """Two prompts of 6 tokens, 3 layers: the intact runs are 2 x 6 x 3 = 36 (row, position, layer) triples. Cut at the
    last token alone, a cell of layer l has the 2 - l layers after its own: rows L0, L1, L2 and all layers have 2, 1, 0
    and 2, times one source and two random sets, times two prompts: 30. Places written: 1 + 1 + 1 + 3 layers."""
    model = wrapped("llama", "local")
    given = inline_set([{"clean": [3, 17, 42, 9, i, 8], "answer": 4, "wrong": 9} for i in (5, 7)])
    found = knock(model, given, sources=(3,), window=1, controls=2)
    assert found.cost.path == "fast"
    assert found.cost.cells == 12
    assert found.cost.layer_tokens == 36 + 30
    assert found.cost.places_written == (1 + 1 + 1 + 3) * 3 * 2
    assert found.cost.flops < found.cost.estimated_flops / 4
    assert any("whole forward passes" in test.name for test in found.self_tests)
    assert all(test.passed for test in found.self_tests)


def test_every_cut_of_every_prompt_is_kept_and_a_call_can_be_cancelled(hard: ToyModel) -> None:
    context = Context(hard, inline_set(ONE))
    run(context, Arguments(model="m", prompts="given", sources=(1, 2), window=1, controls=1))
    assert context.arrays["values"].tensor.shape == (12, 1)  # three rows by two sources, then a random set of each
    assert context.arrays["values"].axes == ("cut", "prompt")

    def stop(done: float, total: float, what: str) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(replace(context, progress=stop), Arguments(model="m", prompts="given", sources=(1,)))
