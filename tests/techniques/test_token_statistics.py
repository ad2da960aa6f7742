"""token_statistics: neurons worked out on paper, every family against its own MLP, moments against scipy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from anatomist.causal.token_directions import moments, neuron_directions, values_of
from anatomist.errors import BadArguments, BadSite
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, random_toy, tiny
from anatomist.model.edits import Edit
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.technique import Context
from anatomist.techniques.token_statistics import Arguments as Args
from anatomist.techniques.token_statistics import DirectionStatistics, TokenStatisticsResult, plot, run
from torch import Tensor

from tests.backends.families import FAMILIES


def look(model: Model, **more: Any) -> TokenStatisticsResult:
    return run(Context(model), Args(model="m", **more))


def sides(found: TokenStatisticsResult, unit: int = 0) -> dict[str, DirectionStatistics]:
    return {s.side: s for s in reversed(found.units[unit].sides)}


@cache
def family(name: str) -> Model:
    return wrap_model(FAMILIES[name](), None, name=name)


def with_neuron(model: ToyModel, layer: int, neuron: int, read: Tensor | None, write: Tensor) -> ToyModel:
    """A toy with one neuron's weights replaced."""
    block = model.weights.blocks[layer]
    assert block.mlp_in is not None
    assert block.mlp_out is not None
    into, out = block.mlp_in.clone(), block.mlp_out.clone()
    if read is not None:
        into[:, neuron] = read
    out[neuron] = write
    blocks = list(model.weights.blocks)
    blocks[layer] = replace(block, mlp_in=into, mlp_out=out)
    return ToyModel(replace(model.weights, blocks=tuple(blocks)), name="planted")


@pytest.mark.hand_worked
def test_the_two_neurons_of_the_tiny_toy_by_hand() -> None:
    """Embeddings (1, 0), (0, 1), (-1, 2). N0 reads x0: 1, 0, -1; it writes (0, 1): logits 0, 1, 1.

    N1 reads -x1: 0, -1, -2 and writes (1, 0): logits 1, 0, 1. Of 0, 1, 1 the mean is 2/3, the variance 2/9, the third
    moment -2/27, so the skew is -1 / sqrt(2); the fourth is 2/27, so the excess kurtosis is 1.5 - 3 = -1.5.
    """
    found = look(tiny(), units=("L0N0", "L0N1"), tokens=1)
    first, second = sides(found), sides(found, 1)
    assert (first["reads"].highest[0].token, first["reads"].highest[0].value) == ("t0", 1.0)
    assert (first["reads"].lowest[0].token, first["reads"].lowest[0].value) == ("t2", -1.0)
    assert (second["reads"].lowest[0].token, second["reads"].lowest[0].value) == ("t2", -2.0)
    assert (second["writes"].lowest[0].token, second["writes"].lowest[0].value) == ("t1", 0.0)
    written = first["writes"]
    assert (written.mean, written.sd) == (pytest.approx(2 / 3), pytest.approx((2 / 9) ** 0.5))
    assert (written.skew, written.kurtosis) == (pytest.approx(-(0.5**0.5)), pytest.approx(-1.5))
    assert written.size == 1.0
    assert "gate" not in first


@pytest.mark.hand_worked
def test_the_head_of_the_tiny_toy_reads_and_writes_the_first_dimension() -> None:
    """W_V is the identity, W_O doubles the first dimension and drops the second: singular values 2 and 0."""
    found = look(tiny(), units=("L0H0",), directions=1, tokens=1)
    read, write = sides(found)["reads"], sides(found)["writes"]
    assert read.size == write.size == pytest.approx(2.0)
    assert abs(read.highest[0].value) == pytest.approx(1.0)  # along (1, 0): token 0 has 1, token 2 has -1
    assert {read.highest[0].token, read.lowest[0].token} == {"t0", "t2"}


