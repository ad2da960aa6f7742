"""The parts of the documents that are made from code, and whether what stands there is still what the code says.

`python -m tests.docs_tables` writes them anew: the question of every technique in SKILL.md and references/techniques.md
(the first of its `QUESTIONS`; the order of the rows, and the other columns, are written by hand), and the tables of
references/compute-awareness.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from anatomist.catalog import CATALOG

from tests.docs_blocks import ROOT
from tests.docs_compute import tables

SKILL, MAP, COMPUTE = (ROOT / p for p in ("SKILL.md", "references/techniques.md", "references/compute-awareness.md"))
ROW = re.compile(r"^\| (?P<question>[^|]+) \| (?P<tool>`(?P<plain>\w+)`|\[(?P<linked>\w+)\]\([^)]*\)) \|", re.MULTILINE)


def asked(text: str) -> dict[str, str]:
    """The question of every technique that a table has a row for."""
    return {name: row["question"] for row in ROW.finditer(text) if (name := row["plain"] or row["linked"]) in _NAMES}


def with_questions(text: str) -> str:
    """The text with every technique's row asking what the catalog says it answers."""

    def fresh(row: re.Match[str]) -> str:
        name = row["plain"] or row["linked"]
        return f"| {question(name)} | {row['tool']} |" if name in _NAMES else row[0]

    return ROW.sub(fresh, text)


def question(technique: str) -> str:
    """The first question that a technique answers."""
    return CATALOG.find(technique).questions[0]


def with_tables(text: str) -> str:
    """The page on compute with every table made anew.

    Raises:
        ValueError: the markers of a table are missing.
    """
    for name, table in tables().items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = marked.subn(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
        if found != 1:
            raise ValueError(f"the page has no markers <!-- {name} --> and <!-- /{name} -->, or several")
    return text


def stale(text: str, fresh: str) -> list[str]:
    """The lines that are not what the code makes."""
    made = set(fresh.splitlines())
    return [line for line in text.splitlines() if line not in made]


MADE: Mapping[Path, Callable[[str], str]] = {SKILL: with_questions, MAP: with_questions, COMPUTE: with_tables}
_NAMES = frozenset(CATALOG.names("technique"))


def main() -> None:
    for page, make in MADE.items():
        text = page.read_text(encoding="utf-8")
        if (fresh := make(text)) != text:
            page.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
