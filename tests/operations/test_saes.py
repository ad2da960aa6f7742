"""load_sae, list_saes, feature_dashboard, and dictionaries as handles."""

from __future__ import annotations

from pathlib import Path

import pytest
from anatomist.dictionaries.releases import plain_name, releases_for, same_model
from anatomist.errors import BadArguments, OutsideRoots, UnknownName, WouldNotFit
from anatomist.host import Host
from anatomist.operations import feature_dashboard, list_saes, load_sae
from anatomist.techniques.encode_sae import EncodeSaeResult

from tests.dictionaries import small

TEXT = tuple(" ".join(f"t{(7 * i + 3 * j * j) % 20}" for j in range(48)) for i in range(24))
PROMPT: dict[str, object] = {"clean": "t3 t7 t1 t3", "answer": "t7", "wrong": "t1"}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "workspace")


@pytest.mark.positive_control
def test_a_dictionary_is_loaded_measured_listed_used_and_freed(host: Host) -> None:
    call = {"sae": "toy-induction-l0", "model": "toy-induction", "text": TEXT}
    loaded = host.call("load_sae", call).result
    assert isinstance(loaded, load_sae.LoadedSae)
    assert loaded.quality is not None
    assert loaded.quality.everywhere.l0 == pytest.approx(2, abs=0.1)  # the token, and the token before it
    assert "Here, on 512 tokens" in loaded.summary
    listed = host.call("list_saes", {}).result
    assert isinstance(listed, list_saes.Saes)
    assert [(s.handle, s.model) for s in listed.loaded] == [("toy-induction-l0", "toy-induction")]
    run = host.call("encode_sae", {"model": "toy-induction", "sae": "toy-induction-l0", "prompts": [PROMPT]}).result
    assert isinstance(run, EncodeSaeResult)
    assert set(loaded.warnings) <= set(run.warnings)  # what was found at load comes with every result
    gone = host.call("unload_model", {"model": "toy-induction-l0"}).result
    assert gone.summary.startswith("Unloaded toy-induction-l0")  # type: ignore[attr-defined]
    assert host.state().dictionaries == ()


def test_position_and_junk_are_not_explained_and_that_is_called_out(host: Host) -> None:
    call = {"sae": "toy-induction-l0", "model": "toy-induction", "text": TEXT}
    (told,) = host.call("load_sae", call).result.warnings  # type: ignore[attr-defined]
    assert told.startswith("MISMATCH")


def test_a_folder_is_used_by_its_handle_after_a_restart(tmp_path: Path) -> None:
    from anatomist.dictionaries.toy import toy_sae

    workspace = tmp_path / "ws"
    toy_sae("toy-induction-l1").save_model(workspace / "mine")
    first = Host(workspace)
    loaded = first.call("load_sae", {"sae": "./mine", "model": "toy-induction", "text": TEXT}).result
    assert loaded.handle == "mine"  # type: ignore[attr-defined]
    again = Host(workspace).call("encode_sae", {"model": "toy-induction", "sae": "mine", "prompts": [PROMPT]}).result
    assert {f.feature for f in again.features} >= {"L1F47"}  # type: ignore[attr-defined]


@pytest.mark.bad_input
def test_what_cannot_be_loaded_is_told(host: Host, tmp_path: Path) -> None:
    small.standard().save_model(host.workspace / "llama-sae")
    with pytest.raises(BadArguments, match=r"has width 32 at blocks.1.resid_post; toy-induction has 132 there"):
        host.call("load_sae", {"sae": str(host.workspace / "llama-sae"), "model": "toy-induction"})
    with pytest.raises(UnknownName, match="toy-induction-l0"):
        host.call("encode_sae", {"model": "toy-induction", "sae": "nothing", "prompts": [PROMPT]})
    outside = tmp_path / "elsewhere"
    small.standard().save_model(outside)
    with pytest.raises(OutsideRoots):
        host.call("load_sae", {"sae": str(outside), "model": "toy-induction"})