@pytest.mark.positive_control
def test_a_neuron_made_to_write_one_token_has_the_first_place_and_names_it() -> None:
    """Rules out a ranking by size: the planted row is no longer than the others."""
    model = random_toy(vocabulary=60, heads=4, d_head=16, kv_heads=4, d_mlp=40, layers=2, seed=1)
    w_u = model.weights.unembedding
    only = torch.linalg.lstsq(w_u.T, torch.nn.functional.one_hot(torch.tensor(7), 60).float()[:, None]).solution[:, 0]
    planted = with_neuron(model, 1, 23, None, 0.2 * only / only.norm())
    found = look(planted, layers=(0, 1), top=3, tokens=3)
    assert found.ranking[0].unit == found.units[0].unit == "L1N23"
    assert found.ranked == 80
    assert sides(found)["writes"].highest[0].token == "t7"
    assert found.ranking[0].kurtosis > 3 * found.ranking[1].kurtosis
    against = look(with_neuron(model, 1, 23, None, -only), layers=(1,), rank_by="negative_skew", top=1)
    assert against.ranking[0].unit == "L1N23"
    assert sides(against)["writes"].lowest[0].token == "t7"


@pytest.mark.positive_control
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2", "qwen3"])
def test_what_gated_neurons_read_is_what_the_model_computes(name: str) -> None:
    """The residual before the MLP set to a token's embedding: act(gate) times the value read is the activation.

    Rules out a norm without its weight, a transposed matrix, gate and input in each other's place.
    """
    model, layer, site = family(name), 1, Site("neuron", 1)
    x = model.weights.embed()[:20].float()
    tokens = model.tokenize([[0]] * 20, bos=False)
    edit = Edit(site=Site("resid_mid", layer), rule="set", value=x[:, None])
    own = model.run(tokens, read=[site], edits=[edit]).reads[site][:, 0]
    by_side = {d.side: values_of(model, d)[:20] for d in neuron_directions(model, layer)}
    act = torch.nn.functional.silu(by_side["gate"])
    if name == "gemma3":
        act = torch.nn.functional.gelu(by_side["gate"], approximate="tanh")
    assert torch.allclose(act * by_side["reads"], own, atol=1e-4 * float(own.abs().max()))


@pytest.mark.positive_control
def test_what_plain_neurons_read_is_what_the_mlp_computes_but_for_the_biases() -> None:
    hf = FAMILIES["gpt2"]()
    model = wrap_model(hf, None, name="gpt2")
    block: Any = hf.transformer.h[1]  # type: ignore[index, union-attr]
    x = model.weights.embed()[:10].float()
    own = block.mlp.c_fc(block.ln_2(x))
    mine = values_of(model, neuron_directions(model, 1)[0])[:10]
    assert torch.allclose(mine - mine[:1], own - own[:1], atol=1e-4)


@pytest.mark.positive_control
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_agrees_with_the_logits_of_every_family(name: str) -> None:
    for unit in ("L2N5", "L0H1"):
        found = look(family(name), units=(unit,))
        assert found.self_tests[0].passed
        assert not any("self-test" in w for w in found.warnings)


def test_moments_are_those_of_scipy() -> None:
    from scipy import stats

    model = family("llama")
    for d in neuron_directions(model, 2):
        found, values = moments(model, d), values_of(model, d).double().numpy()
        assert found.mean == pytest.approx(values.mean(0), abs=1e-6)
        assert found.sd == pytest.approx(values.std(0), rel=1e-5)
        assert found.skew == pytest.approx(stats.skew(values, axis=0), abs=1e-4)
        assert found.kurtosis == pytest.approx(stats.kurtosis(values, axis=0), abs=1e-4)


def test_a_heads_directions_rebuild_its_matrix() -> None:
    """Sum of singular value times read times write is norm weight, values and output matrix in one product."""
    from anatomist.causal.token_directions import head_directions

    model, w = family("llama"), family("llama").weights
    s, read, write = head_directions(model, 1, 3, 8)
    weight = w.attention_norm(1).weight
    assert weight is not None
    whole = (weight[:, None] * w.v(1)[1]) @ w.o(1)[3]
    rebuilt = (read.matrix.T * torch.tensor(s[:8]).float()) @ write.matrix
    assert torch.allclose(rebuilt, whole, atol=1e-4)


