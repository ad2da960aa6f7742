"""The documents name only what exists, what they show runs, and what is made from code is as the code makes it.

Each check is proven by a fault put in on purpose.
"""

from __future__ import annotations

import json
import linecache
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from anatomist.__main__ import command_line
from anatomist.catalog import CATALOG, parse_arguments
from anatomist.errors import BadArguments, UnknownName
from anatomist.lint import check_source

from tests import docs_tables as made
from tests.docs_blocks import (
    DOCUMENTS,
    REFERENCES,
    ROOT,
    Block,
    blocks,
    broken_links,
    not_listed,
    unknown_files,
    unknown_names,
    unknown_tools,
)

TECHNIQUES = set(CATALOG.names("technique"))
SERVER_TOOLS = {"run_technique", "get_job", "cancel_job"}
TOOLS = set(CATALOG.names()) | SERVER_TOOLS
GUIDES = sorted(REFERENCES.glob("*.md"))
LONG = 60  # lines from which a page lists its contents


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(document: Path) -> None:
    assert not broken_links(document, document.read_text())


def test_a_broken_link_is_found() -> None:
    assert broken_links(ROOT / "SKILL.md", "see [this](references/nowhere.md)") == ["references/nowhere.md"]


def test_a_link_to_a_heading_that_is_not_there_is_found() -> None:
    page = "[here](#the-model) and [not](#the-modle)\n\n## The model\n"
    assert broken_links(ROOT / "SKILL.md", page) == ["#the-modle"]
    there = "[pitfalls](references/pitfalls.md#numerics) [nothing](references/pitfalls.md#numerology)"
    assert broken_links(ROOT / "SKILL.md", there) == ["references/pitfalls.md#numerology"]


@pytest.mark.parametrize("document", GUIDES, ids=named)
def test_a_long_page_lists_its_sections(document: Path) -> None:
    text = document.read_text()
    assert len(text.splitlines()) < LONG or not not_listed(text)


def test_a_section_that_is_not_listed_is_found() -> None:
    page = "Contents: [one](#one) ·\n[two](#two)\n\n## One\n## Two\n## Three\n"
    assert not_listed(page) == ["Three"]


def test_skill_names_only_tools_that_exist() -> None:
    text = (ROOT / "SKILL.md").read_text()
    table = text.split("<!-- tools -->")[1].split("<!-- /tools -->")[0]
    assert not unknown_tools(table, TOOLS)


def test_an_unknown_tool_is_found() -> None:
    assert unknown_tools("call `logit_lens` then `logit_lense`", {"logit_lens"}) == ["logit_lense"]


@pytest.mark.parametrize("document", [ROOT / "SKILL.md", *GUIDES], ids=named)
def test_every_name_and_file_that_is_spoken_of_exists(document: Path) -> None:
    text = document.read_text()
    assert not unknown_names(text)
    assert not unknown_files(text)


def test_an_unknown_name_or_file_is_found() -> None:
    assert unknown_names("`patch_activations` and `names_filter`, `path_activations(x)`") == ["path_activations"]
    spoken = "`config.toml`, `figure.json`, `tools/anatomist/host.py`, `notes/diary.md`"
    assert unknown_files(spoken) == ["notes/diary.md"]


def test_skill_and_map_name_every_technique() -> None:
    for page in (made.SKILL, made.MAP):
        assert set(made.asked(page.read_text())) == TECHNIQUES, f"{page.name}: a row for each, with it alone"


@pytest.mark.parametrize("page", made.MADE, ids=named)
def test_what_is_made_from_code_is_what_the_code_makes(page: Path) -> None:
    text = page.read_text()
    fresh = made.MADE[page](text)
    assert not made.stale(text, fresh), "run: python -m tests.docs_tables"
    assert text == fresh