@pytest.mark.positive_control
def test_releases_are_listed_offline_with_hook_width_and_l0(host: Host) -> None:
    listed = host.call("list_saes", {"model": "gpt2", "release": "gpt2-small-res-jb", "limit": 3}).result
    assert isinstance(listed, list_saes.Saes)
    assert listed.total == 13
    assert listed.next_offset == 3
    first = listed.saes[0]
    assert (first.name, first.hook, first.l0) == (
        "gpt2-small-res-jb:blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre", 10.0,
    )  # fmt: skip
    assert first.explained_variance == pytest.approx(0.999)
    assert first.centred  # its release says center_writing_weights
    scope = releases_for("google/gemma-2-2b", "gemma-scope-2b-pt-res")
    row = next(r for r in scope if r.id == "layer_20/width_16k/average_l0_71")
    assert (row.layer, row.width, row.l0, row.weights) == (20, "16k", 71.0, "npz")
    assert row.hook == "blocks.20.hook_resid_post"
    assert all(r.explained_variance is None for r in releases_for(release="pythia-70m-deduped-res-sm"))  # not 1.0


@pytest.mark.negative_control
def test_a_model_without_releases_says_which_have_some(host: Host) -> None:
    listed = host.call("list_saes", {"model": "toy-induction"}).result
    assert listed.total == 0  # type: ignore[attr-defined]
    assert "gemma-2-2b" in listed.summary  # type: ignore[attr-defined]
    with pytest.raises(UnknownName, match="gpt2-small-res-jb"):
        host.call("list_saes", {"release": "gpt2-small-res-jp"})


def test_names_of_one_model_are_known_as_one() -> None:
    assert same_model("gpt2", "gpt2-small")
    assert same_model("google/gemma-2-2b", "gemma-2-2b")
    assert same_model("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m")
    assert not same_model("gemma-2-2b", "gemma-2-2b-it")
    assert plain_name("gemma3-270m") == "gemma-3-270m"


@pytest.mark.positive_control
def test_a_dashboard_is_one_page_that_fetches_nothing(host: Host) -> None:
    features = [45, "L1F4"]
    call = {"model": "toy-induction", "sae": "toy-induction-l1", "features": features, "text": TEXT, "n_tokens": 600}
    made = host.call("feature_dashboard", call).result
    assert isinstance(made, feature_dashboard.Dashboard)
    page = Path(made.html).read_text(encoding="utf-8")
    assert page.count("<article") == 2
    assert "Positive logits" in page
    assert "prefers-color-scheme: dark" in page
    assert "http" not in page.replace("http-equiv", "")
    assert Path(made.html).is_relative_to(host.workspace)
    assert made.features[0].startswith("L1F45: active on")


@pytest.mark.bad_input
def test_a_dashboard_goes_nowhere_else(host: Host, tmp_path: Path) -> None:
    call = {"model": "toy-induction", "sae": "toy-induction-l1", "features": [4], "text": TEXT, "n_tokens": 256}
    with pytest.raises(OutsideRoots):
        host.call("feature_dashboard", {**call, "path": str(tmp_path / "page.html")})
    with pytest.raises(BadArguments, match="has features 0 to 59"):
        host.call("feature_dashboard", {**call, "features": [60]})


def test_a_dictionary_larger_than_the_free_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    from anatomist.dictionaries.toy import toy_sae

    toy_sae("toy-induction-l1").save_model(tmp_path / "huge")
    with (tmp_path / "huge" / "sae_weights.safetensors").open("r+b") as weights:
        weights.truncate(2**42)  # a hole: it takes no place on the disk
    host = Host(tmp_path / "workspace", allow=[tmp_path])
    with pytest.raises(WouldNotFit, match=r"needs about 8,388,608 MiB.*choose a narrower one"):
        host.call("load_sae", {"sae": str(tmp_path / "huge"), "model": "toy-induction", "text": TEXT})