@pytest.mark.negative_control
def test_neurons_drawn_at_random_are_not_beyond_random_directions() -> None:
    """120 neurons; each beats all of 100 random directions with probability 1 / 101: about 1.2, and 7 in .0003."""
    model = random_toy(vocabulary=200, heads=4, d_head=8, kv_heads=4, d_mlp=60, layers=2, seed=3)
    found = look(model, layers=(0, 1), top=2)
    assert found.beyond_random is not None
    assert found.beyond_random <= 6
    assert all(0.6 < n.spread < 1.6 for n in found.ranking)


@pytest.mark.negative_control
def test_a_decoy_head_writes_nothing_that_is_unembedded() -> None:
    found = look(induction(), units=("L0H0", "L1H2"))
    assert sides(found)["writes"].sd == 0
    assert sides(found, 1)["writes"].sd > 0
    assert "L0H0 raises nothing and lowers nothing" in found.summary


def test_the_baseline_is_per_norm_and_does_not_depend_on_the_length_of_a_direction() -> None:
    """A neuron and a head of one layer read through different norms; a neuron twice as long has the same spread."""
    found = look(family("llama"), units=("L1N0", "L1H0"))
    assert {(r.of, r.side) for r in found.random} == {
        ("neuron", "reads"), ("neuron", "gate"), ("neuron", "writes"), ("head", "reads"), ("head", "writes"),
    }  # fmt: skip
    model = random_toy(vocabulary=50, d_mlp=8, seed=2)
    row = model.weights.blocks[0].mlp_out
    assert row is not None
    longer = with_neuron(model, 0, 3, None, 2 * row[3])
    once, twice = (sides(look(m, units=("L0N3",)))["writes"] for m in (model, longer))
    assert twice.spread == pytest.approx(once.spread, rel=1e-5)
    assert twice.sd == pytest.approx(2 * once.sd, rel=1e-5)


def test_it_warns_of_gates_signs_and_norms() -> None:
    text = " ".join(look(family("llama"), units=("L0N1", "L0H1")).warnings)
    for word in ("gated", "arbitrary", "not folded"):
        assert word in text
    assert look(tiny(), units=("L0N0",)).warnings == ()


def test_the_picture_shows_every_side_and_the_ranking() -> None:
    figure = plot(look(family("llama"), layers=(1,), top=2, tokens=4))
    assert [p.title.split()[-1] for p in figure.panels] == ["reads", "gate", "writes"] * 2 + ["neurons"]
    bars = figure.panels[2]
    assert bars.kind == "bars"
    values = [v for v in bars.values if v is not None]
    assert len(values) == 8
    assert values == sorted(values, reverse=True)


def test_all_neurons_are_kept_with_the_run() -> None:
    context = Context(family("gpt2"))
    run(context, Args(model="m", layers=(0, 2)))
    assert sorted(context.arrays) == ["blocks.0.writes", "blocks.2.writes"]
    assert context.arrays["blocks.0.writes"].tensor.shape == (4, 128)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, BadArguments, "name `units`"),
        ({"units": ()}, BadArguments, "at least one"),
        ({"units": ("L0N1", "L0N1")}, BadArguments, "each once"),
        ({"units": ("L0N999",)}, BadSite, "0 to 47"),
        ({"units": ("neuron 3",)}, BadSite, "is no head"),
        ({"layers": (9,)}, BadSite, "layers are 0 to 2"),
    ],
)
def test_bad_units_are_told(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        look(family("llama"), **arguments)


@pytest.mark.bad_input
def test_a_model_without_mlps_has_no_neurons() -> None:
    with pytest.raises(BadArguments, match="no MLPs"):
        look(induction(), layers=(0,))
    with pytest.raises(BadArguments, match="no MLPs"):
        look(induction(), units=("L0N1",))


@pytest.mark.positive_control
def test_a_trained_layer_has_many_neurons_beyond_random(smollm2: Model) -> None:
    """The last MLPs of a trained model hold neurons that write to few tokens (Gurnee et al.)."""
    found = look(smollm2, layers=(27,), top=3)
    assert found.beyond_random is not None
    assert found.beyond_random > 5 * found.ranked / 101
    assert found.self_tests[0].passed
