"""Costs of edits against the arithmetic that really runs, counted by torch; and worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anatomist.catalog import Catalog
from anatomist.causal.knockout_cells import rows_of
from anatomist.estimate import formulas as f
from anatomist.estimate.calibration import Rate
from anatomist.estimate.cost import Cost
from anatomist.estimate.extent import Extent
from anatomist.estimate.knockout import first_layers
from anatomist.estimate.sizes import Sizes
from anatomist.estimate.techniques import cost_of_technique
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sweep import prove
from anatomist.prompts.given import inline_set
from anatomist.technique import Context, KeptArray
from transformers import LlamaConfig, LlamaForCausalLM

from tests.backends.families import randomised

RATE = Rate(flops_per_second=1e11, bytes_per_second=1e10, how="made up")
SMOL = Sizes(layers=30, d_model=576, heads=9, kv_heads=3, d_head=64, d_mlp=1536, d_vocab=49152)
FACTOR = 1.3  # how far the estimate may be from the count, either way
ROWS, WIDTH = 16, 10
FEW = 6  # controls


@pytest.fixture(scope="module")
def model() -> Model:
    """Six layers, so that where a sweep is restarted matters."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=150, max_position_embeddings=64,
    )  # fmt: skip
    found = wrap_model(randomised(LlamaForCausalLM(config), 0), None, name="six-layers")
    prove(found)  # once per model, and no part of what a call costs
    return found


def ids(n: int, seed: int) -> list[tuple[int, ...]]:
    drawn = torch.randint(150, (n, WIDTH), generator=torch.Generator().manual_seed(seed))
    return [tuple(row) for row in drawn.tolist()]


def counted(model: Model, name: str, **given: Any) -> tuple[float, float]:
    """Operations told before and operations counted."""
    from torch.utils.flop_counter import FlopCounterMode

    entry = Catalog().find(name)
    prompts = inline_set([{"clean": row, "answer": 3, "wrong": 7} for row in ids(ROWS, 0)])
    own = {} if name == "erase_concept" and given.pop("no_prompts", False) else {"prompts": "given"}
    arguments = entry.arguments.model_validate({"model": "m", "controls": FEW, **own, **given})
    told = cost_of_technique(entry.module, arguments, Sizes.of_info(model.info), Extent(ROWS, WIDTH), RATE)
    context = Context(model, prompts if own else None, saved=_none)
    with FlopCounterMode(display=False) as counter:
        entry.module.run(context, arguments)
    return told.flops, counter.get_total_flops()


def _none(run: str, name: str) -> KeptArray:
    raise AssertionError("nothing is stored here")


DIRECTION: dict[str, Any] = {"tokens": [5], "minus": [9]}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "steer late": ("steer", {"direction": DIRECTION, "layers": [4], "samples": 0}),
    "steer early": ("steer", {"direction": DIRECTION, "layers": [0, 2], "samples": 0, "strengths": [0.5]}),
    "steer together": ("steer", {"direction": DIRECTION, "layers": [2, 4], "together": True, "samples": 0}),
    "steer the last token": ("steer", {"direction": DIRECTION, "layers": [1], "positions": ["last"], "samples": 0}),
    "steer and continue": ("steer", {"direction": DIRECTION, "layers": [4], "samples": 8, "new_tokens": 12}),
    "steer, neutral text": (
        "steer", {"direction": DIRECTION, "layers": [4], "samples": 0, "neutral_text": ids(12, 3), "targets": [4]}
    ),
    "zero a head": ("edit_weights", {"changes": [{"rule": "zero", "parts": ["L3H1"]}], "keep": False}),
    "project out of all writers": (
        "edit_weights", {
            "changes": [{"rule": "project_out", "direction": DIRECTION}], "keep": False,
            "neutral_text": ids(12, 3),
        },
    ),
    "erase at a layer": ("erase_concept", {"positive": ids(40, 1), "negative": ids(40, 2), "layers": [5]}),
    "erase everywhere": (
        "erase_concept",
        {"positive": ids(40, 1), "negative": ids(40, 2), "neutral_text": ids(12, 3)},
    ),
    "erase, no task": (
        "erase_concept", {"positive": ids(60, 1), "negative": ids(60, 2), "layers": [2, 5], "no_prompts": True}
    ),
    "cut edges of the last token": ("attention_knockout", {"sources": [2, 5], "window": 2, "stride": 1}),
    "cut edges of an earlier token": ("attention_knockout", {"queries": [4], "sources": [1, 2], "window": 1}),
    "cut edges head by head": ("attention_knockout", {"sources": [[2, 3], 5], "by": "head", "layers": [1, 4]}),
    "cut edges, every logit": ("attention_knockout", {"sources": [5], "how": "zero", "metric": "prob"}),
}  # fmt: skip


LONG = {"steer and continue", "project out of all writers", "erase everywhere"}
MARKED = [pytest.param(call, marks=pytest.mark.slow if call in LONG else ()) for call in CALLS]


@pytest.mark.positive_control
@pytest.mark.parametrize("call", MARKED)
def test_what_is_told_before_is_what_runs(model: Model, call: str) -> None:
    name, given = CALLS[call]
    told, ran = counted(model, name, **given)
    assert told / FACTOR < ran < told * FACTOR, f"told {told:.3g}, ran {ran:.3g}: {ran / told:.2f}"


