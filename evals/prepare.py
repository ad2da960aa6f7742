"""What an assistant is given, apart from what the grader keeps.

    python -m evals.prepare OUT [--seed N]    OUT/given (models, questions), OUT/answers (tasks)
    python -m evals.prepare --record          measure every answer again and write evals/tasks
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .grade import is_right
from .models import build_models
from .questions import is_smollm2, smollm2_tasks, toy_tasks

TASKS = Path(__file__).parent / "tasks"
SEED = 0


def recorded() -> list[dict[str, Any]]:
    """The tasks as they are kept."""
    return [json.loads(file.read_text()) for file in sorted(TASKS.glob("task-*.json"))]


def write_tasks(folder: Path, tasks: Iterable[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        (folder / f"{task['id']}.json").write_text(json.dumps(task, indent=1, ensure_ascii=False) + "\n")


def prepare(out: Path, seed: int = SEED) -> Path:
    """Models and questions without answers in OUT/given, which is returned; tasks with answers in OUT/answers.

    Answers about SmolLM2 do not depend on the seed and are taken from those recorded.
    """
    tasks = [*toy_tasks(seed), *(task for task in recorded() if is_smollm2(task))]
    if known := [task["id"] for task in tasks if is_right(task["recited"]["value"], task["answer"])]:
        raise SystemExit(f"seed {seed} makes reciting right in {', '.join(known)}; take another seed.")
    write_tasks(out / "answers", tasks)
    given = out / "given"
    for built in build_models(seed).values():
        built.save(given / "models")
    questions = given / "questions"
    questions.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        (questions / f"{task['id']}.md").write_text(task["question"] + "\n")
    return given


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.prepare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", help="folder to write")
    parser.add_argument("--seed", type=int, default=SEED, help="of names and places; another seed, other answers")
    parser.add_argument("--record", action="store_true", help="measure every answer again and write evals/tasks")
    options = parser.parse_args(words)
    if options.record == (options.out is not None):
        parser.error("give either a folder to write or --record")
    if options.record:
        write_tasks(TASKS, [*toy_tasks(SEED), *smollm2_tasks()])
    else:
        prepare(options.out, options.seed)


if __name__ == "__main__":
    main()
