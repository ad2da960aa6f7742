"""What a rule sees of a file: its tree, its lines, and what its names stand for."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Place = tuple[ast.AST, str]  # where, and what was written there
Find = Callable[["Source"], Iterator[Place]]


@dataclass(frozen=True)
class Source:
    """A parsed file."""

    tree: ast.Module
    lines: tuple[str, ...]
    modules: frozenset[str]  # top-level names of what it imports
    aliases: dict[str, str]  # a name in the file, and the module it stands for

    @classmethod
    def of(cls, tree: ast.Module, text: str) -> Source:
        names: set[str] = set()
        aliases: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(a.name.split(".")[0] for a in node.names)
                aliases.update((a.asname or a.name.split(".")[0], a.name if a.asname else a.name.split(".")[0])
                               for a in node.names)  # fmt: skip
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        return cls(tree, (*text.splitlines(), ""), frozenset(names), aliases)

    def calls(self, name: str) -> Iterator[ast.Call]:
        """Calls whose dotted name ends in `name`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and f".{dotted(node.func)}".endswith(f".{name}"):
                yield node

    def full(self, node: ast.AST) -> str:
        """A dotted name with its first part spelt out: 'tl.utils' is 'transformer_lens.utils'."""
        first, _, rest = dotted(node).partition(".")
        return f"{self.aliases.get(first, first)}.{rest}" if rest else self.aliases.get(first, first)

    def value(self, node: ast.expr | None) -> ast.expr | None:
        """What a name was given, where it is given something once; anything else as it is."""
        if not isinstance(node, ast.Name):
            return node
        given = [
            n.value
            for n in ast.walk(self.tree)
            if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in n.targets)
        ]
        return given[0] if len(given) == 1 else node


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    return dotted(node.func) if isinstance(node, ast.Call) else "?"


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is type(value) and node.value == value


def text_of(node: ast.AST) -> str | None:
    """A string, with 0 for what an f-string would fill in; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else "0" for p in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def either(*finds: Find) -> Find:
    def find(source: Source) -> Iterator[Place]:
        for one in finds:
            yield from one(source)

    return find


def called(name: str) -> Find:
    return lambda source: ((call, "") for call in source.calls(name))


def with_keyword(name: str, value: object) -> Find:
    def find(source: Source) -> Iterator[Place]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and is_constant(keyword(node, name), value):
                yield node, ""

    return find


def named_keyword(*names: str) -> Find:
    """Calls that are given one of these arguments, whatever its value."""

    def find(source: Source) -> Iterator[Place]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                yield from ((node, k.arg) for k in node.keywords if k.arg in names)

    return find


def imported(module: str) -> Find:
    """A module, or one below it, imported in any way."""

    def find(source: Source) -> Iterator[Place]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                known = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                known = [node.module]
            else:
                continue
            if any(name == module or name.startswith(f"{module}.") for name in known):
                yield node, ""

    return find


def taken(package: str, pattern: str) -> Find:
    """A name of a package whose whole spelling matches: imported from it, or used as its attribute."""
    whole = rf"{re.escape(package)}\.({pattern})"

    def find(source: Source) -> Iterator[Place]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
                yield from ((node, "") for a in node.names if re.fullmatch(pattern, a.name))
            elif isinstance(node, ast.Attribute) and re.fullmatch(whole, source.full(node)):
                yield node, ""

    return find


def written(pattern: str, unless: str = "(?!)") -> Find:
    """A line, of code or of a notebook's magics, that matches one pattern and not the other."""

    def find(source: Source) -> Iterator[Place]:
        for number, line in enumerate(source.lines, 1):
            if re.search(pattern, line) and not re.search(unless, line):
                yield ast.Pass(lineno=number, col_offset=0), ""

    return find
