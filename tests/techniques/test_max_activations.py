"""max_activations: a neuron worked out on paper, every number against all values at once, planted units found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from anatomist.causal.examples import SAMPLE, SPARE, Best, Example, Histogram
from anatomist.errors import BadArguments, BadPrompts, BadSite, Cancelled
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, random_toy, tiny
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.prompts.corpus import Corpus
from anatomist.prompts.windows import Window, windows
from anatomist.technique import Context, KeptArray
from anatomist.techniques.max_activations import Arguments as Args
from anatomist.techniques.max_activations import MaxActivationsResult, UnitActivations, plot, run

VOCABULARY, CONTEXT = 11, 16


def text_of(rows: Sequence[Sequence[int]]) -> Corpus:
    return Corpus("toy text", tuple(" ".join(f"t{i}" for i in row) for row in rows))


def random_text(n: int, length: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Corpus:
    rng = random.Random(seed)
    return text_of([[rng.randrange(vocabulary) for _ in range(length)] for _ in range(n)])


def look(model: Model, text: Corpus, **more: Any) -> MaxActivationsResult:
    arguments: dict[str, Any] = {"width": 12, "n_tokens": 100_000, "skip_first": 0} | more
    return run(Context(model, text=text), Args(model="m", **arguments))


def group(unit: UnitActivations, kind: str) -> list[tuple[str, float]]:
    """Token and value of every example of a kind."""
    (found,) = [g for g in unit.groups if g.kind == kind]
    return [(e.tokens[e.focus], e.value) for e in found.examples]


def planted(of_token: dict[int, float], of_position: Sequence[float] = ()) -> ToyModel:
    """A toy whose neuron L0N0 is relu of a sum of what the token and what the position are worth; the head is silent.

    Token and position embeddings are 27 independent vectors of 32 dimensions, so that any such sum can be read.
    """
    model = random_toy(heads=4, kv_heads=4, d_head=8, layers=1, seed=5)
    w, block = model.weights, model.weights.blocks[0]
    assert w.positions is not None
    assert block.mlp_in is not None
    worth = [of_token.get(i, 0.0) for i in range(VOCABULARY)] + [*of_position, *[0.0] * (CONTEXT - len(of_position))]
    into = block.mlp_in.clone()
    into[:, 0] = torch.linalg.lstsq(torch.cat([w.embedding, w.positions]), torch.tensor(worth)[:, None]).solution[:, 0]
    silent = replace(block, o=torch.zeros_like(block.o), mlp_in=into)
    return ToyModel(replace(w, blocks=(silent,)), name="planted", n_ctx=CONTEXT)


def every_value(model: Model, text: Corpus, site: Site, width: int) -> dict[tuple[int, int], float]:
    """(document, position) -> value, one window a pass."""
    found = {}
    for d, document in enumerate(text.documents):
        ids = model.token_ids(document)
        for start in range(0, len(ids), width):
            tokens = model.tokenize([ids[start : start + width]])
            for t, value in enumerate(model.run(tokens, read=[site]).reads[site][0].tolist()):
                found[d, start + t] = value
    return found


@pytest.mark.hand_worked
def test_a_neuron_of_the_tiny_toy_by_hand() -> None:
    """Tokens t0 t1 t2 t0: x0 of the embeddings 1, 0, -1, 1, of their running means 1, 1/2, 0, 1/4.

    The head adds twice the mean, so N0 = relu(x0) is 3, 1, 0, 1.5: mean 1.375, squares about it 4.6875, variance
    1.171875. The top example, 3, stands for 1.625 ** 2 / 4.6875. Within tokens only t0 varies: 2 * .75 ** 2 = 1.125
    with 4 - 3 degrees of freedom, against 4.6875 with 3: by token 1 - 1.125 / 1.5625 = .28. Active are 1, 1.5, 3.
    """
    (unit,) = look(tiny(), text_of([[0, 1, 2, 0]]), units=("L0N0",), top=1).units
    assert (unit.mean, unit.sd, unit.highest, unit.lowest) == pytest.approx((1.375, 1.171875**0.5, 3.0, 0.0))
    assert (unit.density, unit.median_active) == (0.75, 1.5)
    assert unit.top_share == pytest.approx(1.625**2 / 4.6875)
    assert unit.by_token == pytest.approx(0.28)
    assert group(unit, "top") == [("t0", 3.0)]
    assert group(unit, "middle") == [("t0", 1.5)]
    assert group(unit, "low") == [("t1", 1.0)]
    top = unit.groups[0].examples[0]
    assert (top.document, top.position, top.values) == (0, 0, pytest.approx((3.0, 1.0, 0.0, 1.5)))
    assert sum(unit.histogram.counts) == 4


@pytest.mark.positive_control
def test_every_number_is_that_of_all_values_at_once() -> None:
    """Rules out windows read twice or dropped, rows of another order, padding counted, a wrong document or position."""
    model, text = random_toy(seed=2), random_text(30, 31)
    found = look(model, text, units=("L1N3",), width=12, top=5, seed=3).units[0]
    own = every_value(model, text, Site("neuron", 1, 3), 12)
    values = torch.tensor(list(own.values()), dtype=torch.float64)
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-5)
    assert found.sd == pytest.approx(float(values.std(unbiased=False)), rel=1e-5)
    assert found.density == pytest.approx(float((values > 0).double().mean()))
    assert found.median_active == pytest.approx(float(values[values > 0].median()), rel=0.02)
    for g in found.groups:
        for e in g.examples:
            assert e.value == pytest.approx(own[e.document, e.position], abs=1e-5)
            assert e.tokens[e.focus] == f"t{model.token_ids(text.documents[e.document])[e.position]}"
            assert e.values[e.focus] == e.value
    best = {d: max(v for (doc, _), v in own.items() if doc == d) for d in range(30)}
    expected = sorted(best.values(), reverse=True)[:5]
    assert [v for _, v in group(found, "top")] == pytest.approx(expected, abs=1e-5)
    assert len({e.document for e in found.groups[0].examples}) == 5
    assert sum(found.histogram.counts) == len(own) == 930


@pytest.mark.positive_control
def test_a_neuron_made_for_one_token_is_found_to_depend_on_it() -> None:
    found = look(planted({7: 5.0}), random_text(20, 30), units=("L0N0",), active_above=0.01).units[0]
    assert {t for t, _ in group(found, "top")} == {"t7"}
    assert found.highest == pytest.approx(5.0, abs=1e-3)
    assert found.by_token == pytest.approx(1.0, abs=1e-3)
    assert found.density == pytest.approx(1 / 11, abs=0.04)


@pytest.mark.positive_control
def test_the_second_thing_a_neuron_stands_for_shows_below_the_top() -> None:
    """The illusion: ten for t7, two for each of t1 to t4. The top shows t7 alone, the middle none of it."""
    model, text = planted({7: 10.0, 1: 2.0, 2: 2.0, 3: 2.0, 4: 2.0}), random_text(40, 30)
    found = look(model, text, units=("L0N0",), top=8)
    unit = found.units[0]
    assert {t for t, _ in group(unit, "top")} == {"t7"}
    assert "t7" not in {t for t, _ in group(unit, "middle")}
    assert {t for t, _ in group(unit, "middle")} <= {"t1", "t2", "t3", "t4"}
    assert unit.top_share < 0.15
    assert "Top examples alone mislead" in found.warnings[0]


@pytest.mark.negative_control
def test_a_neuron_that_reads_the_position_alone_does_not_depend_on_the_token() -> None:
    found = look(planted({}, [float(i % 5) for i in range(12)]), random_text(60, 24), units=("L0N0",)).units[0]
    assert found.by_token is not None
    assert abs(found.by_token) < 0.05


@pytest.mark.negative_control
def test_a_neuron_that_is_never_active_is_told() -> None:
    found = look(planted({}), random_text(5, 24), units=("L0N0",), active_above=0.1)
    assert found.units[0].density == 0
    assert found.units[0].median_active is None
    assert {g.kind for g in found.units[0].groups} == {"top", "random"}
    assert any("never above" in w for w in found.warnings)


@pytest.mark.positive_control
def test_the_induction_head_writes_where_a_token_comes_again() -> None:
    """t3 t1 t4 t1 t5: with hard attention L1H2 writes one token (length 1) where its query matched once, so at the
    second t1; elsewhere its attention is spread over what it sees and the vector it writes is shorter."""
    rng = random.Random(0)
    rows = [rng.sample(range(20), 10) for _ in range(12)]
    text = text_of([row + row[:3] for row in rows])
    found = look(induction(), text, units=("L1H2",), width=16, top=6, per_document=3, skip_first=1).units[0]
    assert found.highest == pytest.approx(1.0, abs=1e-4)
    assert all(e.position >= 10 or e.position == 1 for e in found.groups[0].examples)
    assert "bottom" not in {g.kind for g in found.groups}  # a length has no other end


def test_a_direction_is_read_as_a_projection_and_looked_up_in_a_run() -> None:
    model, text = random_toy(seed=1), random_text(10, 20)
    vector = torch.randn(8, generator=torch.Generator().manual_seed(0))
    kept = {"mean_difference": torch.stack([torch.ones(8), vector]), "layers": torch.tensor([0, 1])}

    def saved(run: str, name: str) -> KeptArray:
        return KeptArray(kept[name], ("layer", "d_model")[: kept[name].ndim], "")

    arguments = Args(
        model="m", directions=({"run": "r-0001", "array": "mean_difference", "layer": 1},), width=12, skip_first=0,  # type: ignore[arg-type]
    )  # fmt: skip
    found = run(Context(model, text=text, saved=saved), arguments).units[0]
    best = found.groups[0].examples[0]
    ids = model.token_ids(text.documents[best.document])
    start = best.position // 12 * 12
    site = Site("resid_post", 1)
    x = model.run(model.tokenize([ids[start : start + 12]]), read=[site]).reads[site][0, best.position - start]
    assert best.value == pytest.approx(float(x @ vector / vector.norm()), abs=1e-5)
    assert found.unit == "mean_difference of r-0001, layer 1 at blocks.1.resid_post"
    assert found.groups[-1].kind == "bottom"
    assert group(found, "bottom")[0][1] == pytest.approx(found.lowest)


def test_the_same_stretch_of_text_is_one_example() -> None:
    same = [[7, 1, 2, 3, 4, 5, 6, 8]] * 9 + [[0, 0, 1, 2, 7, 0, 1, 2]]
    found = look(planted({7: 5.0}), text_of(same), units=("L0N0",), top=4).units[0]
    assert [e.value for e in found.groups[0].examples if e.value > 1] == pytest.approx([5.0, 5.0], abs=1e-3)
    assert found.repetitions >= 8


def test_memory_does_not_grow_with_the_text() -> None:
    rng, best = random.Random(0), Best(wanted=3, per_document=2)
    for i in range(2000):
        ids = tuple(rng.randrange(1000) for _ in range(6))
        best.offer(Example(rng.random(), Window(i % 400, 0, ids), (0.0,) * 6, 5))
    assert len(best.kept) <= 3 * SPARE
    assert best.best() == sorted(best.kept, key=lambda e: -e.value)[:3]
    assert max(Counter(e.window.document for e in best.kept).values()) <= 2
    from anatomist.causal.examples import _Reservoir

    sample = _Reservoir(random.Random(1))
    for i in range(4 * SAMPLE):
        sample.offer(Window(i, 0, (1, 2, 3, 4)), torch.zeros(4, 1).numpy())
    assert len(sample.kept) == SAMPLE
    assert sum(w.document >= 2 * SAMPLE for w, _ in sample.kept) == pytest.approx(SAMPLE / 2, abs=0.15 * SAMPLE)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_a_histogram_that_grows_holds_every_value_once(scale: float) -> None:
    import numpy as np

    rng, found = np.random.default_rng(0), Histogram()
    parts = [rng.standard_normal(50) * scale * k for k in (0.01, 1, 30, 0.1)] + [np.array([-500.0 * scale])]
    for part in parts:
        found.add(part)
    edges, counts = found.trimmed()
    assert counts == tuple(np.histogram(np.concatenate(parts), bins=np.array(edges))[0])
    assert sum(counts) == 201


def test_windows_keep_to_one_document_and_are_the_same_at_every_call() -> None:
    model, text = tiny(), Corpus("x", tuple(" ".join(["t0"] * n) for n in (30, 3, 8, 50)))
    first = list(windows(text, model, width=8, n_tokens=1000, seed=1))
    assert first == list(windows(text, model, width=8, n_tokens=1000, seed=1))
    assert sum(len(w.ids) for w in first) == 30 + 8 + 48  # rests of fewer than 4 tokens are left out
    assert len({(w.document, w.start) for w in first}) == len(first)
    few = list(windows(text, model, width=8, n_tokens=24, seed=1))
    assert {w.document for w in few} == {0, 2, 3}  # a small sample is of all documents


def test_progress_is_told_and_a_caller_can_stop() -> None:
    told: list[float] = []

    def progress(done: float, total: float, what: str) -> None:
        told.append(done / total)
        if len(told) == 2:
            raise Cancelled("stopped")

    context = Context(random_toy(), text=random_text(100, 24), progress=progress)
    with pytest.raises(Cancelled):
        run(context, Args(model="m", units=("L0N0",), width=12, n_tokens=2000))
    assert 0 < told[0] < told[1] < 1


def test_the_picture_frames_the_example_in_every_row() -> None:
    figure = plot(look(random_toy(), random_text(20, 30), units=("L1N3", "L0H1", "L0N2")))
    assert [p.kind for p in figure.panels] == ["text", "lines"] * 2
    rows = figure.panels[0].rows  # type: ignore[union-attr]
    assert [r.group.split(" (")[0] for r in rows[:1]] == ["highest"]
    assert all(r.focus is not None and r.label.startswith(f"{r.values[r.focus]:.3g}") for r in rows)
    assert "Not drawn: L0N2" in figure.caption


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, BadArguments, "name `units`"),
        ({"units": ("L0N1", "L0N1")}, BadArguments, "named twice"),
        ({"units": ("L0N99",)}, BadSite, "does not exist"),
        ({"directions": ({"values": (1.0,) * 8},)}, BadArguments, "where the direction is read"),
        ({"directions": ({"values": (1.0,) * 8},), "site": "blocks.0.neuron"}, BadArguments, "read at embed"),
        ({"directions": ({"values": (1.0,) * 3},), "site": "blocks.0.resid_post"}, BadArguments, "width is 8"),
        ({"directions": ({"values": (0.0,) * 8},), "site": "blocks.0.resid_post"}, BadArguments, "zero"),
    ],
)
def test_bad_units_are_told(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        look(random_toy(), random_text(2, 20), **arguments)


@pytest.mark.bad_input
def test_text_that_is_too_short_is_told() -> None:
    with pytest.raises(BadPrompts, match="no document"):
        look(tiny(), text_of([[0, 1], [2]]), units=("L0N0",))
    with pytest.raises(BadPrompts, match="no token is left"):
        look(tiny(), text_of([[0, 1, 2, 0]]), units=("L0N0",), skip_first=9)
    with pytest.raises(BadArguments, match="no MLPs"):
        look(induction(), random_text(2, 10), units=("L0N1",))


@pytest.mark.slow
@pytest.mark.positive_control
def test_a_neuron_of_smollm2_that_reads_marks_has_them_at_its_lower_end(smollm2: Model) -> None:
    """token_statistics: the gate of L27N463 opens for '?' and its kind. In text such marks are at the end below zero;
    the top examples are words, and of them alone nobody would have guessed it."""
    from anatomist.prompts.corpus import corpus_of

    text = corpus_of("python", None)  # type: ignore[arg-type]
    found = run(Context(smollm2, text=text), Args(model="m", units=("L27N463",), n_tokens=4000)).units[0]
    marks = {kind: sum(not any(c.isalnum() for c in t) for t, _ in group(found, kind)) for kind in ("bottom", "top")}
    assert marks["bottom"] >= 5
    assert marks["bottom"] > marks["top"]
