"""Trackers: a run reaches the one that is configured, offline, and a tracker's failure never costs the run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from anatomist.desk import Answer
from anatomist.errors import UnknownName
from anatomist.host import Host
from anatomist.result import Result
from anatomist.tracking import PROJECT, TRACKERS, VARIABLE, numbers


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, PROJECT, "WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)


def ablated(workspace: Path) -> Answer:
    prompt = {"clean": "t1 t2 t3 t1", "corrupted": "t4 t2 t3 t1", "answer": "t2", "wrong": "t5"}
    arguments = {"model": "toy-induction", "prompts": [prompt], "heads": ["L1H2"], "ablation": "zero"}
    return Host(workspace).call("ablate", arguments)


def warned(answer: Answer) -> list[str]:
    assert isinstance(answer.result, Result)
    return [w for w in answer.result.warnings if "did not take it" in w]


@pytest.mark.hand_worked
def test_single_numbers_are_tracked_by_their_path_and_grids_are_not(tmp_path: Path) -> None:
    result = ablated(tmp_path).result
    assert isinstance(result, Result)
    found = numbers(result)
    assert found["effects.0.base.mean"] == pytest.approx(result.model_dump()["effects"][0]["base"]["mean"])
    assert not any(".values" in name for name in found)


def test_nothing_is_tracked_unless_it_is_asked_for(tmp_path: Path) -> None:
    answer = ablated(tmp_path)
    assert not warned(answer)
    assert not list(tmp_path.glob("**/wandb"))


@pytest.mark.positive_control
def test_weights_and_biases_gets_the_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv(VARIABLE, "wandb")
    answer = ablated(tmp_path)
    assert not warned(answer)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.positive_control
def test_mlflow_gets_the_run_in_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv(VARIABLE, "mlflow")
    monkeypatch.chdir(tmp_path)
    answer = ablated(tmp_path)
    assert not warned(answer)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.metrics["effects.0.base.mean"] == pytest.approx(numbers(answer.result)["effects.0.base.mean"])  # type: ignore[arg-type]
    assert run.data.params["ablation"] == "zero"


@pytest.mark.positive_control
def test_trackio_gets_the_run_in_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    monkeypatch.setenv(VARIABLE, "trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    assert not warned(ablated(tmp_path))
    assert list((tmp_path / "trackio").glob("**/*.db"))


@pytest.mark.negative_control
def test_a_tracker_that_fails_costs_a_warning_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setitem(TRACKERS, "wandb", full)  # type: ignore[arg-type]
    monkeypatch.setenv(VARIABLE, "wandb")
    answer = ablated(tmp_path)
    assert warned(answer)
    assert (tmp_path / "runs" / str(answer.run_id) / "result.json").is_file()


@pytest.mark.bad_input
def test_an_unknown_tracker_is_refused_with_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "wandbb")
    with pytest.raises(UnknownName, match="wandb, mlflow, trackio"):
        ablated(tmp_path)
