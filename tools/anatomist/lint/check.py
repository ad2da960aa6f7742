"""Runs the rules over a Python file or a notebook; nothing of it is executed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadArguments, CorruptFile, Unavailable
from .reading import Source
from .rules import RULES


@dataclass(frozen=True, order=True)
class Found:
    """One place that a rule speaks about."""

    file: str
    line: int
    rule: str
    message: str  # what is wrong, and the fix

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.message}"


def check_file(path: Path) -> list[Found]:
    """All places in a `.py` or `.ipynb` file, by line (of a notebook: counted through its code cells).

    Raises:
        Unavailable: no such file.
        BadArguments: neither kind.
        CorruptFile: not text, or not Python.
    """
    if path.suffix not in (".py", ".ipynb"):
        raise BadArguments(f"{str(path)!r} is neither a .py nor an .ipynb file.")
    try:
        text = path.read_text(encoding="utf-8")
        source = _cells(text) if path.suffix == ".ipynb" else text
    except OSError as error:
        raise Unavailable(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{str(path)!r} is not a readable file of its kind ({error}).") from error
    return check_source(source, str(path))


def check_source(source: str, name: str = "<source>") -> list[Found]:
    """All places in Python source. A line that ends in `# anatomist: ok` is left alone.

    Raises:
        CorruptFile: it is not Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise CorruptFile(f"{name}, line {error.lineno} is not Python: {error.msg}.") from error
    read = Source.of(tree, source)
    return sorted(set(_all(read, name)))


def _all(source: Source, name: str) -> Iterator[Found]:
    for rule in RULES:
        for node, more in rule.find(source):
            line = getattr(node, "lineno", 1)
            if "# anatomist: ok" not in source.lines[line - 1]:
                yield Found(name, line, rule.name, f"{rule.wrong}{f' ({more})' if more else ''}. {rule.fix}")


def _cells(text: str) -> str:
    """The code of a notebook; magics become comments, so that lines keep their numbers."""
    cells = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    code = "\n".join("".join(c) if isinstance(c, list) else c for c in cells)
    return "\n".join(f"# {line}" if line.lstrip().startswith(("%", "!")) else line for line in code.splitlines())
