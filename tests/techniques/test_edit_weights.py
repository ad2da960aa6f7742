"""edit_weights: zeroed matrices against ablations, directions out of all that writes, the file, the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from anatomist.errors import BadArguments, BadSite, Unsupported
from anatomist.host import Host
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.copies import copy_of, weights_digest
from anatomist.model.edits import Edit
from anatomist.model.loading import load_model, wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.model.weight_edits import WeightEdit, weight_edits
from anatomist.prompts.given import inline_set
from anatomist.technique import Context
from anatomist.techniques.edit_weights import Arguments, EditWeightsResult, plot, run

from tests.backends.families import FAMILIES

PROMPTS = [
    {"clean": f"t{a} t{b} t1 t{a}", "answer": f"t{b}", "wrong": "t9", "cluster": f"t{a}"}
    for a, b in ((3, 7), (4, 8), (5, 6), (2, 10))
]
ROWS = [[5, 17, 33, 4, 60, 8], [9, 2, 81, 40, 7, 23]]


def look(model: Model, *changes: dict[str, Any], **more: Any) -> EditWeightsResult:
    context = Context(model, prompts=inline_set(PROMPTS))
    return run(context, Arguments(model="m", prompts="inline", changes=changes, keep=False, **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def hand() -> Model:
    return induction()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Model:
    return wrap_model(FAMILIES[request.param](), None, name=request.param)


def gap(model: Model, changes: tuple[str, ...], edits: list[Edit]) -> float:
    """Largest difference between logits of zeroed weights and of zeroed activations."""
    tokens, duplicate = model.tokenize(ROWS), copy_of(model)
    duplicate.change(weight_edits(changes, "zero", model.info.shape))
    found, wanted = (
        m.logits for m in (duplicate.run(tokens, logits_at="all"), model.run(tokens, edits=edits, logits_at="all"))
    )
    assert found is not None
    assert wanted is not None
    return float((found - wanted).abs().max())


@pytest.mark.hand_worked
def test_without_the_induction_heads_output_the_toy_says_nothing(hand: Model) -> None:
    """The answer's logit of 10 comes from L1H2 alone: with its output matrix 0 the difference is 0; any other head but
    L0H1 writes junk that nobody reads, so a random head usually changes nothing."""
    found = look(hand, {"rule": "zero", "parts": ["L1H2"]}, controls=6)
    assert found.task.before.mean == pytest.approx(10, abs=1e-3)
    assert found.task.change.mean == pytest.approx(-10, abs=1e-3)
    assert sum(abs(c) < 1e-6 for c in found.task.random) >= 5
    assert plot(found).panels[0].kind == "bars"


@pytest.mark.positive_control
def test_zeroed_weights_do_what_zeroed_activations_do(family: Model) -> None:
    """Rules out a wrong row, a transposed matrix and a bias left behind, in every family."""
    assert gap(family, ("L1H2",), [Edit(site=Site("head", 1, 2), rule="zero")]) < 1e-5
    assert gap(family, ("L1N5",), [Edit(site=Site("neuron", 1, 5), rule="zero")]) < 1e-5
    both = [Edit(site=Site("attn_out", 0), rule="zero"), Edit(site=Site("mlp_out", 2), rule="zero")]
    assert gap(family, ("L0 attn", "L2 mlp"), both) < 1e-5


@pytest.mark.positive_control
def test_a_direction_out_of_all_that_writes_is_nowhere_in_the_residual(family: Model) -> None:
    """Also behind Gemma's norms, with biases, learned positions and scaled embeddings; the original is as it was."""
    tokens, digest = family.tokenize(ROWS), weights_digest(family)
    v = torch.randn(family.info.d_model, generator=torch.Generator().manual_seed(0))
    duplicate = copy_of(family, untie=True)
    edits = out_of_writers(family, v)
    before = max(float((x @ v).abs().max()) for x in duplicate.residuals(tokens))
    duplicate.change(edits)
    after = max(float((x @ v).abs().max()) for x in duplicate.residuals(tokens))
    assert before > 0.1
    assert after < 1e-5 * before
    assert weights_digest(family) == digest


def out_of_writers(model: Model, v: torch.Tensor) -> list[WeightEdit]:
    """One edit per matrix that writes and that the model has."""
    edits = weight_edits("writers", "project_out", model.info.shape, direction=v)
    return [e for e in edits if e.matrix != "position_embed" or model.weights.position_embed() is not None]


@pytest.mark.positive_control
def test_what_reads_no_longer_notices_the_direction(family: Model) -> None:
    """v through each norm, with its scale frozen, meets a matrix that maps it to 0."""
    v = torch.randn(family.info.d_model, generator=torch.Generator().manual_seed(1))
    duplicate = copy_of(family, untie=True)
    edits = weight_edits("readers", "project_out", family.info.shape, direction=v)
    gates = family.weights.mlp_gate(0) is not None
    duplicate.change([e for e in edits if gates or e.matrix != "mlp_gate"])
    w = duplicate.weights
    for norm, matrices in (
        (w.attention_norm(1), (w.q(1), w.k(1), w.v(1))),
        (w.mlp_norm(1), (w.mlp_in(1),)),
        (w.final_norm(), (w.unembed(),)),
    ):
        part = norm.frozen(v[None], v.new_ones(1, 1))
        for matrix in matrices:
            assert matrix is not None
            assert float((part @ matrix).abs().max()) < 1e-4


