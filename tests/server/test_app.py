"""The server in memory, through clients of both eras."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import anyio
import pytest
from anatomist_mcp.app import App, AppOptions
from anatomist_mcp.core_tools import CORE
from anatomist_mcp.prompts import PHASES
from mcp import Client, MCPError
from mcp.types import (
    ImageContent,
    PromptReference,
    ResourceLink,
    ResourceTemplateReference,
    TextContent,
    TextResourceContents,
)

from .conftest import ERAS, OddOptions

pytestmark = pytest.mark.anyio

LISTED = 30  # tools at most
LISTED_BYTES = 30_000
TOY = [
    {"clean": "t3 t7 t1 t3", "corrupted": "t5 t7 t1 t3", "answer": "t7", "wrong": "t1"},
    {"clean": "t2 t9 t4 t2", "corrupted": "t6 t9 t4 t2", "answer": "t9", "wrong": "t4"},
]
STUCK = {"model": "toy-induction", "prompt": "t1"}


def told(result) -> str:
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


async def test_the_default_list_stays_within_thirty_tools_and_thirty_kilobytes(client: Client) -> None:
    tools = (await client.list_tools()).tools
    size = sum(len(t.model_dump_json(by_alias=True, exclude_none=True)) + 1 for t in tools)
    assert len(tools) <= LISTED
    assert size <= LISTED_BYTES, f"{size} bytes"
    assert [t.name for t in tools] == list(CORE)


async def test_every_listed_tool_says_what_it_does_and_describes_every_argument(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        assert tool.title
        assert tool.description
        assert tool.annotations
        assert tool.annotations.read_only_hint is not None
        assert tool.annotations.destructive_hint is not None
        assert tool.input_schema["additionalProperties"] is False
        for name, schema in tool.input_schema["properties"].items():
            assert schema.get("description"), f"{tool.name}: argument {name} has no description"
        assert tool.output_schema
        assert tool.output_schema["required"] == ["summary"]


def test_all_lists_the_whole_catalog_and_names_add_to_the_core(tmp_path) -> None:
    whole = App(AppOptions(workspace=tmp_path, tools="all"))
    assert set(whole.listed_names) == set(whole.catalog.names())
    assert App(AppOptions(workspace=tmp_path, tools="list_runs, ablate")).listed_names == CORE


@pytest.mark.bad_input
def test_a_wrong_name_of_tools_is_refused_at_the_start(tmp_path) -> None:
    with pytest.raises(Exception, match=r"unknown tool 'ablat'\. Did you mean 'ablate'"):
        _ = App(AppOptions(workspace=tmp_path, tools="ablat")).listed_names


def test_the_server_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, tempfile, pathlib; from anatomist_mcp.app import App, AppOptions\n"
        "app = App(AppOptions(workspace=pathlib.Path(tempfile.mkdtemp()), tools='all'))\n"
        "[app.tool(name).listed for name in app.listed_names]\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'altair') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_the_server_names_itself_and_says_where_to_begin(client: Client) -> None:
    assert client.protocol_version in ("2026-07-28", "2025-11-25")
    assert client.server_info is not None
    assert client.server_info.name == "anatomist"
    assert "check_environment" in (client.instructions or "")


async def test_a_technique_gives_text_picture_link_and_its_own_type(client: Client, app: App) -> None:
    answer = await client.call_tool("patch_activations", {"model": "toy-induction", "prompts": TOY})
    assert not answer.is_error, told(answer)
    assert [type(b) for b in answer.content] == [TextContent, ImageContent, ResourceLink]
    result = app.catalog.find("patch_activations").result.model_validate(answer.structured_content)
    about = answer.structured_content["about"]
    assert about["run"] in told(answer)
    assert result.model_dump()["summary"] in told(answer)
    stored = await client.read_resource(f"anatomist://runs/{about['run']}")
    content = stored.contents[0]
    assert isinstance(content, TextResourceContents)
    assert json.loads(content.text)["result"]["about"]["run"] == about["run"]


async def test_run_technique_is_the_same_as_the_technique_itself(modern: Client) -> None:
    arguments = {"model": "toy-induction", "prompts": TOY}
    itself = await modern.call_tool("patch_activations", arguments)
    by_name = await modern.call_tool("run_technique", {"name": "patch_activations", "arguments": arguments})
    for answer in (itself, by_name):
        assert not answer.is_error, told(answer)
        for varying in ("about", "cost"):
            answer.structured_content.pop(varying)
    assert itself.structured_content == by_name.structured_content


async def test_a_list_sent_as_json_text_is_understood(modern: Client) -> None:
    answer = await modern.call_tool("patch_activations", {"model": "toy-induction", "prompts": json.dumps(TOY)})
    assert not answer.is_error, told(answer)


async def test_a_job_gives_a_handle_at_once_and_its_result_later(client: Client) -> None:
    arguments = {"model": "toy-induction", "prompts": TOY, "as_job": True}
    started = await client.call_tool("patch_activations", arguments)
    assert not started.is_error, told(started)
    handle = started.structured_content["job"]
    ended = await client.call_tool("get_job", {"job": handle, "wait_seconds": 50})
    assert ended.structured_content["state"] == "done", told(ended)
    assert ended.structured_content["result"]["about"]["run"] == ended.structured_content["run"]
    assert any(isinstance(b, ImageContent) for b in ended.content)


async def test_a_job_outlives_the_client_that_asked_for_it(app: App) -> None:
    async with Client(app.server) as first:
        arguments = {"model": "toy-induction", "prompts": TOY, "as_job": True}
        handle = (await first.call_tool("patch_activations", arguments)).structured_content["job"]
    async with Client(app.server) as second:
        ended = await second.call_tool("get_job", {"job": handle, "wait_seconds": 50})
        assert ended.structured_content["state"] == "done"
        listed = await second.call_tool("get_job", {})
        assert any(line.startswith(handle) for line in listed.structured_content["jobs"])


async def test_progress_grows_and_ends_with_the_answer(client: Client) -> None:
    heard: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    await client.call_tool("load_model", {"name": "toy-induction-soft"}, progress_callback=hear)
    await anyio.wait_all_tasks_blocked()
    assert heard
    assert heard == sorted(set(heard))


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_cancels_frees_the_worker_within_two_seconds(tmp_path: Path, era: str) -> None:
    app = App(AppOptions(workspace=tmp_path, prestart=False))
    app.session.options = OddOptions(tmp_path)
    begun = anyio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        if message == "stuck":
            begun.set()

    async with app.running(), Client(app.server, mode=era) as client, anyio.create_task_group() as group:
        group.start_soon(partial(client.call_tool, "generate", STUCK, progress_callback=hear))
        await begun.wait()
        stuck = app.session.pid
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(2):
            async with app.session._turn:
                assert app.session.pid != stuck


async def test_a_cancelled_job_frees_the_worker_within_two_seconds(tmp_path: Path) -> None:
    app = App(AppOptions(workspace=tmp_path, prestart=False))
    app.session.options = OddOptions(tmp_path)
    async with app.running(), Client(app.server) as client:
        job = (await client.call_tool("generate", {**STUCK, "as_job": True})).structured_content["job"]
        while app.jobs.find(job).doing != "stuck":
            await client.call_tool("get_job", {"job": job, "wait_seconds": 0.01})
        with anyio.fail_after(2):
            answer = await client.call_tool("cancel_job", {"job": job})
        assert answer.structured_content["state"] == "cancelled"


async def test_quick_tools_answer_while_the_worker_is_busy(modern: Client, app: App) -> None:
    async with app.session._turn, anyio.create_task_group() as group:
        group.start_soon(modern.call_tool, "generate", {"model": "toy-induction", "prompt": "t1 t2 t1"})
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            assert not (await modern.call_tool("list_models", {})).is_error
        group.cancel_scope.cancel()


async def test_an_unexpected_exception_gives_its_type_and_a_log_id_and_nothing_else(
    modern: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /home/someone/weights.bin")

    monkeypatch.setattr(import_module("anatomist.operations.list_models"), "run", broken)
    answer = await modern.call_tool("list_models", {})
    assert answer.is_error
    assert "RuntimeError" in told(answer)
    assert "secret" not in told(answer)
    log_id = told(answer).split("log id ")[1][:8]
    assert log_id in caplog.text
    assert "secret path" in caplog.text


async def test_references_and_the_skill_can_be_read(client: Client) -> None:
    listed = {r.uri for r in (await client.list_resources()).resources}
    assert "anatomist://skill" in listed
    assert any(uri.startswith("anatomist://references/") for uri in listed)
    for uri in sorted(listed)[:3]:
        assert (await client.read_resource(uri)).contents
    templates = {t.uri_template for t in (await client.list_resource_templates()).resource_templates}
    assert "anatomist://runs/{run}/arrays/{array}" in templates


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("anatomist://runs/r-9999", "unknown run 'r-9999'"),
        ("anatomist://runs/../../etc/passwd", "unknown resource"),
        ("anatomist://runs/..%2F..%2Fetc", "unknown run"),
        ("anatomist://references/nothing", "unknown reference 'nothing'"),
        ("file:///etc/passwd", "unknown resource"),
    ],
)
@pytest.mark.bad_input
async def test_what_is_not_there_is_an_error_that_says_so(modern: Client, uri: str, words: str) -> None:
    with pytest.raises(MCPError, match=words):
        await modern.read_resource(uri)


async def test_the_five_phases_are_prompts_that_take_the_users_words(client: Client) -> None:
    listed = (await client.list_prompts()).prompts
    assert [p.name for p in listed] == list(PHASES)
    filled = await client.get_prompt("validate", {"claim": "L5H1 moves the name", "prompts": "ioi-12ab"})
    content = filled.messages[0].content
    assert isinstance(content, TextContent)
    assert "L5H1 moves the name" in content.text
    assert "smollm2-135m" in content.text


def test_the_prompts_name_only_tools_that_are_listed() -> None:
    named = {w for phase in PHASES.values() for w in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", phase.text)}
    assert named - {"as_job", "resid_pre", "held_out", "estimate_compute"} <= set(CORE)


@pytest.mark.bad_input
async def test_a_prompt_without_its_argument_says_which_is_missing(modern: Client) -> None:
    with pytest.raises(MCPError, match="needs claim, prompts"):
        await modern.get_prompt("validate", {})


async def test_arguments_of_prompts_and_addresses_are_completed(client: Client) -> None:
    phase = PromptReference(type="ref/prompt", name="set_up")
    models = (await client.complete(phase, {"name": "model", "value": "smol"})).completion.values
    assert models == ["smollm2-135m"]
    page = ResourceTemplateReference(type="ref/resource", uri="anatomist://references/{+name}")
    names = (await client.complete(page, {"name": "name", "value": "techniques/"})).completion.values
    assert all(n.startswith("techniques/") for n in names)
