"""embedding_geometry: small matrices by hand, sklearn, a planted ring, outliers put in, SmolLM2's first position."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from anatomist.errors import BadArguments, BadPosition, BadSite
from anatomist.measures import geometry as g
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, random_toy, tiny
from anatomist.model.loading import random_twin, wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.prompts.corpus import Corpus, corpus_of
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.technique import Context
from anatomist.techniques.embedding_geometry import Arguments as Args
from anatomist.techniques.embedding_geometry import EmbeddingGeometryResult, plot, run

from tests.backends.families import FAMILIES


def look(
    model: Model, *, prompts: tuple[Any, ...] = (), text: Corpus | None = None, **more: Any
) -> EmbeddingGeometryResult:
    given = PromptSet(handle="p", task="t", split="inline", prompts=tuple(Prompt(clean=p) for p in prompts))
    context = Context(model, prompts=given if prompts else None, text=text, random_twin=lambda s: random_twin(model, s))
    if prompts:
        more["prompts"] = given.prompts
    return run(context, Args(model="m", **more))


@cache
def llama() -> Model:
    return wrap_model(FAMILIES["llama"](), None, name="llama")


def with_embedding(rows: torch.Tensor) -> ToyModel:
    """A toy whose token embeddings are given; everything behind them is random."""
    n, d = rows.shape
    assert d % 2 == 0
    model = random_toy(vocabulary=n, heads=2, kv_heads=2, d_head=d // 2, seed=1)
    return ToyModel(replace(model.weights, embedding=rows.float()), name="planted")


def ring(n: int, width: int, noise: float, seed: int = 0) -> torch.Tensor:
    """Points on a circle in a random plane, far from the origin, with noise."""
    generator = torch.Generator().manual_seed(seed)
    plane, _ = torch.linalg.qr(torch.randn(width, 3, generator=generator))
    turn = 2 * torch.pi * torch.arange(n) / n
    circle = turn.cos()[:, None] * plane[:, 0] + turn.sin()[:, None] * plane[:, 1] + 3 * plane[:, 2]
    return circle + noise * torch.randn(n, width, generator=generator) / width**0.5


@pytest.mark.hand_worked
def test_three_points_by_hand() -> None:
    """toy-tiny: (1, 0), (0, 1), (-1, 2). Cosines 0, -1 / sqrt 5, 2 / sqrt 5: their mean is 1 / (3 sqrt 5).

    Mean (0, 1); centred (1, -1), (0, 0), (-1, 1): a line, all variance 4/3 along (1, -1): effective dimension 1.
    The unit vectors are (1, 0), (0, 1), (-1, 2) / sqrt 5: pairs along x give -1 / sqrt 5, along y 2 / sqrt 5, by 3.
    """
    found = look(tiny(), tokens=("t0", "t1", "t2"))
    (at,) = found.places
    assert at.mean_cosine == pytest.approx(1 / (3 * 5**0.5))
    assert at.participation == pytest.approx(1.0)
    assert (at.first_share, at.components_90) == (pytest.approx(1.0), 1)
    assert {d.dimension: d.of_cosine for d in at.dimensions} == pytest.approx(
        {0: -1 / (3 * 5**0.5), 1: 2 / (3 * 5**0.5)}
    )
    assert {d.dimension: d.of_square for d in at.dimensions} == pytest.approx({0: 2 / 7, 1: 5 / 7})
    assert found.raw_cosines is not None
    assert found.raw_cosines.at(0, 2) == pytest.approx(-1 / 5**0.5)
    assert found.raw_cosines.at(1, 2) == pytest.approx(2 / 5**0.5)
    assert found.cosines is not None
    assert found.cosines.at(0, 2) == pytest.approx(-1.0)
    first = [found.coordinates.at(i, 0) or 0.0 for i in range(3)]
    assert [v * np.sign(first[0]) for v in first] == pytest.approx([2**0.5, 0.0, -(2**0.5)])
    assert all(t.passed for t in found.self_tests)


@pytest.mark.hand_worked
def test_the_vocabulary_of_the_hand_set_circuit_is_as_spread_out_as_can_be() -> None:
    """One-hot embeddings: all cosines 0; centred, 19 equal variances: effective dimension 19, cosines -1 / 19."""
    (at,) = look(induction(), points=20).places
    assert at.mean_cosine == pytest.approx(0, abs=1e-12)
    assert at.mean_cosine_centred == pytest.approx(-1 / 19)
    assert at.participation == pytest.approx(19.0)
    assert at.components_90 == 18  # 17 of 19 are 89.5%


@pytest.mark.hand_worked
def test_a_line_and_a_cycle_by_hand() -> None:
    """0, 1, 2 are a line: explained wholly. Corners of a square in turn are a cycle, wholly; as a line, a fifth:

    x = 1, 0, -1, 0 and y = 0, 1, 0, -1 against -1.5, -.5, .5, 1.5: products -2 and -2, squares 8 / 5 of 4: 2/5.
    """
    line = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert g.order_fit(line, "line", seed=0, shuffles=5).share == pytest.approx(1.0)
    assert g.order_fit(square, "cycle", seed=0, shuffles=5).share == pytest.approx(1.0)
    assert g.order_fit(square, "line", seed=0, shuffles=5).share == pytest.approx(0.4)


@pytest.mark.positive_control
def test_components_and_cosines_are_those_of_sklearn() -> None:
    from sklearn.decomposition import PCA
    from sklearn.metrics.pairwise import cosine_similarity

    x = np.random.default_rng(0).standard_normal((30, 12)) * np.linspace(3, 0.1, 12) + 2
    mine, theirs = g.principal(x), PCA().fit(x)
    assert mine.shares == pytest.approx(theirs.explained_variance_ratio_)
    assert abs(mine.coordinates) == pytest.approx(abs(theirs.transform(x)), abs=1e-9)
    assert abs(mine.components) == pytest.approx(np.abs(np.asarray(theirs.components_)), abs=1e-9)
    own = cosine_similarity(x)
    assert g.cosines(x) == pytest.approx(own)
    assert g.mean_cosine(x) == pytest.approx(own[~np.eye(30, dtype=bool)].mean())


@pytest.mark.positive_control
def test_a_planted_ring_is_found_as_one() -> None:
    """Twelve 'months' on a circle of radius 1 with noise of length .3, all 3 from the origin."""
    found = look(with_embedding(ring(12, 32, 0.3)), tokens=tuple(range(12)), order="cycle")
    (at,) = found.places
    assert at.ordering is not None
    assert at.ordering.share > 0.85
    assert at.ordering.by_chance == pytest.approx(2 / 11, abs=0.02)
    assert at.ordering.p < 0.005
    points = np.array([[found.coordinates.at(i, k) for k in range(2)] for i in range(12)], dtype=float)
    angles = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    assert abs(angles[-1] - angles[0]) == pytest.approx(2 * np.pi * 11 / 12, abs=0.5)  # one turn, in order
    assert np.linalg.norm(points, axis=1) == pytest.approx(np.ones(12), abs=0.35)
    assert sum(found.explained[:2]) > 0.85
    assert at.mean_cosine > 0.7  # the ring is far from the origin: cosines are high between opposite points too
    assert any("high cosine" in w for w in found.warnings)


@pytest.mark.negative_control
def test_points_without_order_are_called_a_ring_no_more_often_than_stated() -> None:
    """20 clouds of 12 points: p below .05 in at most 4 (5 or more has probability .003)."""
    rng = np.random.default_rng(0)
    p = [g.order_fit(rng.standard_normal((12, 30)), "cycle", seed=s, shuffles=200).p for s in range(20)]
    assert sum(v < 0.05 for v in p) <= 4


@pytest.mark.negative_control
def test_a_ring_given_in_another_order_is_none() -> None:
    order = (0, 5, 2, 9, 7, 1, 11, 3, 8, 4, 10, 6)
    (at,) = look(with_embedding(ring(12, 32, 0.3)), tokens=order, order="cycle").places
    assert at.ordering is not None
    assert at.ordering.p > 0.05


@pytest.mark.negative_control
@pytest.mark.parametrize(("n", "width"), [(60, 20), (20, 100), (300, 300)])
def test_noise_has_the_dimension_that_is_stated(n: int, width: int) -> None:
    x = np.random.default_rng(1).standard_normal((n, width))
    assert g.participation(g.principal(x).variances) == pytest.approx(g.participation_of_noise(n, width), rel=0.06)


@pytest.mark.positive_control
def test_an_outlying_point_is_named_and_left_out_of_the_picture() -> None:
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    x[17] *= 50
    found = look(with_embedding(x), points=40)
    (at,) = found.places
    assert (at.n_outliers, at.outliers[0].point) == (1, "t17")
    assert at.participation < 1.2
    assert at.participation_rest is not None
    assert at.participation_rest > 8
    assert found.left_out == 1
    assert "t17" not in found.coordinates.axes[0].labels
    assert any("Massive norms" in w and "'t17'" in w for w in found.warnings)
    assert look(with_embedding(x), tokens=tuple(range(10, 20))).left_out == 0  # named points are all shown


@pytest.mark.positive_control
def test_an_outlying_dimension_is_named() -> None:
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    x[:, 5] += 8
    found = look(with_embedding(x), points=40)
    d = found.places[0].dimensions[0]
    assert d.dimension == 5
    assert d.of_cosine == pytest.approx(found.places[0].mean_cosine, abs=0.05)
    assert any("Dimension 5 alone" in w for w in found.warnings)


def test_activations_are_those_of_the_model_at_the_places_named() -> None:
    """Rules out rows or positions that changed places where rows are grouped by length."""
    model, rows = llama(), ((3, 4, 5, 6), (7, 8), (9, 10, 11, 12, 13), (14, 15, 16), (17, 18))
    context = Context(model, prompts=PromptSet(handle="p", task="t", split="inline",
                                               prompts=tuple(Prompt(clean=r) for r in rows)))  # fmt: skip
    arguments = Args(model="m", space="resid_post", layers=(1,), prompts=context.prompts.prompts)  # type: ignore[union-attr]
    run(context, arguments)
    site = Site("resid_post", 1)
    own = torch.stack([model.run(model.tokenize([r]), read=[site]).reads[site][0, -1] for r in rows])
    assert torch.allclose(context.arrays["points"].tensor, own, atol=1e-5)


def test_text_gives_positions_with_their_tokens_and_layers_give_a_place_each() -> None:
    text = Corpus("toy text", tuple(" ".join(f"t{(i * 7 + j) % 11}" for j in range(30)) for i in range(12)))
    found = look(random_toy(n_ctx=64), text=text, space="resid_post", points=50)
    assert [p.place for p in found.places] == ["blocks.0.resid_post", "blocks.1.resid_post"]
    assert found.n == 50
    assert all(label.partition(":")[0].isdigit() for label in found.coordinates.axes[0].labels)
    assert found.cosines is None  # 50 by 50 is not shown
    assert [p.kind for p in plot(found).panels] == ["scatter", "lines", "lines"]


def test_an_untrained_twin_stands_beside_models_that_have_a_configuration() -> None:
    found = look(llama(), points=60)
    assert found.places[0].untrained is not None
    assert abs(found.places[0].untrained.mean_cosine) < 0.1
    assert any("No untrained model" in w for w in look(tiny(), tokens=("t0", "t1", "t2")).warnings)


def test_tokens_that_stand_alone_at_the_first_position_are_warned_of() -> None:
    alone = look(llama(), tokens=(3, 4, 5), space="resid_post", layers=(1,))
    assert any("alone at position 0" in w for w in alone.warnings)
    assert not any("alone at position 0" in w for w in look(llama(), tokens=(3, 4, 5)).warnings)


def test_the_picture_has_points_cosines_and_components() -> None:
    figure = plot(look(with_embedding(ring(12, 32, 0.3)), tokens=tuple(range(12))))
    assert [p.kind for p in figure.panels] == ["scatter", "heatmap", "bars"]
    points = figure.panels[0]
    assert points.labels == tuple(f"t{i}" for i in range(12))  # type: ignore[union-attr]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"tokens": (3, 4)}, BadArguments, "2 points"),
        ({"tokens": (3, 4, 4)}, BadArguments, "each once"),
        ({"tokens": (3, 4, 500)}, BadArguments, "outside the vocabulary"),
        ({"tokens": (3, 4, 5), "space": "resid_post", "layers": (7,)}, BadSite, "layers are 0 to 2"),
        ({"tokens": (3, 4, 5), "space": "resid_post", "layers": (0,), "shown_layer": 2}, BadArguments, "not among"),
        ({"space": "resid_post"}, BadArguments, "give `prompts`"),
        ({"prompts": ((3, 4), (5, 6), (7, 8))}, BadArguments, "a row per token"),
        ({"prompts": ((3, 4), (5, 6), (7, 8)), "tokens": (1, 2, 3)}, BadArguments, "not both"),
        ({"prompts": ((3, 4), (5, 6), (7, 8)), "space": "resid_post", "position": 9}, BadPosition, "outside prompt"),
    ],
)
def test_bad_points_are_told(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        look(llama(), **arguments)


@pytest.mark.slow
@pytest.mark.positive_control
def test_the_first_position_of_smollm2_is_named_as_massive(smollm2: Model) -> None:
    """Sun et al.: a few dimensions at the first position are thousands of times the median; here one, number 507."""
    text = corpus_of("python", None)  # type: ignore[arg-type]
    found = look(smollm2, text=text, space="resid_post", layers=(0, 15), points=200, untrained=False)
    before, at = found.places
    assert before.n_outliers == 0
    assert at.n_outliers >= 2
    assert all(o.point.startswith("0:") and o.times > 50 for o in at.outliers)
    assert max(at.dimensions, key=lambda d: d.of_square).of_square > 0.9
    assert at.participation < 1.5
    assert at.participation_rest is not None
    assert at.participation_rest > 20


@pytest.mark.positive_control
def test_months_of_smollm2_lie_around_a_cycle_in_their_order(smollm2: Model) -> None:
    names = [
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ]  # fmt: skip
    (at,) = look(smollm2, tokens=tuple(f" {n}" for n in names), order="cycle", untrained=False).places
    assert at.ordering is not None
    assert at.ordering.p < 0.01
    shuffled = [names[i] for i in (3, 8, 0, 11, 5, 2, 9, 6, 1, 10, 4, 7)]
    (other,) = look(smollm2, tokens=tuple(f" {n}" for n in shuffled), order="cycle", untrained=False).places
    assert other.ordering is not None
    assert other.ordering.p > 0.05
