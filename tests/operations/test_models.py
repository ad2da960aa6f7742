"""load_model, list_models, unload_model, generate, make_prompts."""

from __future__ import annotations

import pytest
from anatomist.errors import BadArguments, UnknownName, Unsupported
from anatomist.host import Host
from anatomist.model.loading import known_names
from anatomist.operations import generate, list_models, load_model, make_prompts


@pytest.mark.positive_control
def test_a_model_is_loaded_listed_and_unloaded(host: Host) -> None:
    loaded = host.call("load_model", {"name": "toy-induction"}).result
    assert isinstance(loaded, load_model.Loaded)
    assert loaded.handle == loaded.info.name == "toy-induction"
    assert "2 layers x 4 heads" in loaded.summary
    listed = host.call("list_models", {}).result
    assert isinstance(listed, list_models.Models)
    assert [m.handle for m in listed.loaded] == ["toy-induction"]
    gone = host.call("unload_model", {"model": "toy-induction"}).result
    assert gone.summary.startswith("Unloaded toy-induction")  # type: ignore[attr-defined]
    assert host.loaded() == ()


def test_every_name_the_loader_knows_is_listed(host: Host) -> None:
    listed = host.call("list_models", {}).result
    assert isinstance(listed, list_models.Models)
    assert {m.name for m in listed.offline} == set(known_names())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "arguments", "error", "told"),
    [
        ("load_model", {"name": "toy-inductio"}, UnknownName, "Did you mean 'toy-induction'"),
        ("load_model", {"name": ""}, BadArguments, "'name' is ''"),
        ("load_model", {"name": "toy-induction", "backend": "tensorflow"}, BadArguments, "'toy', 'local' or 'nnsight'"),
        ("load_model", {"name": "toy-induction", "dtype": "int4"}, BadArguments, "'dtype' is 'int4'"),
        ("load_model", {"name": "toy-induction", "device": "cuda:9"}, BadArguments, "cuda:9"),
        ("unload_model", {"model": "gpt2"}, UnknownName, "unknown loaded model 'gpt2'"),
        ("generate", {"model": "toy-induction", "prompt": ""}, BadArguments, "'prompt"),
        ("generate", {"model": "toy-induction", "prompt": [1], "max_new_tokens": 0}, BadArguments, "max_new_tokens"),
        ("generate", {"model": "toy-induction", "prompt": "t1", "chat": True}, Unsupported, "chat"),
        ("make_prompts", {"task": "ioii", "model": "toy-induction"}, UnknownName, "Did you mean 'ioi'"),
        ("make_prompts", {"task": "ioi", "model": "toy-induction", "n": 10**9}, BadArguments, "'n' is 1000000000"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(
    host: Host, call: str, arguments: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        host.call(call, arguments)


@pytest.mark.positive_control
def test_the_induction_circuit_continues_a_repeated_sequence(host: Host) -> None:
    # 3 5 7 9 | 3 5: the circuit copies what followed 5 before: 7, then 9
    made = host.call("generate", {"model": "toy-induction", "prompt": [3, 5, 7, 9, 3, 5], "max_new_tokens": 2}).result
    assert isinstance(made, generate.Generated)
    assert made.tokens == ("t7", "t9")
    assert (made.text, made.prompt_tokens) == ("t7 t9", 6)


@pytest.mark.positive_control
def test_prompts_are_made_kept_and_used(host: Host) -> None:
    arguments = {"task": "induction", "model": "toy-induction", "n": 6, "held_out": 4}
    made = host.call("make_prompts", arguments).result
    assert isinstance(made, make_prompts.PromptsMade)
    assert (made.discovery, made.held_out) == (6, 4)
    pair = host.shelf.get(made.handle)
    assert made.examples == pair.discovery.prompts[:2]
    counted = host.call("count_tokens", {"model": "toy-induction", "prompts": made.handle, "split": "held_out"})
    assert len(counted.result.counts) == 4  # type: ignore[attr-defined]
    again = host.call("make_prompts", arguments).result
    assert isinstance(again, make_prompts.PromptsMade)
    assert again.handle != made.handle
    assert host.shelf.get(again.handle).discovery.prompts == pair.discovery.prompts


def test_an_unknown_corruption_lists_those_there_are(host: Host) -> None:
    asked = {"task": "induction", "model": "toy-induction", "n": 4}
    with pytest.raises(UnknownName, match="unknown corruption of induction 'typo'"):
        host.call("make_prompts", {**asked, "corruption": "typo"})
