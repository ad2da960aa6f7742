"""composition_scores: the hand-set circuit by hand, random models against matrices written out, the random baseline."""

from __future__ import annotations

from functools import cache
from math import sqrt
from typing import Any

import pytest
import torch
from anatomist.causal.composition import random_scores, scores_between
from anatomist.causal.low_rank import triangular
from anatomist.errors import BadArguments, BadSite, Unsupported
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.loading import random_twin, wrap_model
from anatomist.model.protocol import Model
from anatomist.technique import Context
from anatomist.techniques.composition_scores import Arguments, CompositionResult, KindOfComposition, plot, run

from tests.backends.families import FAMILIES


def look(model: Model, **more: Any) -> CompositionResult:
    return run(Context(model), Arguments(model="m", **more))


def table(result: CompositionResult, kind: str) -> dict[tuple[str, str], float | None]:
    """Score by writer and reader."""
    grid = of(result, kind).heads
    assert grid is not None
    names = [axis.labels for axis in grid.axes]
    return {(a, b): grid.at(i, j) for i, a in enumerate(names[0]) for j, b in enumerate(names[1])}


def of(result: CompositionResult, kind: str) -> KindOfComposition:
    return next(k for k in result.kinds if k.kind == kind)


@pytest.fixture(scope="module")
def hand() -> ToyModel:
    return induction()


@cache
def model_of(family: str) -> Model:
    return wrap_model(FAMILIES[family](), None, name=family)


@pytest.mark.hand_worked
def test_the_previous_token_head_feeds_the_induction_heads_keys_alone(hand: ToyModel) -> None:
    """K: OV of L0H1 maps 20 tokens to the buffer, norm sqrt 20; QK of L1H2 has 20 entries s (buffer against token) and
    20 of -s (position 0 against every token), norm s sqrt 40; their product has the first 20, norm s sqrt 20:
    sqrt 20 / (sqrt 20 sqrt 40) = 1 / sqrt 40. Queries and values of L1H2 read the token block, not the buffer.
    """
    found = look(hand)
    assert table(found, "k")["L0H1", "L1H2"] == pytest.approx(1 / sqrt(40), rel=1e-5)
    assert table(found, "q")["L0H1", "L1H2"] == 0
    assert table(found, "v")["L0H1", "L1H2"] == 0


@pytest.mark.positive_control
def test_the_true_pair_stands_out_and_heads_that_write_junk_compose_with_nobody(hand: ToyModel) -> None:
    found = look(hand)
    k = of(found, "k")
    assert (k.top[0].writer, k.top[0].reader) == ("L0H1", "L1H2")
    assert k.top[0].score > 1.7 * k.top[1].score
    assert k.top[0].deviations > 20
    assert k.above_random == 1
    for kind in "qkv":
        for (writer, _), score in table(found, kind).items():
            assert score is not None
            assert writer == "L0H1" or score == 0


