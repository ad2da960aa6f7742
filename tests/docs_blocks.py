"""Reads the documents: their links, their code blocks, the tools they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [ROOT / "SKILL.md", ROOT / "README.md", ROOT / "AGENTS.md", *(ROOT / "references").rglob("*.md")]
)  # fmt: skip
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


class Block(NamedTuple):
    """One fenced block of a document."""

    document: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(language: str, documents: list[Path] = DOCUMENTS) -> list[Block]:
    """Every block of one language."""
    found = []
    for document in documents:
        text = document.read_text()
        for match in FENCE.finditer(text):
            if match[1] == language:
                found.append(Block(document, language, match[2], text[: match.start()].count("\n") + 1))
    return found


def broken_links(document: Path, text: str) -> list[str]:
    """Relative links that lead nowhere."""
    targets = [t for t in LINK.findall(FENCE.sub("", text)) if "://" not in t and not t.startswith("mailto:")]
    return [t for t in targets if not (document.parent / t).exists()]


def unknown_tools(text: str, known: set[str]) -> list[str]:
    """Names written as a call, `like_this(...)` or `like_this`, in a table or list of tools, that do not exist."""
    called = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:\([^`]*\))?`", text))
    return sorted(called - known)