@pytest.mark.negative_control
def test_a_direction_that_nothing_writes_costs_nothing(hand: Model) -> None:
    """The token block of t15, which no prompt holds."""
    values = [0.0] * hand.info.d_model
    values[int(hand.weights.embed()[15].argmax())] = 1.0
    found = look(hand, {"rule": "project_out", "direction": {"values": values}}, controls=3)
    assert found.task.change.mean == 0
    assert found.task.kl.mean == 0
    assert found.component == 0


def test_changes_are_undone_to_the_bit(family: Model) -> None:
    duplicate = copy_of(family, untie=True)
    tokens = family.tokenize(ROWS)
    before = duplicate.run(tokens).logits
    v = torch.ones(family.info.d_model)
    edits = out_of_writers(family, v)
    with duplicate.changed(edits):
        assert not torch.equal(before, duplicate.run(tokens).logits)  # type: ignore[arg-type]
    assert torch.equal(before, duplicate.run(tokens).logits)  # type: ignore[arg-type]


@pytest.mark.bad_input
def test_what_cannot_be_changed_is_refused(hand: Model) -> None:
    with pytest.raises(BadArguments, match="needs a `direction`"):
        look(hand, {"rule": "project_out"})
    with pytest.raises(BadArguments, match="leaves no model"):
        look(hand, {"rule": "zero", "parts": "writers"})
    with pytest.raises(BadSite, match="no part of a model"):
        look(hand, {"rule": "zero", "parts": ["H3"]})
    with pytest.raises(BadSite, match="has 4 heads"):
        look(hand, {"rule": "zero", "parts": ["L0H9"]})
    with pytest.raises(BadSite, match="0 neurons"):
        look(hand, {"rule": "zero", "parts": ["L0 mlp"]})
    with pytest.raises(Unsupported, match="keep=false"):
        run(
            Context(hand, prompts=inline_set(PROMPTS)),
            Arguments(model="m", prompts="inline", changes=({"rule": "zero", "parts": ["L1H2"]},)),  # type: ignore[arg-type]
        )


def test_the_edited_toy_is_a_model_of_its_own_and_a_file(tmp_path: Path) -> None:
    host = Host(tmp_path)
    change = {"rule": "zero", "parts": ["L1H2"]}
    arguments = {"model": "toy-induction", "prompts": PROMPTS, "changes": [change], "controls": 0, "name": "headless"}
    answer = host.call("edit_weights", arguments)
    result = answer.result
    assert isinstance(result, EditWeightsResult)
    assert result.handle == "headless"
    assert all(test.passed for test in result.self_tests)
    again = load_model(str(tmp_path / "models" / "headless"))
    tokens = again.tokenize(["t3 t7 t1 t3"])
    logits = again.run(tokens, logits_at=(3,)).logits
    assert logits is not None
    assert float(logits.abs().max()) < 1e-4
    assert host.call("check_prompts", {"model": "headless", "prompts": PROMPTS}).result
    with pytest.raises(BadArguments, match="already"):
        host.call("edit_weights", arguments)


def test_without_a_name_every_edited_model_gets_one_of_its_own(tmp_path: Path) -> None:
    change = {"rule": "zero", "parts": ["L1H2"]}
    arguments = {"model": "toy-induction", "prompts": PROMPTS, "changes": [change], "controls": 0}
    results = [Host(tmp_path).call("edit_weights", arguments).result for _ in range(3)]
    handles = [result.handle for result in results if isinstance(result, EditWeightsResult)]
    assert handles == ["toy-induction-edited", "toy-induction-edited-2", "toy-induction-edited-3"]


@pytest.mark.slow
def test_an_edited_smollm2_is_saved_and_loaded_with_the_same_logits(tmp_path: Path) -> None:
    host = Host(tmp_path)
    prompts = [{"clean": "The capital of France is", "answer": " Paris", "wrong": " Rome"}]
    change = {"rule": "project_out", "direction": {"tokens": [" Paris"], "minus": [" Rome"], "side": "unembedding"}}
    answer = host.call(
        "edit_weights", {"model": "smollm2-135m", "prompts": prompts, "changes": [change], "controls": 2}
    )
    result = answer.result
    assert isinstance(result, EditWeightsResult)
    assert result.untied
    assert result.component is not None
    assert result.component < 1e-4
    assert result.component_before is not None
    assert result.component_before > 0.01
    assert all(test.passed for test in result.self_tests)
    assert result.handle is not None
    assert (tmp_path / "models" / result.handle / "model.safetensors").is_file()