@pytest.mark.hand_worked
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_is_that_of_the_matrices_written_out(family: str) -> None:
    """Rules out a wrong group, a transposed side, a rotation left out, a norm weight on the wrong side."""
    model, offset = model_of(family), 3 if family not in ("gpt2", "gemma3", "qwen3") else 0
    kinds = ("v",) if model.info.qk_norm else ("q", "k", "v")
    found, w, info = look(model, kinds=kinds, offset=offset), model.weights, model.info
    group = info.n_heads // info.n_kv_heads

    def ov(layer: int, head: int) -> torch.Tensor:
        post = w.post_attention_norm(layer)
        matrix = w.v(layer)[head // group] @ w.o(layer)[head]
        return behind(layer, matrix if post is None else matrix * post.weight)

    def qk(layer: int, head: int) -> torch.Tensor:
        """By columns of the identity, each turned as a query or key."""
        q, k = behind(layer, w.q(layer)[head]), behind(layer, w.k(layer)[head // group])
        return w.rotated(layer, q, offset + 5) @ w.rotated(layer, k, 5).T  # only the difference matters

    def behind(layer: int, matrix: torch.Tensor) -> torch.Tensor:
        norm = w.attention_norm(layer)
        assert norm.weight is not None
        matrix = norm.weight[:, None] * matrix
        return matrix - matrix.mean(0) if norm.kind == "layer" else matrix

    for kind in kinds:
        for (writer, reader), score in table(found, kind).items():
            (a, i), (b, j) = ((int(n[1]), int(n[3])) for n in (writer, reader))
            if b <= a:
                assert score is None
                continue
            second = {"q": qk, "k": lambda b, j: qk(b, j).T, "v": ov}[kind](b, j)
            expected = (ov(a, i) @ second).norm() / (ov(a, i).norm() * second.norm())
            assert score == pytest.approx(float(expected), abs=1e-5)
    assert all(t.passed for t in found.self_tests)


@pytest.mark.negative_control
def test_heads_of_an_untrained_model_compose_as_random_matrices_do() -> None:
    """Width 64: 1/sqrt(64). The twin's matrices are Gaussian as the baseline's; 144 pairs, so few above 200 draws."""
    found = look(random_twin(model_of("llama"), 2))
    for k in found.kinds:
        assert k.median == pytest.approx(found.random.mean, abs=2 * found.random.sd)
        assert k.above_random <= 3


def test_the_mean_square_of_random_places_is_one_over_the_width_whatever_the_spectrum() -> None:
    """Theorem: for a uniformly random rotation Q, E|A Q B|^2 = |A|^2 |B|^2 / D. Spectra here fall steeply."""
    generator = torch.Generator().manual_seed(0)
    d = 24
    a, b = torch.diag(0.5 ** torch.arange(d)), torch.diag(0.7 ** torch.arange(d))
    squares = []
    for _ in range(2000):
        q, r = torch.linalg.qr(torch.randn(d, d, generator=generator))
        squares.append(float(scores_between(a[None], (q * r.diagonal().sign() @ b)[None])) ** 2)
    assert sum(squares) / len(squares) == pytest.approx(1 / d, rel=0.05)


def test_the_random_baseline_has_that_size() -> None:
    drawn = random_scores(torch.zeros(8, 200), 100, 0)
    assert sqrt((drawn**2).mean()) == pytest.approx(1 / sqrt(200), rel=0.03)


def test_the_triangular_factor_keeps_norms() -> None:
    x, y = torch.randn(30, 4), torch.randn(4, 9)
    assert float((triangular(x) @ y).norm()) == pytest.approx(float((x @ y).norm()), rel=1e-5)
    wide = torch.randn(3, 5)
    assert float((triangular(wide) @ wide.T).norm()) == pytest.approx(float((wide @ wide.T).norm()), rel=1e-5)


def test_chosen_heads_give_the_same_scores_and_a_smaller_table() -> None:
    model = model_of("llama")
    whole, part = table(look(model), "k"), table(look(model, writers=("L0H1", "L1H3"), readers=("L1H0", "L2H2")), "k")
    assert set(part) == {(a, b) for a in ("L0H1", "L1H3") for b in ("L1H0", "L2H2")}
    for pair, score in part.items():
        assert score == (None if whole[pair] is None else pytest.approx(whole[pair]))
    assert part["L1H3", "L1H0"] is None


def test_the_whole_table_is_kept_with_the_run() -> None:
    context = Context(model_of("llama"))
    run(context, Arguments(model="m", kinds=("v",)))
    kept = context.arrays["v_composition"]
    assert kept.tensor.shape == (8, 8)  # layers 0 and 1 write, 1 and 2 read
    assert bool((kept.tensor[4:, :4] == -1).all())


def test_the_picture_has_a_map_for_each_kind(hand: ToyModel) -> None:
    figure = plot(look(hand))
    assert [p.kind for p in figure.panels] == ["heatmap"] * 3
    assert "not a flow" in figure.caption


@pytest.mark.bad_input
def test_normalised_queries_compose_through_values_alone() -> None:
    with pytest.raises(Unsupported, match=r"no static QK matrix.*kinds=\['v'\]"):
        look(model_of("qwen3"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("gpt2", {"offset": 2}, "only rotary models"),
        ("llama", {"offset": 64}, "0 to 63"),
        ("llama", {"writers": ("L2H0",)}, "name writers in earlier layers"),
        ("llama", {"readers": ("L1H0", "L1H0")}, "each once"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_next_step(family: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArguments, match=message):
        look(model_of(family), **arguments)


@pytest.mark.bad_input
def test_a_head_that_does_not_exist_is_refused(hand: ToyModel) -> None:
    with pytest.raises(BadSite, match="head runs from 0 to 3"):
        look(hand, writers=("L0H9",))


@pytest.mark.slow
def test_in_smollm2_previous_token_heads_feed_induction_heads_through_keys(smollm2: Model) -> None:
    """By attention L16H0 and L17H8 are previous-token heads, L17H3 and L18H6 to H8 induction heads (detect_heads)."""
    k = of(look(smollm2, kinds=("k",)), "k")
    assert k.pairs == 35235
    assert {p.writer for p in k.top[:5]} <= {"L17H8", "L16H0"}
    assert {p.reader for p in k.top[:5]} <= {"L17H3", "L17H4", "L17H5", "L18H6", "L18H7", "L18H8"}
