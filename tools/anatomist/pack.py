"""The skill's texts: SKILL.md, references/ and templates/, in the wheel (as data) or in a checkout."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .errors import Unavailable, UnknownName

_HERE = Path(__file__).resolve().parent


@cache
def folder() -> Path:
    """The folder that holds SKILL.md and references/.

    Raises:
        Unavailable: neither the wheel's data nor a checkout is around this file.
    """
    for place in (_HERE / "pack", _HERE.parent.parent):
        if (place / "SKILL.md").is_file():
            return place
    raise Unavailable(f"SKILL.md is neither in {_HERE / 'pack'} nor in {_HERE.parent.parent}; install anatomist again.")


def references() -> dict[str, Path]:
    """Every text by the name it is opened by: 'SKILL', 'pitfalls', 'techniques/logit_lens'."""
    base = folder() / "references"
    pages = sorted(base.rglob("*.md"))
    return {"SKILL": folder() / "SKILL.md", **{p.relative_to(base).with_suffix("").as_posix(): p for p in pages}}


def reference(name: str) -> tuple[str, str]:
    """A text's full name and content; the bare name of a technique, and names ending in '.md', are understood.

    Raises:
        UnknownName: no such text; all are listed.
    """
    known = references()
    plain = name.removeprefix("references/").removesuffix(".md")
    for full in (plain, f"techniques/{plain}"):
        if full in known:
            return full, known[full].read_text(encoding="utf-8")
    raise UnknownName.of("reference", name, known, "Call open_reference without a name to list them.")


def headline(text: str) -> str:
    """The first line of prose or the title of a text, without its mark-up; front matter is skipped."""
    lines = text.splitlines()
    if lines and lines[0].strip() == "---":
        end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
        lines = lines[end + 1 :]
    return next((line.lstrip("# ").strip() for line in lines if line.strip()), "")