def cost_of(name: str, **given: Any) -> Cost:
    entry = Catalog().find(name)
    arguments = entry.arguments.model_validate({"model": "m", "prompts": "p", **given})
    return cost_of_technique(entry.module, arguments, SMOL, Extent(8, 14), RATE)


@pytest.mark.hand_worked
def test_steering_computes_the_layers_after_its_own() -> None:
    """Two strengths by 22 vectors. After layer 9 twenty blocks follow, of the last one keys and values alone."""
    given = {"direction": DIRECTION, "strengths": [0.5, 1.0], "controls": 20, "samples": 0}
    block, keys, a_pass = f.block_flops(SMOL, 14), 14 * 4 * 576 * 192, f.forward_flops(SMOL, 1, 14, logits_per_row=1)
    one, two = (cost_of("steer", layers=layers, **given).flops for layers in ([19], [19, 9]))
    losses = 2 * 4 * f.forward_flops(SMOL, 8, 14)  # two strengths by the vector and three random ones
    runs = (8 * (1 + 9 / 30) + 4 * (1 + 3)) * a_pass  # the sweep's own run, what lies before it, cells computed again
    assert two - one == pytest.approx(44 * 8 * (19 * block + keys + block / 14) + losses + runs, rel=1e-6)
    last = cost_of("steer", layers=[19], positions=["last"], **given).flops
    assert one - last == pytest.approx(45 * 8 * (9 * block + keys) * 13 / 14, rel=1e-6)


@pytest.mark.hand_worked
def test_editing_weights_holds_a_copy_of_them() -> None:
    told = cost_of("edit_weights", changes=[{"rule": "zero", "parts": ["L3H1"]}], controls=20)
    assert told.parts[0].what.startswith("the copy")
    assert told.peak_bytes > 2 * f.weight_bytes(SMOL)
    assert told.disk_bytes == f.weight_bytes(SMOL)
    assert told.flops / f.forward_flops(SMOL, 8, 14) == pytest.approx(22 + 2 * 0.8, abs=0.1)  # two without all logits


@pytest.mark.hand_worked
def test_erasing_reads_every_text_up_to_every_layer() -> None:
    """Both sides of both parts, read once to the top and once up to each layer; then 22 passes of the task."""
    all_layers, one = (cost_of("erase_concept", layers=layers, controls=20) for layers in (None, [29]))
    texts = 32 * f.block_flops(SMOL, 14)
    assert all_layers.flops - one.flops == pytest.approx(texts * (465 - 30), rel=0.15)
    assert "22 passes of the task" in one.basis


@pytest.mark.hand_worked
def test_cutting_edges_computes_the_cut_query_and_what_follows_it() -> None:
    """Windows of 10 layers: rows from layers 0, 10 and 20, and one of all. A cut query enters its first layer behind
    the projections (2 x 576 x 64 x 15 operations less than a block's) and is followed by 29 + 19 + 9 + 29 = 86 layers.
    The last token is one token there; from position 4 on there are ten, of the last layer keys and values but for the
    token that is read."""
    given = {"sources": ["IO"], "controls": 0, "window": 10}
    token, keys, a_pass = f.block_flops(SMOL, 14) / 14, 4 * 576 * 192, f.forward_flops(SMOL, 1, 14, logits_per_row=1)
    runs = (16 + 4 * 5) * a_pass  # intact, with attention read; of four prompts three cells, the intact run, the read
    enter = token - 2 * 576 * 64 * 15
    one, four = (cost_of("attention_knockout", **given, queries=[q]) for q in ("last", 4))
    assert one.flops == pytest.approx(runs + 8 * (4 * enter + 86 * token + 4 * keys), rel=1e-6)
    assert four.flops == pytest.approx(runs + 8 * (4 * enter + 82 * 10 * token + 4 * (10 * keys + token)), rel=1e-6)
    assert cost_of("attention_knockout", **given, queries=["END"]).flops == one.flops
    assert cost_of("attention_knockout", **given, queries=["IO"]).flops > one.flops
    six = cost_of("attention_knockout", **{**given, "controls": 5})
    assert six.flops - runs == pytest.approx(6 * (one.flops - runs), rel=1e-6)
    heads = cost_of("attention_knockout", sources=["IO"], controls=0, by="head", layers=[20, 29])
    assert heads.flops == pytest.approx(runs + 8 * 9 * (2 * enter + 9 * token + keys), rel=1e-6)


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    "given",
    [
        {}, {"window": 2, "stride": 1}, {"window": 4, "stride": 3}, {"layers": [1, 2, 5]}, {"window": 6},
        {"by": "head"}, {"by": "head", "heads": ["L3H1", "L0H2"]}, {"heads": ["L3H1", "L3H0", "L4H2"], "window": 1},
    ],
)  # fmt: skip
def test_the_rows_that_are_told_are_those_that_are_cut(model: Model, given: dict[str, Any]) -> None:
    entry = Catalog().find("attention_knockout")
    arguments = entry.arguments.model_validate({"model": "m", "prompts": "p", **given})
    told = {name: getattr(arguments, name) for name in type(arguments).model_fields}
    cut = [row.places[0][0] for row in rows_of(arguments, model.info.shape)]  # type: ignore[arg-type]
    assert sorted(first_layers(told, Sizes.of_info(model.info))) == sorted(cut)
