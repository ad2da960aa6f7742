"""Every kind of bad input over MCP: a clear error that names the value and the next step, and a server that goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from anatomist_mcp.app import App, AppOptions
from mcp import Client
from mcp.types import TextContent

from .bad_places import furnish

pytestmark = [pytest.mark.anyio, pytest.mark.bad_input]

TOY = "toy-induction"
GOOD = {"clean": "t3 t7 t1 t3", "corrupted": "t5 t7 t1 t3", "answer": "t7", "wrong": "t1"}


class Bad(NamedTuple):
    """One kind of bad input: what is wrong, the call, and words that the error must hold."""

    what: str
    tool: str
    arguments: dict[str, object]
    words: tuple[str, ...]


def patch(**changed: object) -> dict[str, object]:
    return {"model": TOY, "prompts": [GOOD], **changed}


def prompt(**changed: object) -> list[dict[str, object]]:
    return [{k: v for k, v in {**GOOD, **changed}.items() if v is not None}]


PATCH, ABLATE, LENS, DLA = "patch_activations", "ablate", "logit_lens", "direct_logit_attribution"
TABLE = (
    # names
    Bad("unknown tool", "patch_activation", {}, ("unknown tool 'patch_activation'", "'patch_activations'")),
    Bad("unknown model", PATCH, patch(model="gpt-9"), ("'gpt-9'", "smollm2-135m")),
    Bad("unknown model to load", "load_model", {"name": "toy-inductoin"}, ("'toy-inductoin'", "toy-induction")),
    Bad("model not loaded", "unload_model", {"model": "never"}, ("'never'", "list_models")),
    Bad("unknown backend", "load_model", {"name": TOY, "backend": "jax"}, ("backend", "'jax'", "nnsight")),
    Bad("wrong backend", "load_model", {"name": TOY, "backend": "nnsight"}, ("nnsight", "toy")),
    Bad("unknown dtype", "load_model", {"name": TOY, "dtype": "int3"}, ("dtype", "'int3'", "float32")),
    Bad("unknown task", "make_prompts", {"task": "ioii", "model": TOY}, ("'ioii'", "induction")),
    Bad("task the model cannot do", "make_prompts", {"task": "ioi", "model": TOY}, ("ioi",)),
    Bad("unknown prompts", PATCH, patch(prompts="ioi-dead"), ("unknown prompt set 'ioi-dead'", "make_prompts")),
    Bad("unknown run", "get_run", {"run": "r-0777"}, ("unknown run 'r-0777'", "list_runs")),
    Bad("run outside the store", "get_run", {"run": "../prompts"}, ("unknown run",)),
    Bad("unknown job", "get_job", {"job": "j-0777"}, ("unknown job 'j-0777'", "list_runs")),
    Bad("unknown job to cancel", "cancel_job", {"job": "j-0777"}, ("unknown job 'j-0777'",)),
    Bad("unknown reference", "open_reference", {"name": "logit_lense"}, ("unknown reference 'logit_lense'",)),
    Bad("unknown technique", "describe_technique", {"name": "ablation"}, ("'ablation'", "ablate")),
    Bad("unknown technique to run", "run_technique", {"name": "ablation", "arguments": {}}, ("'ablation'", "ablate")),
    Bad("a tool as technique", "run_technique", {"name": "get_job", "arguments": {}}, ("is a tool",)),
    Bad("unknown operation to estimate", "estimate_compute", {"operation": "backward", "model": TOY}, ("'backward'",)),
    # arguments
    Bad("unknown argument", PATCH, patch(metrics="prob"), ("unknown argument 'metrics'", "'metric'")),
    Bad("unknown argument of a technique by name", "run_technique",
        {"name": PATCH, "arguments": patch(positon="all")}, ("unknown argument 'positon'", "'positions'")),
    Bad("missing argument", PATCH, {"model": TOY}, ("argument 'prompts' is missing",)),
    Bad("wrong type", PATCH, patch(layers="first"), ("argument 'layers'", "'first'")),
    Bad("wrong type inside", PATCH, patch(layers=[0, "x"]), ("layers.1", "'x'")),
    Bad("a choice that does not exist", PATCH, patch(metric="logits"), ("argument 'metric'", "'logits'", "logit_diff")),
    Bad("a negative seed", PATCH, patch(seed=-1), ("argument 'seed'", "-1")),
    Bad("huge n", "make_prompts", {"task": "induction", "model": TOY, "n": 10**9}, ("argument 'n'", "1000000000")),
    Bad("no prompts asked for", "make_prompts", {"task": "induction", "model": TOY, "n": 0}, ("argument 'n'",)),
    Bad("unknown length of answer", PATCH, patch(response_format="short"), ("response_format", "'short'", "detailed")),
    Bad("as_job that is no yes or no", PATCH, patch(as_job="yes"), ("as_job", "'yes'")),
    Bad("arguments of no kind", "run_technique", {"name": PATCH, "arguments": "all"}, ("'arguments'", "'all'")),
    # places
    Bad("unknown site", PATCH, patch(site="residual"), ("argument 'site'", "'residual'", "resid_pre")),
    Bad("site this model lacks", PATCH, patch(site="mlp_out"), ("mlp_out",)),
    Bad("not a place", "run_with_cache", {"model": TOY, "prompts": [GOOD], "sites": ["blocks.0.residual"]},
        ("blocks.0.residual", "resid_post")),
    Bad("place outside the model", "run_with_cache", {"model": TOY, "prompts": [GOOD], "sites": ["blocks.9.attn_out"]},
        ("9", "0 to 1")),
    Bad("prompt that is not there", "attention_patterns", {"model": TOY, "prompts": [GOOD], "prompt": 5}, ("5",)),
    Bad("answer missing for a lens", LENS, {"model": TOY, "prompts": prompt(answer=None)}, ("answer",)),
    Bad("layer outside the model", PATCH, patch(layers=[7]), ("7", "0 to 1")),
    Bad("head outside the model", PATCH, patch(site="head", heads=["L1H99"]), ("head", "99", "0 to 3")),
    Bad("not a head", PATCH, patch(site="head", heads=["1.2"]), ("'1.2'", "L")),
    Bad("head of a site without heads", PATCH, patch(site="resid_pre", heads=["L1H2"]), ("resid_pre", "head")),
    Bad("position outside the prompt", PATCH, patch(positions=[44]), ("44", "0 to 3")),
    Bad("token text that occurs twice", PATCH, patch(positions=["t3"]), ("'t3'", "[0, 3]")),
    Bad("token text that is not there", PATCH, patch(positions=["t19"]), ("'t19'",)),
    # prompts
    Bad("no prompts", PATCH, patch(prompts=[]), ("no prompts",)),
    Bad("empty prompt", PATCH, patch(prompts=prompt(clean="")), ("prompt 0", "0 tokens")),
    Bad("a prompt that is not one", PATCH, patch(prompts=[{"text": "t1 t2"}]), ("prompts.0", "clean")),
    Bad("a token the model lacks", PATCH, patch(prompts=prompt(clean="t3 t7 hello t3")), ("hello",)),
    Bad("an id outside the vocabulary", "generate", {"model": TOY, "prompt": [1, 2, 999]}, ("999",)),
    Bad("a prompt longer than the context", "generate", {"model": TOY, "prompt": "t1 " * 100}, ("100", "64")),
    Bad("misaligned pair", PATCH, patch(prompts=prompt(corrupted="t5 t7 t1")), ("4", "3", "token")),
    Bad("no corrupted side", PATCH, patch(prompts=prompt(corrupted=None)), ("corrupted",)),
    Bad("answer missing", PATCH, patch(prompts=prompt(answer=None)), ("answer",)),
    Bad("contrast missing for attribution", DLA, {"model": TOY, "prompts": prompt(wrong=None)}, ("wrong",)),
    Bad("answer of several tokens", PATCH, patch(prompts=prompt(answer="t7 t8")), ("t7", "t8")),
    Bad("answer that is also wrong", PATCH, patch(prompts=prompt(wrong="t7")), ("t7",)),
    Bad("mean ablation of one prompt", ABLATE, {"model": TOY, "prompts": [GOOD], "ablation": "mean"},
        ("1 prompt", "at least two")),
    Bad("held-out part of inline prompts", PATCH, patch(split="held_out"), ("held-out", "make_prompts")),
    Bad("text for an unset chat template", "generate", {"model": TOY, "prompt": "t1", "chat": True}, ("template",)),
    # files
    Bad("file outside the workspace", PATCH, patch(prompts="/etc/passwd.jsonl"), ("outside", "--allow")),
    Bad("path that climbs out", PATCH, patch(prompts="../../secret.jsonl"), ("outside", "--allow")),
    Bad("file that is not there", PATCH, patch(prompts="absent.jsonl"), ("absent.jsonl",)),
    Bad("bad line of JSON", PATCH, patch(prompts="bad.jsonl"), ("line 2", "bad.jsonl")),
    Bad("misspelt field of a prompt", PATCH, patch(prompts="misspelt.jsonl"), ("line 1", "anwser")),
    Bad("file without prompts", PATCH, patch(prompts="nothing.jsonl"), ("no prompts",)),
    Bad("damaged prompt set", PATCH, patch(prompts="broken-0000"), ("broken-0000", "Make the prompts again")),
    Bad("damaged run", "get_run", {"run": "r-9001"}, ("r-9001", "cannot be read")),
    Bad("model folder outside the workspace", "load_model", {"name": "/etc"}, ("/etc", "--allow")),
    Bad("pickled weights", "load_model", {"name": "{workspace}/pickled"}, ("safetensors",)),
    Bad("folder without a model", "load_model", {"name": "{workspace}/empty_folder"}, ("empty_folder",)),
    Bad("NaN weights", "load_model", {"name": "{workspace}/nan_weights"}, ("NaN",)),
    Bad("weights cut short", "load_model", {"name": "{workspace}/cut_short"}, ("cut_short",)),
)  # fmt: skip


@pytest.fixture(scope="module")
async def furnished(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """One server for the whole table, in a workspace where things are wrong."""
    workspace = tmp_path_factory.mktemp("wrong")
    furnish(workspace)
    app = App(AppOptions(workspace=workspace, threads=1, prestart=False))
    async with app.running():
        yield app


def test_the_table_has_at_least_forty_kinds() -> None:
    assert len({bad.what for bad in TABLE}) == len(TABLE) >= 40


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
async def test_bad_input_is_an_error_that_says_what_to_do_and_the_server_goes_on(bad: Bad, furnished: App) -> None:
    arguments = {
        k: v.replace("{workspace}", str(furnished.desk.workspace)) if isinstance(v, str) else v
        for k, v in bad.arguments.items()
    }
    before = furnished.session.pid
    async with Client(furnished.server) as client:
        answer = await client.call_tool(bad.tool, arguments)
        after = await client.call_tool("generate", {"model": TOY, "prompt": "t1 t2 t1", "max_new_tokens": 1})
    (block,) = answer.content
    assert isinstance(block, TextContent)
    assert answer.is_error, block.text
    assert "internal error" not in block.text
    assert [words for words in bad.words if words not in block.text] == [], block.text
    assert after.structured_content["text"] == "t2"
    assert before in (None, furnished.session.pid), "the worker was replaced"
    assert furnished.desk.store.ids() == ("r-9001",), "a failed call stored a run"
