"""Grades transcripts without a language model: the last answer of each against the task's, and no partial marks.

    python -m evals.grade TRANSCRIPTS [--tasks FOLDER]          one <task id>.jsonl a task
    python -m evals.grade --triggers FILE [--queries FILE]      lines {"id": ..., "loaded": true or false}

Exit status: 0 if everything is right, 1 if anything is not, 2 if it was called wrongly.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
ROLES = ("system", "user", "assistant", "tool")
FENCE = re.compile(r"^[ \t]*```json\s*\n(.*?)^[ \t]*```\s*$", re.DOTALL | re.MULTILINE)
Verdict = Literal["right", "wrong", "missing", "malformed"]


class Malformed(ValueError):
    """A transcript, or an answer in one, that cannot be read."""


@dataclass(frozen=True)
class Grade:
    """What became of one task."""

    task: str
    verdict: Verdict
    said: str = ""  # the answer, or what was wrong with the transcript
    calls: int = 0  # tool calls on the way; not graded
    recited: bool = False  # wrong in the way that reciting is


def read_transcript(text: str) -> list[dict[str, Any]]:
    """The messages of a transcript.

    Raises:
        Malformed: not JSON lines, or a line that is no message; says which.
    """
    messages = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"line {number} is not JSON") from error
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Malformed(f"line {number} needs a role: {', '.join(ROLES)}")
        if not isinstance(message.get("text", ""), str):
            raise Malformed(f"line {number}: text is not a string")
        if not isinstance(message.get("tool_calls", []), list):
            raise Malformed(f"line {number}: tool_calls is not a list")
        messages.append(message)
    return messages


def final_answer(messages: Sequence[Mapping[str, Any]]) -> object:
    """What the last fenced json block of the last assistant message with text says under "answer".

    Raises:
        Malformed: there is no such message, block or key.
    """
    spoken = [m["text"] for m in messages if m["role"] == "assistant" and m.get("text", "").strip()]
    if not spoken:
        raise Malformed("no text by the assistant")
    blocks = FENCE.findall(spoken[-1])
    if not blocks:
        raise Malformed("the last assistant message has no fenced json block")
    try:
        found = json.loads(blocks[-1])
    except (ValueError, RecursionError) as error:
        raise Malformed("the answer block is not JSON") from error
    if not isinstance(found, dict) or "answer" not in found:
        raise Malformed('the answer block has no "answer"')
    return found["answer"]


def is_right(answer: object, expected: Mapping[str, Any]) -> bool:
    """Whether an answer is the expected one.

    set: the same names, none twice; ordering: the same list; number: within the tolerance, which is part of it; text:
    the same word. Blanks around names do not count.
    """
    value = expected["value"]
    match expected["kind"]:
        case "number":
            return _is_number(answer) and abs(answer - value) <= expected["tolerance"] + 1e-9  # type: ignore[operator]
        case "text":
            return isinstance(answer, str) and answer.strip() == value
        case "ordering":
            return _names(answer) == value
        case "set":
            names = _names(answer)
            return names is not None and sorted(names) == sorted(value)
        case kind:
            raise ValueError(f"{kind!r} is no kind of answer: set, number, ordering or text.")


def _is_number(answer: object) -> bool:
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return False
    return abs(answer) <= sys.float_info.max and not math.isnan(answer)


def _names(answer: object) -> list[str] | None:
    if not isinstance(answer, list) or not all(isinstance(name, str) for name in answer):
        return None
    return [name.strip() for name in answer]


def grade(task: Mapping[str, Any], transcript: str | None) -> Grade:
    """Grade one task; None where there is no transcript."""
    if transcript is None:
        return Grade(task["id"], "missing")
    try:
        messages = read_transcript(transcript)
        answer = final_answer(messages)
    except Malformed as fault:
        return Grade(task["id"], "malformed", str(fault))
    calls = sum(len(message.get("tool_calls", [])) for message in messages if message["role"] == "assistant")
    said = json.dumps(answer, ensure_ascii=False)
    if is_right(answer, task["answer"]):
        return Grade(task["id"], "right", said, calls)
    recited = is_right(answer, {**task["answer"], "value": task["recited"]["value"]})
    return Grade(task["id"], "wrong", said, calls, recited)


def grade_all(tasks: Path, transcripts: Path) -> list[Grade]:
    """Every task of a folder."""
    found = [json.loads(file.read_text("utf-8")) for file in _files(tasks)]
    return [grade(task, _text(transcripts / f"{task['id']}.jsonl")) for task in found]


def _files(tasks: Path) -> list[Path]:
    return sorted(tasks.glob("task-*.json"))


def _text(file: Path) -> str | None:
    return file.read_text("utf-8", errors="replace") if file.is_file() else None


def grade_triggers(queries: Sequence[Mapping[str, Any]], told: str) -> list[Grade]:
    """Whether the skill was loaded where it should be, and only there."""
    loaded: dict[str, object] = {}
    for line in filter(str.strip, told.split("\n")):
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict):
            loaded[str(said.get("id"))] = said.get("loaded")
    return [_trigger(query, loaded) for query in queries]


def _trigger(query: Mapping[str, Any], loaded: Mapping[str, object]) -> Grade:
    if query["id"] not in loaded:
        return Grade(query["id"], "missing")
    said = loaded[query["id"]]
    if not isinstance(said, bool):
        return Grade(query["id"], "malformed", "loaded is not true or false")
    return Grade(query["id"], "right" if said == query["should_load"] else "wrong", f"loaded: {str(said).lower()}")


def table(grades: Sequence[Grade]) -> str:
    """One line a task, and the share that is right."""
    lines = [f"{'task':<12}{'verdict':<11}{'calls':>5}  answer"]
    for g in grades:
        note = "  (what reciting answers)" if g.recited else ""
        lines.append(f"{g.task:<12}{g.verdict:<11}{g.calls:>5}  {g.said[:70]}{note}")
    right = sum(g.verdict == "right" for g in grades)
    return "\n".join([*lines, f"{right} of {len(grades)} right ({right / len(grades):.0%})"])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evals.grade", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("transcripts", type=Path, nargs="?", help="folder of <task id>.jsonl")
    parser.add_argument("--tasks", type=Path, default=HERE / "tasks", help="folder of the tasks with their answers")
    parser.add_argument("--triggers", type=Path, help="file that says for which queries the skill was loaded")
    parser.add_argument("--queries", type=Path, default=HERE / "triggers.json", help="the trigger queries")
    options = parser.parse_args(words)
    if (options.transcripts is None) == (options.triggers is None):
        parser.error("give either a folder of transcripts or --triggers FILE")
    if options.triggers is not None:
        if not options.triggers.is_file():
            parser.error(f"{options.triggers} is no file")
        grades = grade_triggers(json.loads(options.queries.read_text("utf-8")), options.triggers.read_text("utf-8"))
    else:
        for folder in (options.transcripts, options.tasks):
            if not folder.is_dir():
                parser.error(f"{folder} is no folder")
        if not _files(options.tasks):
            parser.error(f"{options.tasks} holds no task-*.json; python -m evals.prepare writes them")
        grades = grade_all(options.tasks, options.transcripts)
    sys.stdout.write(table(grades) + "\n")
    return 0 if all(g.verdict == "right" for g in grades) else 1


if __name__ == "__main__":
    sys.exit(main())
