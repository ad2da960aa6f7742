"""Prompt sets that a user gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from anatomist.errors import BadPrompts, CorruptFile, OutsideRoots
from anatomist.prompts.given import inline_set, load_jsonl
from anatomist.prompts.prompt_set import Prompt
from anatomist.roots import Roots


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = written(tmp_path, '{"clean": "a b", "answer": " c"}\n\n{"clean": [1, 2], "answer": 3, "wrong": [4, 5]}\n')
    found = load_jsonl(path, Roots([tmp_path]))
    assert found.split == "inline"
    assert found.prompts == (
        Prompt(clean="a b", answer=" c"), Prompt(clean=(1, 2), answer=3, wrong=(4, 5)),
    )  # fmt: skip


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, '{"clean": "a\u2028b\x0bc", "answer": " c"}\n'.replace("\x0b", "\\u000b"))
    assert load_jsonl(path, Roots([tmp_path])).prompts[0].clean == "a\u2028b\x0bc"


def test_the_same_prompts_have_the_same_handle() -> None:
    assert inline_set([{"clean": "a"}]).handle == inline_set([Prompt(clean="a")]).handle
    assert inline_set([{"clean": "a"}]).handle != inline_set([{"clean": "b"}]).handle


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"clean": "a"}\n{"clean": "b"', "line 2 of .*mine.jsonl' is not JSON"),
        ('{"clean": "a"}\n\n{"clear": "b"}', "line 3 of .*is no prompt: clean: Field required; clear: Extra inputs"),
        ('["a"]', "line 1 of .* is no prompt"),
        ("\n \n", "holds no prompts"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadPrompts, match=message):
        load_jsonl(written(tmp_path, text), Roots([tmp_path]))


@pytest.mark.bad_input
def test_files_that_are_no_text_or_lie_outside_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="not a UTF-8 text file"):
        load_jsonl(inside / "x.jsonl", Roots([inside]))
    with pytest.raises(CorruptFile, match="not a UTF-8 text file"):
        load_jsonl(inside, Roots([inside]))
    with pytest.raises(OutsideRoots):
        load_jsonl(written(tmp_path, '{"clean": "a"}'), Roots([inside]))


@pytest.mark.bad_input
def test_an_inline_prompt_that_is_none_is_named() -> None:
    with pytest.raises(BadPrompts, match="there are no prompts"):
        inline_set([])
    with pytest.raises(BadPrompts, match="prompt 1 is no prompt: clean"):
        inline_set([{"clean": "a"}, {"clean": 3}])
