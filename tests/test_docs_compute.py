"""The models of references/compute-awareness.md are the real ones, and its tables say what `estimate_compute` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from anatomist.catalog import CATALOG
from anatomist.desk import Desk
from anatomist.estimate import formulas as f
from anatomist.estimate.sizes import Sizes
from transformers import AutoConfig, AutoModelForCausalLM

from tests import docs_compute as d

BY_NAME = {known.name: known for known in d.KNOWN}


def config(known: d.Known) -> Any:
    shape = dict(known.config)
    return AutoConfig.for_model(str(shape.pop("model_type")), **shape)


def counted(known: d.Known) -> int:
    """Parameters of the class that transformers has for it; no weight is made."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(known))
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize("known", d.KNOWN, ids=lambda k: k.name)
def test_a_model_has_the_published_number_of_parameters(known: d.Known) -> None:
    assert counted(known) == known.parameters


@pytest.mark.negative_control
def test_a_wrong_shape_does_not_have_them() -> None:
    known = BY_NAME["Qwen3-0.6B"]
    wrong = known._replace(config={**known.config, "head_dim": 64})
    assert counted(wrong) != known.parameters


@pytest.mark.parametrize("known", d.KNOWN, ids=lambda k: k.name)
def test_its_shape_is_what_the_config_of_transformers_says(known: d.Known) -> None:
    sizes = Sizes.of_config(config(known).to_dict())
    assert sizes.model_copy(update={"parameters": known.parameters}) == known.sizes()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Estimates by the rate that the table of times assumes for a laptop, instead of by this machine's."""
    monkeypatch.setattr(CATALOG.find("estimate_compute").module, "machine_rate", lambda: d.LAPTOP)
    return Desk(tmp_path)


def estimate(desk: Desk, operation: str, sizes: Sizes, **more: object) -> Any:
    call = {"operation": operation, "sizes": sizes.model_dump(), "prompts": d.PROMPTS, "tokens": d.TOKENS, **more}
    return desk.call("estimate_compute", call).result


@pytest.mark.parametrize("dtype", d.DTYPES)
@pytest.mark.parametrize("known", d.KNOWN, ids=lambda k: k.name)
def test_the_tables_say_what_estimate_compute_says(known: d.Known, dtype: str, desk: Desk) -> None:
    s = known.sizes(dtype)
    rows, width = d.PROMPTS, d.TOKENS
    forward = estimate(desk, "forward", s)
    assert forward.weight_bytes == f.weight_bytes(s) == known.parameters * s.item_bytes
    assert forward.kv_bytes_per_token == f.kv_bytes_per_token(s)
    assert forward.cost.flops == f.forward_flops(s, rows, width)
    assert parts(forward)["logits at every position"] == f.logit_bytes(s, rows, width)
    assert estimate(desk, "forward", s, prompts=d.FIT_PROMPTS).needed_bytes == d.bytes_to_read(s)

    read = estimate(desk, "run_with_cache", s, arguments={"sites": ["resid_post", "pattern"]})
    assert read_bytes(read, "resid_post") == f.residual_bytes(s, rows, width)
    assert read_bytes(read, "pattern") == d.pattern_bytes(s, rows, width)

    gradients = estimate(desk, "attribution_patching", s)
    assert gradients.cost.seconds == d.seconds("attribution_patching", s, d.LAPTOP)
    assert forward.cost.seconds == d.seconds("forward", s, d.LAPTOP)
    assert sum(parts(gradients).values()) == d.gradient_bytes(s, rows, width)


@pytest.mark.parametrize("known", d.KNOWN, ids=lambda k: k.name)
def test_the_arithmetic_is_that_of_estimate_compute(known: d.Known, desk: Desk) -> None:
    s = known.sizes()
    sweeps = {"residual_sweep": f.residual_sweep_flops, "head_sweep": f.head_sweep_flops}
    for operation, flops in sweeps.items():
        found = estimate(desk, operation, s, tokens=d.SWEEP_TOKENS)
        assert found.cost.flops == flops(s, d.PROMPTS, d.SWEEP_TOKENS)
        assert found.cost.seconds == d.seconds(operation, s, d.LAPTOP)
    features = d.EXPANSION * s.d_model
    training = estimate(desk, "train_dictionary", s, prompts=d.SAE_PROMPTS, d_dictionary=features)
    assert parts(training)["dictionary with Adam in float32"] == 16 * d.dictionary(s)
    assert training.cost.flops == d.dictionary_flops(s)
    assert training.cost.seconds == d.seconds("train_dictionary", s, d.LAPTOP)


def parts(estimate: Any) -> dict[str, int]:
    return {part.what: part.bytes for part in estimate.cost.parts}


def read_bytes(estimate: Any, site: str) -> int:
    (found,) = [size for what, size in parts(estimate).items() if what.startswith(site)]
    return found


@pytest.mark.hand_worked
def test_a_row_of_each_table_by_hand() -> None:
    made = {name: dict(rows(table)) for name, table in d.tables().items()}
    # 124,439,808 x 4 = .498 GB; 2 x 12 x 12 x 64 x 4 = 73.7 kB
    assert made["weights"]["gpt2"][:2] == ["0.498 / 0.249", "73.7 / 36.9"]
    # 32 x 128 x 12 x 768 x 4 = .151 GB; 32 x 12 x 12 x 128^2 x 4 = .302 GB; 32 x 128 x 50,257 x 4 = .823 GB
    assert made["activations"]["gpt2"][:3] == ["0.151 / 0.0755", "0.302 / 0.151", "0.823 / 0.412"]
    # 12,288 features, 2 x 768 x 12,288 + 12,288 + 768 = 18,887,424 parameters, 16 bytes each
    assert made["work"]["gpt2"][4:6] == ["12,288", "0.302"]
    # 70.6 x 10^9 parameters: 141 GB even in bfloat16
    assert made["weights"]["Llama-3-70B"][-3:] == ["no", "no", "no"]


@pytest.mark.hand_worked
def test_a_time_by_hand() -> None:
    # 5.28 x 10^12 operations at 10^11 a second: 53 s; 12 x 12 x 7,077,888 weights of 4 bytes at 50 GB/s: .08 s
    assert dict(rows(d.tables()["time"]))["gpt2"][2].startswith("53 s / ")
    assert [d.duration(s) for s in (0.294, 52.8, 840, 10_080, 1e6)] == ["0.29 s", "53 s", "14 min", "2.8 h", "12 d"]


def rows(table: str) -> list[tuple[str, list[str]]]:
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return [(row[0], row[1:]) for row in cells]
