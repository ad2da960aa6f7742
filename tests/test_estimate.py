"""Formulas against the figures they must reproduce, against measurement, and against loaded models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from anatomist.catalog import Catalog
from anatomist.errors import CorruptFile
from anatomist.estimate import formulas as f
from anatomist.estimate.calibration import Rate, machine_rate, measured_rate
from anatomist.estimate.cost import in_bytes
from anatomist.estimate.extent import Extent
from anatomist.estimate.named import NAMED, Work, cost_of_named
from anatomist.estimate.sizes import Sizes, bytes_to_load, sizes_of_name
from anatomist.estimate.techniques import cost_of_technique, sweep_cells
from anatomist.model.protocol import Model
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig

SMOL = Sizes(layers=30, d_model=576, heads=9, kv_heads=3, d_head=64, d_mlp=1536, d_vocab=49152)
GPT2 = Sizes(layers=12, d_model=768, heads=12, kv_heads=12, d_head=64, d_mlp=3072, d_vocab=50257, gated=False)
RATE = Rate(flops_per_second=1e11, bytes_per_second=1e10, how="made up")
TINY = LlamaConfig(
    hidden_size=48, intermediate_size=128, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    vocab_size=97, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.hand_worked
def test_sizes_of_smollm2() -> None:
    # 49,152 x 576 + 30 x (2 x 576 x 64 x 12 + 3 x 576 x 1536 + 2 x 576) + 576 = 134,515,008; 4 bytes each
    assert SMOL.n_parameters == 134_515_008
    assert f.weight_bytes(SMOL) == 538_060_032
    # 2 x 30 x 3 x 64 x 4
    assert f.kv_bytes_per_token(SMOL) == 46_080
    # 128 x 49,152 x 4: "128 tokens: 25 MB"
    assert f.logit_bytes(SMOL, 1, 128) == 25_165_824


@pytest.mark.hand_worked
@pytest.mark.parametrize(("tokens", "megabytes"), [(64, 63.2), (256, 309.4)])
def test_the_full_cache_of_gpt2_small(tokens: int, megabytes: float) -> None:
    assert f.hooked_cache_bytes(GPT2, tokens) / 1e6 == pytest.approx(megabytes, abs=0.05)


@pytest.mark.hand_worked
def test_sweeps_of_smollm2_cost_what_their_arithmetic_costs() -> None:
    # residual: 465 layers x 105 positions x 2 x 3,538,944 + 420 x 2 x 28,311,552 = 369 GFLOP
    assert f.residual_sweep_flops(SMOL, 1, 14) / 1e9 == pytest.approx(370, abs=1)
    # heads: 9 x 465 x 14 x 2 x 3,538,944 + 270 x 2 x 28,311,552 = 430 GFLOP
    assert f.head_sweep_flops(SMOL, 1, 14) / 1e9 == pytest.approx(430, abs=1)
    naive = f.naive_sweep_flops(SMOL, 1, 14, 30 * 14)
    assert naive / f.residual_sweep_flops(SMOL, 1, 14) == pytest.approx(3.5, abs=0.5)


@pytest.mark.hand_worked
@pytest.mark.parametrize(("eager", "tokens", "kilobytes"), [(False, 64, 880), (True, 64, 971), (True, 256, 1178)])
def test_the_backward_pass_keeps_what_was_measured(eager: bool, tokens: int, kilobytes: float) -> None:
    per_token = f.autograd_bytes_per_token(SMOL, tokens, eager=eager)
    assert per_token / 1e3 == pytest.approx(kilobytes, rel=0.01)


@contextmanager
def saved() -> Iterator[list[torch.Tensor]]:
    """Every tensor kept for the backward pass."""
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield kept


@pytest.mark.positive_control
@pytest.mark.parametrize("eager", [True, False])
def test_the_backward_formula_agrees_with_what_torch_keeps(eager: bool) -> None:
    attention = "eager" if eager else "sdpa"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY, attn_implementation=attention).requires_grad_(False)
    ids = torch.randint(0, 97, (2, 32))
    embeddings = model.get_input_embeddings()(ids).requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with saved() as kept:
        model.model(inputs_embeds=embeddings)
    stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.dtype == torch.float32}
    measured = sum(n for place, n in stores.items() if place not in weights) / ids.numel()
    sizes = Sizes.of_config(TINY.to_dict())
    assert f.autograd_bytes_per_token(sizes, 32, eager=eager) == pytest.approx(measured, rel=0.05)


@pytest.mark.positive_control
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16),
        GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50,
            tie_word_embeddings=False,
        ),
    ],
    ids=lambda c: c.model_type,
)  # fmt: skip
def test_parameters_counted_from_a_config_are_those_of_the_model(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    real = sum(p.numel() for p in model.parameters())
    counted = Sizes.of_config(config.to_dict()).n_parameters
    assert counted == pytest.approx(real, rel=0.05)  # biases and learned positions are left out
    assert counted <= real


@pytest.mark.positive_control
def test_forward_flops_agree_with_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = AutoModelForCausalLM.from_config(TINY, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(0, 97, (2, 16)))
    estimated = f.forward_flops(Sizes.of_config(TINY.to_dict()), 2, 16)
    assert estimated == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_loaded_models_sizes_are_its_own(smollm2: Model) -> None:
    sizes = Sizes.of_info(smollm2.info)
    assert sizes == SMOL.model_copy(update={"parameters": 134_515_008})
    assert f.weight_bytes(sizes) == smollm2.info.weight_bytes == 538_060_032


def test_gate_and_tying_follow_from_the_count_of_parameters(toy: Model) -> None:
    info = toy.info.model_copy(
        update={
            "n_layers": 12, "d_model": 768, "n_heads": 12, "n_kv_heads": 12, "d_head": 64, "d_mlp": 3072,
            "d_vocab": 50257, "parameters": 124_439_808, "weight_bytes": 497_759_232,
        }
    )  # fmt: skip
    sizes = Sizes.of_info(info)
    assert (sizes.gated, sizes.tied, sizes.item_bytes) == (False, True, 4)


def test_sizes_of_a_folder_come_from_its_config(tmp_path: Path) -> None:
    TINY.save_pretrained(tmp_path)
    assert sizes_of_name(str(tmp_path)) == Sizes.of_config(TINY.to_dict())
    halves = bytes_to_load(str(tmp_path), "bfloat16")
    assert halves is not None
    assert 2 * halves == bytes_to_load(str(tmp_path), "float32")
    assert sizes_of_name("nobody/nowhere") is None
    assert bytes_to_load("nobody/nowhere") is None


@pytest.mark.bad_input
def test_a_config_that_lacks_a_number_or_is_no_json_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(CorruptFile, match="no num_attention_heads or n_head"):
        sizes_of_name(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CorruptFile, match="is not JSON"):
        sizes_of_name(str(tmp_path))


@pytest.mark.positive_control
def test_the_rate_predicts_a_product_it_did_not_time() -> None:
    import time

    import numpy

    rate = machine_rate()
    left, right = numpy.ones((512, 2048), numpy.float32), numpy.ones((2048, 4096), numpy.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        numpy.matmul(left, right)
        times.append(time.perf_counter() - start)
    predicted = rate.seconds(2 * 512 * 2048 * 4096, right.nbytes)
    assert 1 / 3 < predicted / min(times) < 3  # other work on the machine moves both


def test_the_rate_of_a_model_is_measured_with_its_own_weights(toy: Model) -> None:
    rate = measured_rate(toy)
    assert rate.flops_per_second > 0
    assert "float32 on cpu" in rate.how


@pytest.mark.parametrize("operation", NAMED)
def test_twice_the_prompts_take_twice_the_arithmetic(operation: str) -> None:
    one = cost_of_named(operation, SMOL, Work(4, 16, d_dictionary=4608), RATE)
    two = cost_of_named(operation, SMOL, Work(8, 16, d_dictionary=4608), RATE)
    assert two.flops == 2 * one.flops
    assert two.peak_bytes >= one.peak_bytes
    assert one.seconds > 0


@pytest.mark.hand_worked
def test_a_sweeps_cells_are_counted_from_its_arguments() -> None:
    entry = Catalog().find("patch_activations")

    def basis(**given: object) -> str:
        arguments = entry.arguments.model_validate({"model": "m", "prompts": "p", **given})
        return cost_of_technique(entry.module, arguments, SMOL, Extent(2, 14), RATE).basis

    assert basis(site="resid_pre").startswith("420 cells")  # 30 layers x 14 positions
    assert basis(site="head").startswith("270 cells")  # 30 layers x 9 heads
    assert basis(site="k", layers=[3, 4]).startswith("6 cells")  # 2 layers x 3 key-value heads
    assert basis(site="head", grid="head_position", heads=["L1H0", "L2H3"]).startswith("28 cells")  # 2 x 14
    assert basis(site="attn_out", positions=["last", 3], layers=[0]).startswith("2 cells")


@pytest.mark.hand_worked
def test_a_sweep_computes_what_comes_after_its_cells() -> None:
    heads = sweep_cells({"direction": "", "site": "head", "grid": "layer_head"}, SMOL, Extent(1, 14))
    assert heads == (270, 9 * 465 * 14, 0)  # 30 + 29 + ... + 1 = 465 layers
    both = sweep_cells({"direction": "", "site": "head", "grid": "layer_head"}, SMOL, Extent(1, 14, 9))
    assert both == (270, 9 * 465 * 5, 0)  # nine of fourteen tokens are the same in both runs
    residual = sweep_cells({"direction": "", "site": "resid_pre"}, SMOL, Extent(1, 14))
    assert residual == (420, 465 * 14 * 7, 0)  # half of the positions come after a cell
    every_logit = sweep_cells({"direction": "", "site": "resid_pre", "metric": "kl"}, SMOL, Extent(1, 14))
    assert every_logit.logits == 420
    some = {"ablation": "mean", "site": "head", "heads": ("L20H3", "L5H1"), "together": None, "controls": 20}
    # two heads (10 and 25 layers); the pair and 20 others from layer 5 on; 20 alone and in the place of each
    assert sweep_cells(some, SMOL, Extent(1, 14)) == (83, (10 + 25 + 81 * 25) * 14, 0)
    assert sweep_cells({**some, "heads": ("L5H1",)}, SMOL, Extent(1, 14)) == (22, 22 * 25 * 14, 0)
    assert sweep_cells({**some, "together": False}, SMOL, Extent(1, 14)) == (2, (10 + 25) * 14, 0)


@pytest.mark.hand_worked
def test_batches_keep_within_the_budget_and_a_single_prompt_is_the_least() -> None:
    entry = Catalog().find("run_with_cache")

    def peak(budget: int | None, **given: object) -> tuple[int, int]:
        arguments = entry.arguments.model_validate({"model": "m", "prompts": "p", **given})
        told = cost_of_technique(entry.module, arguments, SMOL, Extent(100, 14, budget=budget), RATE)
        return told.peak_bytes, told.disk_bytes

    everything = peak(None, sites=["blocks.3.resid_post"], keep=False)[0]
    assert peak(10**6, sites=["blocks.3.resid_post"], keep=False)[0] == 10**6
    assert peak(1, sites=["blocks.3.resid_post"], keep=False)[0] == everything // 100
    # 100 prompts x 14 tokens x 576 x 4 bytes are kept on disk, not in memory
    kept, disk = peak(None, sites=["blocks.3.resid_post"], keep=True)
    assert (everything - kept, disk) == (3_225_600, 3_225_600)


@pytest.mark.hand_worked
def test_gradients_cost_a_few_passes_and_their_re_checks() -> None:
    entry = Catalog().find("attribution_patching")

    def passes(**given: object) -> float:
        arguments = entry.arguments.model_validate({"model": "m", "prompts": "p", "top": 1, "sample": 0, **given})
        told = cost_of_technique(entry.module, arguments, SMOL, Extent(8, 14), RATE)
        return told.flops / f.forward_flops(SMOL, 8, 14, logits_per_row=1)

    # two forwards and a backward (worth two) are 4, the re-check's own two runs 2, and its cell half a pass
    assert passes() == pytest.approx(6.5, abs=0.1)
    assert passes(method="integrated", steps=5) == pytest.approx(22.5, abs=0.1)


@pytest.mark.hand_worked
def test_a_circuit_costs_its_gradients_and_a_pass_for_every_circuit_measured() -> None:
    entry = Catalog().find("discover_circuit")

    def passes(**given: object) -> float:
        few = {"top": 1, "sample": 0, "controls": 5, "minimality": 6, "steps": 5}
        arguments = entry.arguments.model_validate({"model": "m", "prompts": "p", **few, **given})
        told = cost_of_technique(entry.module, arguments, SMOL, Extent(8, 14), RATE)
        return told.flops / f.forward_flops(SMOL, 8, 14, logits_per_row=1)

    # 4 x 5 for gradients and 2 runs; 60 + 16 + 8 circuits, 1 re-checked, 2 x 5 controls, 6 parts out: 101 passes,
    # each without the unembedding, which is worth 2% of a pass of 14 tokens
    assert passes() == pytest.approx(22 + 101 * 0.98, rel=0.01)
    assert passes(method="exact") == pytest.approx(2 + 400 * 0.98, rel=0.01)
    assert passes(level="edges") > passes()


@pytest.mark.hand_worked
def test_a_search_costs_its_steps_and_a_pass_for_every_interchange_judged() -> None:
    entry = Catalog().find("das")

    def basis(**given: object) -> str:
        arguments = entry.arguments.model_validate({"model": "m", "prompts": "p", "layers": [14], **given})
        return cost_of_technique(entry.module, arguments, SMOL, Extent(96, 8), RATE).basis

    # three seeds and the untrained model: 4 x 100 steps. Both ways: each seed's learned and held-out accuracy, subspace
    # and row space, 5 random subspaces, nothing, the whole place, the class means, the untrained model twice: 2 x 22
    assert basis().startswith("400 steps of 16 interchanges, then 44 passes")
    assert basis(direction="denoising", random_model=False).startswith("300 steps of 16 interchanges, then 22 passes")


def test_bytes_are_written_for_reading() -> None:
    assert [in_bytes(n) for n in (0, 999, 538_060_032, 2.5e12)] == ["0 B", "999 B", "538.1 MB", "2.5 TB"]
