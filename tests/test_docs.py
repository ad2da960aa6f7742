"""The documents name only what exists, and what they show runs."""

from __future__ import annotations

import json
import linecache
import re
import shlex
from pathlib import Path

import pytest
from anatomist.__main__ import command_line
from anatomist.catalog import CATALOG, parse_arguments

from tests.docs_blocks import DOCUMENTS, ROOT, Block, blocks, broken_links, unknown_tools

TECHNIQUES = set(CATALOG.names("technique"))
SERVER_TOOLS = {"run_technique", "get_job", "cancel_job"}
TOOLS = set(CATALOG.names()) | SERVER_TOOLS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    assert not broken_links(document, document.read_text())


def test_a_broken_link_is_found() -> None:
    assert broken_links(ROOT / "SKILL.md", "see [this](references/nowhere.md)") == ["references/nowhere.md"]


def test_skill_names_only_tools_that_exist() -> None:
    text = (ROOT / "SKILL.md").read_text()
    table = text.split("<!-- tools -->")[1].split("<!-- /tools -->")[0]
    assert not unknown_tools(table, TOOLS)


def test_an_unknown_tool_is_found() -> None:
    assert unknown_tools("call `logit_lens` then `logit_lense`", {"logit_lens"}) == ["logit_lense"]


def test_skill_names_every_technique() -> None:
    text = (ROOT / "SKILL.md").read_text()
    assert not [name for name in sorted(TECHNIQUES) if f"`{name}`" not in text]


def test_skill_is_short_and_its_frontmatter_is_the_format() -> None:
    text = (ROOT / "SKILL.md").read_text()
    assert len(text.splitlines()) < 200
    assert len(text) / 4 < 5000  # about four characters a token
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert front
    keys = set(re.findall(r"^([a-z-]+):", front[1], re.MULTILINE))
    assert keys <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert "name: anatomist" in front[1]
    description = re.search(r'^description: "(.*)"$', front[1], re.MULTILINE)
    assert description
    assert len(description[1]) <= 1024


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_arguments_fit_the_schema(block: Block) -> None:
    data = json.loads(block.text)
    if block.document.parent.name == "techniques":
        name = data.get("name", block.document.stem)
        parse_arguments(CATALOG.find(name), data.get("arguments", data))


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_shell_lines_are_commands_that_exist(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "anatomist" and words[1:2] == ["run"]:
            parse_arguments(CATALOG.find(words[2]), json.loads(words[3]))
        elif words and words[0] == "make":
            assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words and words[0] == "anatomist":
            command_line().parse_args(words[1:])  # ends the process where there is no such command


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"<{block}>"
    linecache.cache[name] = (len(block.text), None, block.text.splitlines(keepends=True), name)
    exec(compile(block.text, name, "exec"), {"__name__": "__main__"})


def test_a_block_that_does_not_run_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport anatomist\nanatomist.nothing()\n```\n")
    (block,) = blocks("python", [page])
    with pytest.raises(AttributeError):
        exec(compile(block.text, "page", "exec"), {})
