"""check_environment and estimate_compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from anatomist import devices
from anatomist.desk import Answer, Desk, LoadRequest
from anatomist.environment import faults, installed, numbers
from anatomist.errors import BadArguments, OutsideRoots, Unavailable, UnknownName
from anatomist.host import Host
from anatomist.operations import check_environment, estimate_compute

SIZES = {"layers": 32, "d_model": 4096, "heads": 32, "kv_heads": 8, "d_head": 128, "d_mlp": 14336, "d_vocab": 128256,
         "tied": False, "item_bytes": 2}  # fmt: skip


def estimate(desk: Desk, **arguments: object) -> estimate_compute.ComputeEstimate:
    result = desk.call("estimate_compute", arguments).result
    assert isinstance(result, estimate_compute.ComputeEstimate)
    return result


@pytest.mark.positive_control
def test_the_environment_is_told_in_figures(host: Host, kept: Answer) -> None:
    told = host.call("check_environment", {}).result
    assert isinstance(told, check_environment.Environment)
    assert told.versions["anatomist"] == "0.1.0"
    assert 0 < told.available_bytes <= told.memory_bytes
    assert (told.runs, told.loaded) == (1, ("toy-induction",))
    assert told.compute is not None
    assert told.compute.devices[0].name == "cpu"


def test_a_desk_checks_the_environment_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from anatomist.desk import Desk; d = Desk(sys.argv[1]);"
        "print(d.call('check_environment', {}).result.compute);"
        "d.call('list_models', {}); d.call('estimate_compute', {'operation': 'forward', 'sizes': "
        f"{SIZES!r}" + "}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]


@pytest.mark.negative_control
def test_this_environment_has_no_known_fault() -> None:
    assert faults(installed(), system="Linux") == []


@pytest.mark.positive_control
@pytest.mark.parametrize(
    ("changed", "system", "told"),
    [
        ({"nnsight": "0.8.1"}, "Linux", "nnterp 1.3.0 with nnsight 0.8.1: `import nnterp` fails"),
        ({"transformer-lens": "4.0.0b2"}, "Linux", "sae-lens needs modules that transformer-lens 4 removed"),
        ({"circuit-tracer": "0.5.0"}, "Linux", "circuit-tracer pins transformers"),
        ({"transformers": "4.57.1"}, "Linux", "transformers 4.57.1 is outside"),
        ({"torch": "2.8.0"}, "Darwin", "inverted logit differences"),
    ],
)
def test_a_known_fault_is_found_with_its_remedy(changed: dict[str, str], system: str, told: str) -> None:
    found = faults({**installed(), "nnterp": "1.3.0", **changed}, system=system)
    assert any(told in fault for fault in found), found
    assert all("Remedy: " in fault for fault in found)


def test_versions_are_compared_as_numbers() -> None:
    assert [numbers(v) for v in ("0.10.1", "2.13.0+cpu", "4.0.0b2", "5", "")] == [
        (0, 10, 1), (2, 13, 0), (4, 0, 0), (5,), (),
    ]  # fmt: skip


def test_the_containers_limit_counts_as_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    plain = devices.memory_total()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 600000\ninactive_file 200000\nactive_file 100000\n")
    assert devices.memory_total() == 1_000_000
    assert devices.memory_available() == 400_000  # 100,000 not used, 300,000 of file cache
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.memory_total() == plain


@pytest.mark.hand_worked
def test_plain_sizes_are_enough(tmp_path: Path) -> None:
    told = estimate(Desk(tmp_path), operation="forward", sizes=SIZES, prompts=2, tokens=8)
    # 2 x 128,256 x 4096 + 32 x (2 x 4096 x 128 x 40 + 3 x 4096 x 14336 + 8192) + 4096 = 8,030,261,248
    assert told.weight_bytes == 2 * 8_030_261_248
    assert told.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert told.needed_bytes == told.weight_bytes + told.cost.peak_bytes
    assert "numpy" in told.rate.how


@pytest.mark.positive_control
def test_a_loaded_model_needs_no_more_weights(host: Host) -> None:
    host.load(LoadRequest(name="toy-induction"))
    told = estimate(host, operation="count_tokens", model="toy-induction", prompts=4, tokens=5)
    assert told.loaded
    assert told.needed_bytes == told.cost.peak_bytes
    assert told.fits
    assert "4 prompts of 5 tokens" in told.summary


def test_the_prompts_that_are_named_are_counted(host: Host) -> None:
    host.load(LoadRequest(name="toy-induction"))
    inline = {"prompts": [{"clean": [1]}] * 7}
    told = estimate(host, operation="count_tokens", model="toy-induction", tokens=5, arguments=inline)
    assert "7 prompts of 5 tokens" in told.summary


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    told = estimate(Desk(tmp_path), operation="full_cache", sizes=SIZES, prompts=10_000, tokens=1000)
    assert not told.fits
    assert "does NOT fit" in told.summary


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"operation": "forwrd", "sizes": SIZES}, UnknownName, "Did you mean 'forward'"),
        ({"operation": "forward"}, BadArguments, "either `model`"),
        ({"operation": "forward", "sizes": SIZES, "model": "m"}, BadArguments, "one of the two"),
        ({"operation": "forward", "model": "nobody/here"}, Unavailable, "give `sizes` by numbers"),
        ({"operation": "forward", "model": "/etc"}, OutsideRoots, "outside the folders"),
        ({"operation": "forward", "sizes": {**SIZES, "layers": 0}}, BadArguments, "'sizes.layers' is 0"),
        ({"operation": "train_dictionary", "sizes": SIZES}, BadArguments, "needs d_dictionary"),
        ({"operation": "count_tokens", "sizes": SIZES, "arguments": {"layr": 1}}, BadArguments, "Did you mean 'layer'"),
    ],
)
def test_what_cannot_be_estimated_is_told(
    host: Host, arguments: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        estimate(host, **arguments)
