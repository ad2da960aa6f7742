"""Reads the documents: their links, their code blocks, the tools, names and files they speak of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
REFERENCES = ROOT / "references"
DOCUMENTS = sorted([ROOT / "SKILL.md", ROOT / "README.md", ROOT / "AGENTS.md", *REFERENCES.rglob("*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
ANCHOR = re.compile(r"\[[^\]]*\]\(([^)#\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]*\w\.(?:py|md|toml|json|jsonl|ipynb|png|html|safetensors)")
LIBRARIES = ("nnsight", "nnterp", "sae_lens", "transformer_lens")  # whose names the documents speak of beside our own


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
    """Relative links that lead nowhere: to no file, or to no heading of it."""
    prose = FENCE.sub("", text)
    targets = [t for t in LINK.findall(prose) if "://" not in t and not t.startswith("mailto:")]
    broken = [t for t in targets if not (document.parent / t).exists()]
    for page, anchor in ANCHOR.findall(prose):
        whole = (document.parent / page).read_text() if page and (document.parent / page).is_file() else text
        if "://" not in page and page not in broken and anchor not in anchors(whole):
            broken.append(f"{page}#{anchor}")
    return broken


def anchors(text: str) -> list[str]:
    """What a link to each heading is called: lower case, hyphens for spaces, no other signs."""
    return [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in HEADING.findall(FENCE.sub("", text))]


def not_listed(text: str) -> list[str]:
    """Sections that the contents list of a page leaves out."""
    sections = [h.removeprefix("## ") for h in re.findall(r"^## .+$", FENCE.sub("", text), re.MULTILINE)]
    contents = re.search(r"^Contents: .*?\n\n", text, re.MULTILINE | re.DOTALL)
    listed = [anchor for _, anchor in ANCHOR.findall(contents[0])] if contents else []
    return [s for s in sections if anchors(f"## {s}")[0] not in listed]


def unknown_tools(text: str, known: set[str]) -> list[str]:
    """Names written as a call, `like_this(...)` or `like_this`, in a table or list of tools, that do not exist."""
    called = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:\([^`]*\))?`", text))
    return sorted(called - known)


def unknown_names(text: str) -> list[str]:
    """Words with an underscore, written as code, that stand neither in our code nor in that of the libraries."""
    spoken = {word for code in CODE.findall(FENCE.sub("", text)) for word in re.findall(r"\b\w*[a-z]_[a-z]\w*\b", code)}
    return sorted(spoken - words_of_code())


def unknown_files(text: str) -> list[str]:
    """Files written as code that exist nowhere here and that no code writes."""
    spoken = {file for code in CODE.findall(FENCE.sub("", text)) for file in FILE.findall(code) if file == code}
    return sorted(file for file in spoken if not _is_file(file))


@cache
def words_of_code() -> frozenset[str]:
    """Every word with an underscore of our code and of the libraries we speak of, and the names of their files."""
    import importlib.util

    places = [ROOT / "tools", ROOT / "server", ROOT / "templates", ROOT / "benchmarks"]
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        assert spec is not None
        places += map(Path, spec.submodule_search_locations or ())
    files = {file.stem for place in places for file in place.rglob("*.py")}
    return frozenset(word for text in _code(places) for word in re.findall(r"\w*_\w*", text)) | files


def _code(places: Iterable[Path]) -> Iterable[str]:
    for place in places:
        for file in place.rglob("*"):
            if file.suffix in (".py", ".jinja", ".toml", ".md", ".json") and file.is_file():
                yield file.read_text(encoding="utf-8", errors="replace")


@cache
def _is_file(name: str) -> bool:
    """Whether it is in the repository, in a template, or named in the code that writes it."""
    there = [ROOT / name, REFERENCES / name, *(ROOT / "templates").glob(f"*/{name}*")]
    if any(p.exists() for p in there):
        return True
    return any(name in text for text in _code([ROOT / "tools", ROOT / "server", ROOT / "templates"]))
