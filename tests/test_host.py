"""The host: handles, memory, what needs a model and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from anatomist import host as host_module
from anatomist.catalog import Catalog
from anatomist.desk import Desk, LoadRequest, WorkerState
from anatomist.errors import BadArguments, CorruptFile, OutsideRoots, UnknownName, Unsupported, WouldNotFit
from anatomist.host import Host
from anatomist.model.protocol import Model

PROMPTS = [{"clean": [1, 2, 3]}]
CATALOG = Catalog(techniques=("tests.throwaway",))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, catalog=CATALOG)


@pytest.mark.positive_control
def test_a_model_is_loaded_when_a_technique_names_it(host: Host) -> None:
    assert host.loaded() == ()
    answer = host.call("count_tokens", {"model": "toy-induction", "prompts": PROMPTS})
    assert [m.handle for m in host.loaded()] == ["toy-induction"]
    assert answer.name == "count_tokens"


def test_the_same_request_gives_the_same_model_and_another_a_new_handle(host: Host) -> None:
    first = host.load(LoadRequest(name="toy-induction"))
    assert host.load(LoadRequest(name="toy-induction")) is first
    second = host.load(LoadRequest(name="toy-induction", check_parity=False))
    assert (first.handle, second.handle) == ("toy-induction", "toy-induction-2")
    assert host.model("toy-induction-2") is not host.model("toy-induction")
    assert second.info.name == "toy-induction-2"


def test_an_unloaded_model_is_gone_and_comes_back_under_its_handle(host: Host) -> None:
    host.load(LoadRequest(name="toy-induction"))
    host.unload("toy-induction")
    assert host.loaded() == ()
    with pytest.raises(UnknownName, match=r"unknown loaded model 'toy-induction'.*Call list_models"):
        host.unload("toy-induction")
    assert host.load(LoadRequest(name="toy-induction")).handle == "toy-induction"


def test_what_another_worker_held_is_loaded_again_under_the_same_handles(host: Host, tmp_path: Path) -> None:
    host.load(LoadRequest(name="toy-induction"))
    host.load(LoadRequest(name="toy-induction", check_parity=False))
    text = host.state().model_dump_json()
    other = Host(tmp_path)
    other.restore(WorkerState.model_validate_json(text).models)
    assert [(m.handle, m.request) for m in other.loaded()] == [(m.handle, m.request) for m in host.loaded()]


@pytest.mark.bad_input
def test_an_unknown_model_is_told_what_exists(host: Host) -> None:
    host.load(LoadRequest(name="toy-induction-soft"))
    with pytest.raises(UnknownName, match=r"toy-inducton.*Loaded handles: toy-induction-soft\."):
        host.model("toy-inducton")


@pytest.mark.bad_input
def test_a_model_folder_outside_the_roots_is_refused(host: Host, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("models")
    with pytest.raises(OutsideRoots, match="--allow"):
        host.load(LoadRequest(name=str(outside)))
    assert str(outside) in Host(host.workspace, allow=[outside]).place(str(outside))


@pytest.mark.bad_input
def test_a_technique_that_would_not_fit_is_refused_before_it_runs(host: Host) -> None:
    with pytest.raises(WouldNotFit, match=r"hold_much needs about 1000\.0 TB \(mostly everything, 1000\.0 TB\)"):
        host.call("hold_much", {"model": "toy-induction"})
    with pytest.raises(WouldNotFit, match=r"hold_much would write about 1000\.0 TB .* free where the workspace is"):
        host.call("hold_much", {"model": "toy-induction", "disk": True})
    assert host.store.ids() == ()


@pytest.mark.bad_input
def test_a_model_that_would_not_fit_is_refused_before_it_is_loaded(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "bytes_to_load", lambda name, dtype: 10**15)
    with pytest.raises(WouldNotFit, match=r"loading 'toy-induction' needs about 1000\.0 TB;.*dtype='bfloat16'"):
        host.load(LoadRequest(name="toy-induction"))
    assert host.loaded() == ()


def test_the_budget_is_the_setting_or_half_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "free_bytes", lambda device: 10_000)
    assert Host(tmp_path, budget_bytes=100)._budget("cpu") == 100
    assert Host(tmp_path, budget_bytes=10**12)._budget("cpu") == 5_000
    monkeypatch.setenv("ANATOMIST_BUDGET_BYTES", "77")
    assert Host(tmp_path)._budget("cpu") == 77


def test_a_desk_answers_what_needs_no_model_and_says_what_does(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.call("list_runs", {}).result.summary.startswith("0 of 0 runs")  # type: ignore[attr-defined]
    assert desk.state() is None
    for name in ("load_model", "generate"):
        with pytest.raises(Unsupported, match="needs a model"):
            desk.call(name, {})


def test_a_desk_knows_what_it_was_told_of_the_worker(host: Host, tmp_path: Path) -> None:
    host.load(LoadRequest(name="toy-induction"))
    desk = Desk(tmp_path)
    desk.note(host.state())
    assert [m.handle for m in desk.loaded()] == ["toy-induction"]
    compute = desk.call("check_environment", {}).result.compute  # type: ignore[attr-defined]
    assert compute.devices[0].name == "cpu"
    desk.note(None)
    assert desk.loaded() == ()


@pytest.mark.bad_input
def test_unknown_calls_and_arguments_are_refused(host: Host) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'list_runs'"):
        host.call("list_run", {})
    with pytest.raises(BadArguments, match=r"unknown argument 'limt'\. Did you mean 'limit'"):
        host.call("list_runs", {"limt": 3})


def test_a_fault_of_the_code_is_not_dressed_up_as_lack_of_memory(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object, **named: object) -> Model:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(host, "model", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        host.call("count_tokens", {"model": "toy-induction", "prompts": PROMPTS})


def test_the_handle_of_a_folder_outlives_the_process(tmp_path: Path) -> None:
    from anatomist.model.backends.toy_circuits import induction
    from anatomist.model.backends.toy_file import Form, named_tensors, save_toy
    from anatomist.model.trained import TOY_FILE

    toy = induction(name="mine")
    form = Form("mine", "a copy", toy.n_ctx, toy.words.strings)
    (tmp_path / "mine").mkdir()
    save_toy(tmp_path / "mine" / TOY_FILE, named_tensors(toy.weights), form)
    first = Host(tmp_path / "workspace", allow=[tmp_path], catalog=CATALOG)
    handle = first.load(LoadRequest(name=str(tmp_path / "mine"))).handle
    again = Host(tmp_path / "workspace", allow=[tmp_path], catalog=CATALOG)
    again.call("count_tokens", {"model": handle, "prompts": PROMPTS})
    assert [m.handle for m in again.loaded()] == [handle]
    elsewhere = Host(tmp_path / "workspace", catalog=CATALOG)
    with pytest.raises(OutsideRoots):
        elsewhere.call("count_tokens", {"model": handle, "prompts": PROMPTS})
    (tmp_path / "workspace" / "handles" / f"{handle}.json").write_text("{")
    with pytest.raises(CorruptFile, match="Call load_model again"):
        Host(tmp_path / "workspace", allow=[tmp_path], catalog=CATALOG).model(handle)