def test_a_stale_question_is_found() -> None:
    text = made.SKILL.read_text()
    other = text.replace(made.question("logit_lens"), "What does the model think?")
    assert made.stale(other, made.with_questions(other)) == ["| What does the model think? | `logit_lens` |"]
    linked = "| old? | [ablate](techniques/ablate.md) | a sweep | causal |"
    assert made.stale(linked, made.with_questions(linked)) == [linked]


def test_a_stale_table_is_found() -> None:
    text = made.COMPUTE.read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| gpt2 | 124,439,808")]
    other = text.replace(row, row.replace("124,439,808", "117,000,000"))
    assert made.stale(other, made.with_tables(other)) == [row.replace("124,439,808", "117,000,000")]
    with pytest.raises(ValueError, match="markers <!-- work"):
        made.with_tables(text.replace("<!-- work -->", ""))


def test_every_pitfall_has_its_evidence() -> None:
    assert not without_evidence((REFERENCES / "pitfalls.md").read_text())


def test_a_pitfall_without_evidence_is_found() -> None:
    assert without_evidence("| symptom | cause | check | evidence |\n|---|---|---|---|\n| a | b | c | |") == ["a"]


def without_evidence(text: str) -> list[str]:
    """Symptoms whose row has an empty cell."""
    rows = [[c.strip() for c in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return [cells[0] for cells in rows if len(cells) != 4 or not all(c.strip("| ") for c in cells)]


def test_vocabulary_is_in_order_and_says_nothing_twice() -> None:
    text = (REFERENCES / "vocabulary.md").read_text()
    sections = [re.findall(r"^- \*\*(.+?)\*\*: ", part, re.MULTILINE) for part in text.split("\n## ")[1:]]
    assert all(sections)
    for terms in sections:
        assert terms == sorted(terms, key=str.casefold)
    terms = [t for section in sections for t in section]
    assert len(terms) == len(set(terms)) > 100


def test_skill_is_short_and_its_frontmatter_is_the_format() -> None:
    text = (ROOT / "SKILL.md").read_text()
    assert len(text.splitlines()) < 200
    assert len(text) / 3 < 5000  # prose has about four characters a token, tables of names nearer three
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
    if "arguments" in data:
        parse_arguments(CATALOG.find(data["name"]), data["arguments"])
    elif block.document.parent.name == "techniques":
        parse_arguments(CATALOG.find(block.document.stem), data)


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_shell_lines_are_commands_that_exist(block: Block) -> None:
    for words in shell_lines(block.text):
        check_line(words)


def shell_lines(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def check_line(words: list[str]) -> None:
    """
    Raises:
        SystemExit: no such command. UnknownName, BadArguments: no such tool, or not its arguments.
    """
    if words[0] == "anatomist" and words[1:2] == ["run"]:
        parse_arguments(CATALOG.find(words[2]), json.loads(words[3]))
    elif words[0] == "make":
        assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "anatomist":
        command_line().parse_args(words[1:])  # ends the process where there is no such command


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("anatomist dissect", SystemExit),
        ("anatomist run logit_lense '{}'", UnknownName),
        ("""anatomist run generate '{"modle": "toy-induction"}'""", BadArguments),
        ("make coffee", AssertionError),
    ],
)
def test_a_shell_line_that_cannot_run_is_found(line: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        check_line(next(shell_lines(line)))


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(block)


def test_a_block_that_does_not_run_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport anatomist\nanatomist.nothing()\n```\n")
    (block,) = blocks("python", [page])
    with pytest.raises(AttributeError):
        run(block._replace(document=ROOT / "page.md"))


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_use_no_call_that_is_gone_or_silently_wrong(block: Block) -> None:
    assert not check_source(block.text)


def test_a_block_with_a_dead_call_is_found() -> None:
    (found,) = check_source("from transformer_lens import HookedTransformer\n")
    assert found.rule == "hooked-transformer"


def run(block: Block) -> Mapping[str, object]:
    """Runs it as a file of its own, whose source nnsight can read."""
    name = f"<{block}>"
    linecache.cache[name] = (len(block.text), None, block.text.splitlines(keepends=True), name)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block.text, name, "exec"), names)
    return names
