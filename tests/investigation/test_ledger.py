"""The record on disk: whole lines only, whoever is killed and however many write."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from anatomist.errors import BadArguments, CorruptFile, UnknownName
from anatomist.investigation.ledger import Ledger, now
from anatomist.investigation.record import Decision

WRITER = """
import sys
from pathlib import Path
from anatomist.investigation.ledger import Ledger, now
from anatomist.investigation.record import Decision
ledger, who, count = Ledger(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
for i in range(count):
    ledger.append("i-0001", lambda _: Decision(at=now(), text=f"{who}-{i}", why="because " * 200))
    print(i, flush=True)
"""


def ledger_with_one(workspace: Path) -> Ledger:
    ledger = Ledger(workspace)
    ledger.open("Which heads?", "toy-induction", "induction")
    return ledger


def decide(ledger: Ledger, text: str) -> None:
    ledger.append("i-0001", lambda _: Decision(at=now(), text=text, why="a reason"))


def writer(workspace: Path, who: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(workspace), who, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def events_file(workspace: Path) -> Path:
    return workspace / "investigations" / "i-0001" / "events.jsonl"


def test_an_investigation_is_there_when_the_workspace_is_opened_again(tmp_path: Path) -> None:
    decide(ledger_with_one(tmp_path), "use resampling")
    state = Ledger(tmp_path).get("i-0001")
    assert (state.opened.question, [d.text for d in state.decisions]) == ("Which heads?", ["use resampling"])


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_an_unfinished_last_line_is_passed_over_and_then_written_over(tmp_path: Path, cut: int) -> None:
    ledger = ledger_with_one(tmp_path)
    decide(ledger, "first")
    decide(ledger, "torn")
    path = events_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [d.text for d in ledger.get("i-0001").decisions] == ["first"]
    decide(ledger, "second")
    assert [d.text for d in Ledger(tmp_path).get("i-0001").decisions] == ["first", "second"]
    assert len(path.read_bytes().splitlines()) == 3


def test_ten_writers_killed_at_random_moments_leave_a_whole_record(tmp_path: Path) -> None:
    """Every line whose writing was acknowledged is there, in order, and nothing else but at most one more."""
    ledger, rng = ledger_with_one(tmp_path), random.Random(0)
    writers = [writer(tmp_path, f"w{k}", 10_000) for k in range(10)]
    said: dict[str, list[str]] = {}
    for k, process in enumerate(writers):
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(rng.randint(1, 6))]
        process.kill()
        rest, _ = process.communicate()
        said[f"w{k}"] = lines + rest.split()
    found: dict[str, list[str]] = {}
    for decision in ledger.get("i-0001").decisions:
        who, number = decision.text.split("-")
        found.setdefault(who, []).append(number)
    for who, numbers in said.items():
        assert found[who][: len(numbers)] == numbers
        assert len(found[who]) <= len(numbers) + 1
    decide(ledger, "after")
    assert Ledger(tmp_path).get("i-0001").decisions[-1].text == "after"


def test_several_writers_at_once_lose_no_line(tmp_path: Path) -> None:
    ledger = ledger_with_one(tmp_path)
    writers = [writer(tmp_path, f"w{k}", 10) for k in range(3)]
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    texts = [d.text for d in ledger.get("i-0001").decisions]
    assert sorted(texts) == sorted(f"w{k}-{i}" for k in range(3) for i in range(10))
    for k in range(3):
        mine = [t for t in texts if t.startswith(f"w{k}")]
        assert mine == [f"w{k}-{i}" for i in range(10)]


def test_the_page_for_people_says_what_the_lines_say(tmp_path: Path) -> None:
    ledger = ledger_with_one(tmp_path)
    decide(ledger, "drop | the fourth template")
    page = (tmp_path / "investigations" / "i-0001" / "README.md").read_text()
    assert page.startswith("# Which heads?\n")
    assert "## Decisions" in page
    assert "drop | the fourth template Why: a reason" in page


@pytest.mark.bad_input
def test_a_damaged_line_is_named_and_not_skipped(tmp_path: Path) -> None:
    ledger = ledger_with_one(tmp_path)
    decide(ledger, "first")
    path = events_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b'{"event": "odd"}\n' + lines[1])
    with pytest.raises(CorruptFile, match="line 1 is no event"):
        ledger.get("i-0001")


@pytest.mark.bad_input
def test_an_unknown_id_and_an_empty_question_are_refused(tmp_path: Path) -> None:
    ledger = ledger_with_one(tmp_path)
    with pytest.raises(UnknownName, match="i-0001"):
        ledger.get("i-0002")
    with pytest.raises(BadArguments, match="question is empty"):
        ledger.open("  ", "toy-induction", None)
