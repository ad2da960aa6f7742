"""das: a subspace known exactly, the illusion built by hand, row spaces, and the interchange written out."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from anatomist.causal.row_spaces import halves, row_space
from anatomist.causal.subspaces import cosines, orthonormal, random_basis
from anatomist.errors import BadArguments, BadPrompts, BadSite, Unsupported
from anatomist.figures import Bars, Heatmap
from anatomist.model.backends.toy import ToyBlock, ToyModel, ToyWeights
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.edits import Edit
from anatomist.model.loading import random_twin, wrap_model
from anatomist.model.protocol import Model, Run
from anatomist.model.sites import Site
from anatomist.prompts.encoding import encode
from anatomist.prompts.given import inline_set
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context, KeptArray
from anatomist.techniques.das import Arguments, DasResult, plot, run
from torch import Tensor

from tests.backends.families import FAMILIES

V = 6


def circuit() -> ToyModel:
    """The induction circuit, its idle heads silenced: a place then differs in its token and in its buffer alone."""
    model = induction(vocabulary=V, n_ctx=8, unembedding=3.0)
    blocks = []
    for block, true_head in zip(model.weights.blocks, (1, 2), strict=True):
        o = torch.zeros_like(block.o)
        o[true_head] = block.o[true_head]
        blocks.append(replace(block, o=o))
    return ToyModel(replace(model.weights, blocks=tuple(blocks)), name="quiet-induction")


def pairs(n: int = 120) -> PromptSet:
    """'a b c a' -> b against 'd e f d' -> e."""
    draw = random.Random(0)
    rows = [(draw.sample(range(V), 3), draw.sample(range(V), 3)) for _ in range(n)]
    return inline_set([
        {"clean": (a, b, c, a), "corrupted": (d, e, f, d), "answer": b, "wrong": e}
        for (a, b, c), (d, e, f) in rows
        if b != e
    ])  # fmt: skip


def token_block(width: int) -> Tensor:
    """Differences of tokens: five dimensions of the six one-hot ones."""
    known = orthonormal(torch.eye(V) - 1 / V)
    return torch.cat([known, torch.zeros(len(known), width - V)], dim=1)


def search(model: Model, prompts: PromptSet, context: dict[str, Any] | None = None, **more: Any) -> DasResult:
    chosen = {"site": "resid_pre", "layers": (1,), "positions": (1,), **more}
    return run(Context(model, prompts, **(context or {})), Arguments(model="m", prompts="given", **chosen))


@pytest.mark.positive_control
@pytest.mark.parametrize("layer", [0, 1])
def test_the_token_block_is_found_where_it_is_known(layer: int) -> None:
    """Rules out a basis that fits the prompts and is not the variable's: every principal angle is small, on each seed.
    Before layer 1 the whole place also exchanges the previous token, which breaks the match: the subspace must not."""
    kept: dict[str, KeptArray] = {}
    found = search(
        circuit(), pairs(), {"arrays": kept}, layers=(layer,), dimension=V - 1, steps=200, batch=32, controls=3, seeds=2
    ).places[0]
    known = token_block(found.width)
    for basis in kept["subspace"].tensor:
        assert torch.allclose(basis @ basis.T, torch.eye(V - 1), atol=1e-5)
        assert min(cosines(basis, known)) > 0.97
    assert found.subspace.accuracy.mean == 1
    assert found.subspace.top1.mean > 0.9
    assert found.random is not None
    assert found.random.accuracy.mean < 0.05
    assert found.none.accuracy.mean == 0
    assert found.agreement is not None
    assert found.agreement > 0.99
    assert found.row_share is not None
    assert found.row_share > 0.99
    assert found.row_space is not None
    assert found.row_space.accuracy.mean == 1
    if layer == 1:
        assert found.full.top1.mean < 0.6


@pytest.mark.hand_worked
def test_a_given_subspace_is_interchanged_and_nothing_else() -> None:
    """'t0 t1 t2 t0' against 't3 t4 t5 t3', before layer 1 at position 1. The token block alone: the match stays, t4 is
    read: logit 3 for t4, none for t1, difference 3. The buffer alone (from 12 + 8): no match, all of t0 t1 t2 t0 are
    read evenly: t1 has 3/4, t4 nothing: -3/4. The whole place: no match, t0 t4 t2 t0 read evenly: +3/4."""
    one = inline_set([{"clean": (0, 1, 2, 0), "corrupted": (3, 4, 5, 3), "answer": 1, "wrong": 4}])
    width = circuit().info.d_model
    start = {"token": 0, "buffer": V + 8}
    found = {}
    for name, first in start.items():
        rows = tuple(tuple(float(i == first + j) for i in range(width)) for j in range(V))
        found[name] = search(circuit(), one, subspace=rows, direction="noising").places[0]
    assert found["token"].subspace.logit_diff.mean == pytest.approx(3, abs=1e-4)
    assert found["token"].full.logit_diff.mean == pytest.approx(0.75, abs=1e-4)
    assert found["token"].none.logit_diff.mean == pytest.approx(-3, abs=1e-4)
    assert found["buffer"].subspace.logit_diff.mean == pytest.approx(-0.75, abs=1e-4)
    assert found["buffer"].subspace.accuracy.mean == 0
    assert found["token"].searches == ()


def illusion() -> tuple[ToyModel, PromptSet]:
    """Token t0 is answered by t2, t1 by t3, straight from the embedding. Neuron 0 is 2 on t1 and 0 on t0, and nothing
    reads it; neuron 1 is always 0, and would write 10 for t3 against t2."""
    zero = torch.zeros(1, 3, 1)
    block = ToyBlock(
        q=zero, k=zero, v=zero, o=torch.zeros(1, 1, 3),
        mlp_in=torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]),
        mlp_out=torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    )  # fmt: skip
    weights = ToyWeights(
        embedding=torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0], [0, 0, 0]]), positions=None, blocks=(block,),
        unembedding=torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 1.0], [0, 0, -10.0, 10.0]]),
    )  # fmt: skip
    rows = [{"clean": (2 + i % 2, 0), "corrupted": (2 + i % 2, 1), "answer": 2, "wrong": 3} for i in range(9)]
    return ToyModel(weights, name="illusion"), inline_set(rows)


@pytest.mark.hand_worked
def test_the_illusion_is_told_by_the_row_space() -> None:
    """Along (1, 1) / sqrt 2 the difference of 2 at neuron 0 becomes 1 at each neuron: neuron 1 writes 10, the answer
    turns: accuracy 1. The row space is neuron 1, which is 0 in both runs: nothing moves, accuracy 0. So does the null
    space, neuron 0. The whole place does nothing either."""
    model, prompts = illusion()
    found = search(model, prompts, site="neuron", layers=(0,), subspace=((1.0, 1.0),))
    place = found.places[0]
    assert place.subspace.accuracy.mean == 1
    assert place.subspace.logit_diff.mean == pytest.approx(20 - 1)  # 10 for it, 10 off the other, 1 by the embedding
    assert place.row_space is not None
    assert place.row_space.accuracy.mean == 0
    assert place.null_space is not None
    assert place.null_space.accuracy.mean == 0
    assert place.full.accuracy.mean == 0
    assert place.row_share == pytest.approx(0.5)
    assert place.null_dimensions == 1
    assert any("(an illusion)" in w for w in found.warnings)
    assert any("more than the whole place" in w for w in found.warnings)


def test_a_search_falls_for_the_illusion_and_is_caught() -> None:
    model, prompts = illusion()
    found = search(model, prompts, site="neuron", layers=(0,), steps=60)
    assert found.places[0].subspace.accuracy.mean == 1
    assert any("(an illusion)" in w for w in found.warnings)


@pytest.mark.negative_control
def test_where_nothing_carries_the_variable_no_subspace_is_found() -> None:
    """Position 2 is not read for the answer: its tokens differ, but no interchange there gives the other answer."""
    place = search(circuit(), pairs(40), positions=(2,), dimension=3, steps=40, seeds=1).places[0]
    assert place.subspace.accuracy.mean == 0
    assert place.full.accuracy.mean == 0


@pytest.mark.negative_control
def test_an_untrained_model_is_searched_too() -> None:
    """Both are random here: what the search reaches in one says nothing beyond the other, and the result says so."""
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(20, 97, (30, 2, 5), generator=g).tolist()
    given = inline_set([{"clean": c, "corrupted": d, "answer": 5, "wrong": 9} for c, d in rows])
    found = search(
        model, given, {"random_twin": lambda seed: random_twin(model, seed)}, site="resid_post", positions=("last",),
        dimension=16, steps=8, seeds=1, direction="denoising", controls=1,
    )  # fmt: skip
    place = found.places[0]
    assert place.random_model is not None
    assert place.random_model_none is not None
    gains = [
        after.accuracy.mean - before.accuracy.mean
        for after, before in ((place.subspace, place.none), (place.random_model, place.random_model_none))
    ]
    said = any("untrained model lifts" in w for w in found.warnings)
    assert said == (gains[1] > 0.1 and gains[0] - gains[1] < 0.1)
    assert place.row_share == pytest.approx(1, abs=1e-4)  # what reads a residual in mid-model is every direction
    assert place.null_dimensions == 0
    assert any("rules no illusion out" in w for w in found.warnings)


@pytest.mark.parametrize("backend", ["local", "nnsight"])
@pytest.mark.parametrize(("site", "unit"), [("resid_mid", None), ("head", "L1H2"), ("v", "L1KV1"), ("q", "L1H3")])
def test_an_interchange_is_the_arithmetic_written_out(backend: str, site: str, unit: str | None) -> None:
    """x + (s - x) B^T B at the last token, set by an edit of our own; shared values are named by their own head."""
    model = wrap_model(FAMILIES["llama"](), None, name=backend, backend=backend)
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(97, (4, 2, 6), generator=g).tolist()
    given = inline_set([{"clean": c, "corrupted": d, "answer": 5, "wrong": 9} for c, d in rows])
    width = 32 if unit is None else 8
    directions = torch.randn(2, width, generator=g)
    where: dict[str, Any] = {"layers": (1,)} if unit is None else {"heads": (unit,), "layers": None}
    found = search(
        model, given, site=site, positions=("last",), direction="denoising", controls=0, random_model=False,
        subspace=tuple(map(tuple, directions.tolist())), **where,
    ).places[0]  # fmt: skip
    place = Site(site, 1, None if unit is None else int(unit[-1]))  # type: ignore[arg-type]
    encoded = encode(given, model)
    assert encoded.corrupted is not None
    x, s = (model.run(t, read=[place]).reads[place][:, 5] for t in (encoded.corrupted, encoded.clean))
    basis = torch.linalg.qr(directions.T).Q.T
    edit = Edit(site=place, rule="set", positions=(5,), value=(x + (s - x) @ basis.T @ basis)[:, None])
    logits = model.run(encoded.corrupted, edits=[edit], logits_at=encoded.corrupted.last).logits
    assert logits is not None
    assert found.subspace.logit_diff.mean == pytest.approx(float((logits[:, 5] - logits[:, 9]).mean()), abs=1e-4)
    assert found.width == width
    assert (found.row_share is None) == (site == "q")


def test_a_search_follows_gradients_through_each_backend() -> None:
    """The loss falls on both, and both find the same basis from the same seed."""
    bases = []
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(97, (12, 2, 5), generator=g).tolist()
    given = inline_set([{"clean": c, "corrupted": d, "answer": 5, "wrong": 9} for c, d in rows])
    for backend in ("local", "nnsight"):
        model = wrap_model(FAMILIES["llama"](), None, name=backend, backend=backend)
        kept: dict[str, KeptArray] = {}
        search(
            model, given, {"arrays": kept}, site="resid_post", positions=("last",), dimension=2, steps=8, seeds=1,
            controls=0, random_model=False,
        )  # fmt: skip
        losses = kept["subspace-loss"].tensor[0]
        assert losses[-3:].mean() < losses[:3].mean()
        bases.append(kept["subspace"].tensor[0])
    assert min(cosines(*bases)) > 0.999


def test_the_row_space_leaves_out_what_nothing_reads() -> None:
    """Junk (the last 8) is read by nobody; everything else by the idle heads. After the last block the output alone."""
    model = induction(vocabulary=V, n_ctx=8)
    read = row_space(model, Site("resid_pre", 1))
    assert read is not None
    assert float(read[:, -8:].abs().max()) < 1e-5
    assert len(read) == model.info.d_model - 8
    last = row_space(model, Site("resid_post", 1))
    assert last is not None
    assert len(last) == V
    split = halves(random_basis(model.info.d_model, 3, 0), last)
    assert split.row is not None
    assert split.null is not None
    assert float((split.row @ split.null.T).abs().max()) < 1e-5


def test_a_subspace_of_an_earlier_run_is_taken_by_name() -> None:
    model, prompts = circuit(), pairs(20)
    kept: dict[str, KeptArray] = {}
    first = search(model, prompts, {"arrays": kept}, dimension=2, steps=5, seeds=2, controls=0).places[0]
    again = search(model, prompts, {"saved": lambda run, name: kept[name]}, subspace="abc123/subspace").places[0]
    assert again.dimension == 2
    assert again.array == first.array
    with pytest.raises(BadArguments, match="write 'run/array'"):
        search(model, prompts, subspace="abc123")
    with pytest.raises(BadArguments, match="no stored runs"):
        search(model, prompts, subspace="abc123/subspace")


def test_one_place_is_drawn_as_bars_and_several_as_a_map() -> None:
    rows = tuple(tuple(float(i == j) for i in range(circuit().info.d_model)) for j in range(V))
    one = search(circuit(), pairs(9), subspace=rows, controls=2)
    bars = plot(one).panels[0]
    assert isinstance(bars, Bars)
    assert bars.domain == (0, 1)
    assert bars.labels[-2:] == ("given subspace", "whole place")
    assert bars.reference == bars.values[-1] == one.places[0].full.accuracy.mean
    two = search(circuit(), pairs(9), subspace=rows, controls=2, layers=(0, 1))
    drawn = plot(two).panels[0]
    assert isinstance(drawn, Heatmap)
    assert drawn.grid.axes[1].labels[-1] == "whole place"
    assert drawn.text is not None
    assert drawn.text[-1] == f"{two.places[1].full.accuracy.mean:.0%}"
    assert two.best in {p.name for p in two.places}


def test_a_map_keeps_the_order_from_floor_to_ceiling_where_places_have_other_parts() -> None:
    """The first place lacks a null space, the second a random subspace: both columns stand where they belong."""
    rows = tuple(tuple(float(i == j) for i in range(circuit().info.d_model)) for j in range(V))
    result = search(circuit(), pairs(9), subspace=rows, controls=2, layers=(0, 1))
    first, second = result.places
    null = first.none.model_copy(update={"what": "subspace in the null space"})
    second = second.model_copy(update={"null_space": null, "random": None})
    mixed = result.model_copy(update={"places": (first.model_copy(update={"null_space": None}), second)})
    drawn = plot(mixed).panels[0]
    assert isinstance(drawn, Heatmap)
    labels = list(drawn.grid.axes[1].labels)
    assert labels == [
        "nothing", "random subspace", "subspace in the null space", "subspace in the row space", "given subspace",
        "whole place",
    ]  # fmt: skip
    assert drawn.text is not None
    assert drawn.text[labels.index("subspace in the null space")] == ""
    assert drawn.text[len(labels) + 1] == ""


class WithoutGradients(ToyModel):
    def run(self, *args: Any, **named: Any) -> Run:
        return super().run(*args, **{**named, "gradients": False})


@pytest.mark.bad_input
def test_a_backend_without_gradients_says_what_to_do() -> None:
    blind = WithoutGradients(circuit().weights, name="blind")
    with torch.no_grad(), pytest.raises(Unsupported, match="backend='local'"):
        search(blind, pairs(9), steps=2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"layers": None}, BadArguments, "name `layers`"),
        ({"heads": ("L1H2",)}, BadArguments, "has no heads"),
        ({"layers": (5,)}, BadSite, "layers are 0 to 1"),
        ({"dimension": 1000}, BadArguments, "more than the 34 features"),
        ({"subspace": ((1.0, 2.0),)}, BadArguments, "directions of 2 numbers; this place has 34"),
        ({"subspace": ((0.0,) * 34,)}, BadArguments, "span 0 dimensions"),
        ({"subspace": ((1.0,) * 34, (2.0,) * 34)}, BadArguments, "span 1 dimensions"),
        ({"positions": (1, 1)}, BadArguments, "each once"),
    ],
)
def test_searches_that_cannot_be_are_refused(more: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        search(circuit(), pairs(9), **more)


@pytest.mark.bad_input
def test_prompts_that_leave_nothing_to_learn_or_judge_on_are_refused() -> None:
    two = [{"clean": (0, 1, 2, 0), "corrupted": (3, 4, 5, 3), "answer": 1, "wrong": 4} for _ in range(2)]
    with pytest.raises(BadPrompts, match="must be kept back"):
        search(circuit(), inline_set(two), steps=2)
    same = [{"clean": (0, 1, 2, i), "corrupted": (0, 1, 2, i), "answer": 1, "wrong": 4} for i in range(4)]
    with pytest.raises(BadArguments, match="nothing to interchange"):
        search(circuit(), inline_set(same), steps=2)
