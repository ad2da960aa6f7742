"""What is no dictionary of this model is refused at the door that callers use, with what is wrong and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from anatomist.dictionaries.toy import toy_sae
from anatomist.errors import AnatomistError, BadArguments, BadPrompts, CorruptFile, NotFinite, Unsupported
from anatomist.host import Host

from tests.dictionaries import small


def whole(folder: Path) -> Path:
    toy_sae("toy-induction-l1").save_model(folder)
    return folder


def pickled(folder: Path) -> None:
    folder.mkdir()
    torch.save({"W_enc": torch.zeros(2)}, folder / "ae.pt")


def a_pickle_called_safetensors(folder: Path) -> None:
    torch.save({"W_enc": torch.zeros(2)}, whole(folder) / "sae_weights.safetensors")


def with_nan(folder: Path) -> None:
    sae = toy_sae("toy-induction-l1")
    sae.W_dec.data[3, 4] = float("nan")
    sae.save_model(folder)


def without_metadata(folder: Path) -> None:
    config = json.loads((whole(folder) / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": {}}))


def of_a_layer_that_is_not_there(folder: Path) -> None:
    config = json.loads((whole(folder) / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.7.hook_resid_post"
    (folder / "cfg.json").write_text(json.dumps(config))


def of_another_model(folder: Path) -> None:
    small.standard().save_model(folder)


def that_disagrees_with_its_weights(folder: Path) -> None:
    config = json.loads((whole(folder) / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"d_sae": 61}))


class Bad(NamedTuple):
    make: Callable[[Path], object]
    error: type[AnatomistError]
    words: tuple[str, ...]  # what is wrong, and the next step


TABLE = (
    Bad(pickled, Unsupported, ("only pickles (ae.pt)", "save_model")),
    Bad(a_pickle_called_safetensors, CorruptFile, ("not safetensors, or damaged", "Get the folder again")),
    Bad(with_nan, NotFinite, ("W_dec", "NaN", "get the file again")),
    Bad(without_metadata, CorruptFile, ("name no hook", "Give the site yourself")),
    Bad(of_a_layer_that_is_not_there, AnatomistError, ("blocks.7.resid_post", "layers are 0 to 1")),
    Bad(of_another_model, BadArguments, ("has width 32", "toy-induction has 132 there", "list_saes")),
    Bad(that_disagrees_with_its_weights, CorruptFile, ("cannot be read as a SAELens", "get the folder again")),
)


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.make.__name__)
@pytest.mark.parametrize("call", ["load_sae", "encode_sae"])
def test_what_cannot_be_used_is_refused_with_the_next_step(bad: Bad, call: str, tmp_path: Path) -> None:
    host = Host(tmp_path)
    bad.make(tmp_path / "sae")
    arguments: dict[str, object] = {"model": "toy-induction", "sae": str(tmp_path / "sae")}
    if call == "encode_sae":
        arguments["prompts"] = [{"clean": "t3 t7 t1 t3"}]
    with pytest.raises(bad.error) as told:
        host.call(call, arguments)
    assert all(words in str(told.value) for words in bad.words)
    assert host.state().dictionaries == ()


@pytest.mark.bad_input
@pytest.mark.parametrize("call", ["train_sae", "evaluate_sae", "feature_dashboard", "sae_feature_search"])
def test_an_empty_corpus_is_refused_by_every_call_that_reads_text(call: str, tmp_path: Path) -> None:
    arguments: dict[str, object] = {"model": "toy-induction", "text": ["", " \n"]}
    if call == "train_sae":
        arguments |= {"site": "blocks.1.resid_pre", "name": "none", "features": 48}
    else:
        arguments |= {"sae": "toy-induction-l1"} | ({} if call == "evaluate_sae" else {"features": [3]})
    with pytest.raises(BadPrompts, match="is empty"):
        Host(tmp_path).call(call, arguments)
