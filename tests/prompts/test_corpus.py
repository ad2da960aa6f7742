"""Running text: where it comes from, how it is split, and rows of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from anatomist.errors import BadArguments, BadPrompts, CorruptFile, OutsideRoots
from anatomist.model.loading import load_model
from anatomist.prompts.corpus import Corpus, corpus_of, rows
from anatomist.roots import Roots


@pytest.mark.hand_worked
def test_rows_are_the_text_cut_every_few_tokens() -> None:
    model = load_model("toy-induction")
    corpus = Corpus("numbers", ("t1 t2 t3 t4", "t5 t6 t7"))
    tokens = rows(corpus, model, width=3, n_tokens=100)
    assert tokens.ids == ((1, 2, 3), (4, 5, 6))  # the seventh token fills no row
    assert rows(corpus, model, width=3, n_tokens=3).ids == ((1, 2, 3),)


@pytest.mark.positive_control
def test_a_split_shares_no_document_and_loses_none() -> None:
    corpus = Corpus("letters", tuple("abcdefghij"))
    held, rest = corpus.split(0.3, seed=1)
    assert len(held.documents) == 3
    assert set(held.documents) | set(rest.documents) == set("abcdefghij")
    assert not set(held.documents) & set(rest.documents)
    assert corpus.split(0.3, seed=1) == (held, rest) != corpus.split(0.3, seed=2)


def test_the_offline_text_is_long_enough_to_study(tmp_path: Path) -> None:
    roots = Roots([tmp_path])
    assert corpus_of("python", roots).characters > 400_000
    assert len(corpus_of("python-source", roots).documents) > 50


def test_a_folder_gives_its_text_files_and_the_lines_of_its_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    (tmp_path / "c.png").write_bytes(b"\xff\xfe")
    assert corpus_of(str(tmp_path), Roots([tmp_path])).documents == ("one\n\ntwo", "three", "four")


def test_a_long_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("\n\n".join(["x" * 1500] * 4))
    documents = corpus_of(str(tmp_path / "long.txt"), Roots([tmp_path])).documents
    assert [len(d) for d in documents] == [3002, 3002]


@pytest.mark.bad_input
def test_text_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    roots, model = Roots([tmp_path]), load_model("toy-induction")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.jsonl").write_text('{"no": 1}')
    with pytest.raises(CorruptFile, match="not UTF-8"):
        corpus_of(str(tmp_path / "bytes.txt"), roots)
    with pytest.raises(CorruptFile, match="line 1"):
        corpus_of(str(tmp_path / "bad.jsonl"), roots)
    with pytest.raises(OutsideRoots):
        corpus_of("/etc/hostname", roots)
    with pytest.raises(BadPrompts, match="is empty"):
        corpus_of(["", " "], roots)
    with pytest.raises(BadPrompts, match="less than a row of 9"):
        rows(Corpus("short", ("t1 t2",)), model, width=9, n_tokens=9)
    with pytest.raises(BadArguments, match="give at least 2"):
        rows(Corpus("short", ("t1 t2",)), model, width=1, n_tokens=9)
    with pytest.raises(BadPrompts, match="at least two"):
        Corpus("one", ("t1",)).split(0.5, 0)
    with pytest.raises(BadArguments, match="between 0 and 1"):
        Corpus("two", ("t1", "t2")).split(1.5, 0)
