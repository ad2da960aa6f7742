"""train_sae: through a host, with checkpoints that outlive a kill, and figures that a later load is held against."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from anatomist.errors import BadArguments, BadPrompts, BadSite, Cancelled, WouldNotFit
from anatomist.host import Host
from anatomist.operations.train_sae import TrainedSae
from pydantic import ValidationError


def words(n: int = 120, seed: int = 0) -> tuple[str, ...]:
    draw = random.Random(seed)
    return tuple(" ".join(f"t{draw.randrange(20)}" for _ in range(24)) for _ in range(n))


def settings(**more: object) -> dict[str, object]:
    return {
        "model": "toy-induction", "site": "blocks.1.resid_pre", "name": "small", "text": words(), "features": 48,
        "k": 3,
        "tokens": 2400, "width": 12, "steps": 60, "batch": 128, "lr": 3e-3, "checkpoint_every": 20,
        **more,
    }  # fmt: skip


def trained(host: Host, **more: object) -> TrainedSae:
    found = host.call("train_sae", settings(**more)).result
    assert isinstance(found, TrainedSae)
    return found


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("train"))


@pytest.mark.positive_control
def test_what_is_trained_is_loaded_like_any_other_and_does_what_was_told(host: Host) -> None:
    found = trained(host, architecture="topk")
    assert found.folder is not None
    assert found.quality is not None
    assert found.quality.ordinary.explained_variance > 0.3
    assert found.quality.ordinary.l0 == pytest.approx(3.0, abs=0.01)
    assert [line["step"] for line in found.history][-1] == 60
    loaded = host.call("load_sae", {"sae": found.folder, "model": "toy-induction", "text": words(seed=1)}).result
    assert loaded.info.d_dict == 48  # type: ignore[attr-defined]
    assert loaded.info.release.explained_variance == found.quality.ordinary.explained_variance  # type: ignore[attr-defined]
    assert not any("MISMATCH" in warning for warning in loaded.warnings)
    card = json.loads((Path(found.folder) / "card.json").read_text())
    assert card["text"]["trained_on"] <= card["text"]["tokens"]
    assert len(card["text"]["held_out_sha256"]) == 64
    assert card["text"]["held_out_sha256"] != card["text"]["sha256"]
    assert card["recipe"]["k"] == 3
    assert card["limits"]


@pytest.mark.hand_worked
def test_an_estimate_counts_and_runs_nothing(host: Host) -> None:
    found = trained(host, name="estimated", estimate_only=True, architecture="topk")
    assert found.folder is None
    assert not (host.workspace / "saes" / "estimated").exists()
    d = host.model("toy-induction").info.d_model
    parameters = 2 * d * 48 + 48 + d
    # 16 bytes a parameter with Adam; a batch holds six arrays of features and four of activations, four bytes each
    assert found.cost.memory_bytes == 16 * parameters + 4 * 128 * (6 * 48 + 4 * d)
    assert found.cost.cache_bytes == 2400 * (4 * d + 4)
    assert found.cost.epochs == pytest.approx(60 * 128 / 2400)


@pytest.mark.positive_control
def test_a_call_that_was_cancelled_goes_on_when_it_is_made_again(host: Host) -> None:
    def stop(done: float, total: float, what: str) -> None:
        if "training: step 3" in what:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        host.call("train_sae", settings(name="stopped"), stop)
    again, whole = trained(host, name="stopped"), trained(host, name="whole")
    assert again.resumed_at is not None
    assert whole.resumed_at is None
    assert again.quality == whole.quality


@pytest.mark.negative_control
def test_little_training_is_called_poor(host: Host) -> None:
    found = trained(host, name="poor", steps=2, architecture="topk", k=1)
    assert any("train longer" in warning for warning in found.warnings)


@pytest.mark.bad_input
def test_what_cannot_be_trained_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadArguments, match=r"no dictionary is trained at blocks\.0\.pattern"):
        trained(host, site="blocks.0.pattern")
    with pytest.raises(BadSite, match="layers are 0 to 1"):
        trained(host, site="blocks.9.resid_pre")
    with pytest.raises(BadArguments, match="k is 30, but there are 20 features"):
        trained(host, features=20, k=30)
    with pytest.raises(BadPrompts, match="is empty"):
        trained(host, text=("", " "))
    with pytest.raises(BadPrompts, match="one document"):
        trained(host, text=("t1 t2 t3 t4",))
    with pytest.raises((ValidationError, BadArguments)):
        trained(host, name="../elsewhere")
    monkeypatch.setattr("anatomist.operations.train_sae.memory_available", lambda: 10)
    with pytest.raises(WouldNotFit, match="fewer features"):
        trained(host, name="large")


KILLED = """
import json, sys
from anatomist.host import Host
Host(sys.argv[1]).call("train_sae", json.loads(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.positive_control
def test_killed_in_the_middle_it_ends_with_the_figures_of_one_that_was_not(tmp_path: Path) -> None:
    told = settings(steps=600, architecture="topk", name="killed", checkpoint_every=25)
    command = [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(told)]
    process = subprocess.Popen(command, env={**os.environ, "TQDM_DISABLE": "1"})
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("checkpoints/*/latest.json")) and time.monotonic() < deadline:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "saes" / "killed").exists()
    host = Host(tmp_path)
    resumed = host.call("train_sae", told).result
    whole = host.call("train_sae", {**told, "name": "whole"}).result
    assert isinstance(resumed, TrainedSae)
    assert isinstance(whole, TrainedSae)
    assert resumed.resumed_at is not None
    assert 0 < resumed.resumed_at < 600
    assert resumed.quality is not None
    assert whole.quality is not None
    for name in ("explained_variance", "l0", "ce_spliced"):
        one, other = (getattr(q.ordinary, name) for q in (resumed.quality, whole.quality))
        assert one == pytest.approx(other, rel=0.01)
