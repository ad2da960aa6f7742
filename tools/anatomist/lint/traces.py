"""Rules of nnsight's traces: code in a `with model.trace():` block is not run as it reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TypeGuard

from .reading import Place, Source, dotted

_TRACE = re.compile(r"\.(trace|generate|session|invoke)\b")
_LAYER = re.compile(r"\b(layers|h|blocks|layers_output|layers_input)$")


def _traces(source: Source) -> Iterator[ast.With]:
    if source.modules & {"nnsight", "nnterp"}:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.With) and any(_TRACE.search(ast.unparse(i.context_expr)) for i in node.items):
                yield node


def batch_row(source: Source) -> Iterator[Place]:
    if not source.modules & {"nnsight", "nnterp"}:
        return
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "output"
            and isinstance(node.slice, ast.Constant)
            and node.slice.value == 0
            and re.search(r"layer|\.h\b|block", ast.unparse(node.value.value))
            and not re.search(r"attn|attention", ast.unparse(node.value.value))
        ):
            yield node, ast.unparse(node)


def one_line(source: Source) -> Iterator[Place]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.With) and node.body[0].lineno == node.lineno and ".trace" in ast.unparse(node.items[0]):
            yield node, ""


def unsaved(source: Source) -> Iterator[Place]:
    """Names given inside a block, never saved there, and read after it."""
    for block in _traces(source):
        saves = [node for node in ast.walk(block) if _is_save(node)]
        for node in ast.walk(block):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                kept = any(map(_is_save, ast.walk(node.value))) or any(_saves(s, node.targets[0].id) for s in saves)
                if not kept and _read_after(source, block, node.targets[0].id):
                    yield node, node.targets[0].id


def out_of_order(source: Source) -> Iterator[Place]:
    """A layer touched after a later one, both named by number, in one block."""
    for block in _traces(source):
        highest = -1
        for node in _own(block):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Constant)
                and isinstance(node.slice.value, int)
                and _LAYER.search(ast.unparse(node.value))
            ):
                if 0 <= node.slice.value < highest:
                    yield node, ast.unparse(node)
                highest = max(highest, node.slice.value)


def threads(source: Source) -> Iterator[Place]:
    if source.modules & {"nnsight", "nnterp"}:
        for name in ("ThreadPoolExecutor", "Thread"):
            for call in source.calls(name):
                yield call, name


def executed(source: Source) -> Iterator[Place]:
    if source.modules & {"nnsight", "nnterp"} and "linecache" not in source.modules:
        yield from ((call, "") for call in source.calls("exec") if isinstance(call.func, ast.Name))


def _is_save(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and f".{dotted(node.func)}".endswith(".save")


def _saves(call: ast.Call, name: str) -> bool:
    """name.save(), or save(name)."""
    given = [a.id for a in call.args if isinstance(a, ast.Name)]
    return name in (dotted(call.func).split(".")[0], *given)


def _read_after(source: Source, block: ast.With, name: str) -> bool:
    """Whether the value may be meant: the name is read after the block, and not given anew before."""
    after = [n for n in ast.walk(_around(source, block)) if isinstance(n, ast.Name) and n.id == name
             and n.lineno > (block.end_lineno or block.lineno)]  # fmt: skip
    first = min(after, key=lambda n: (n.lineno, isinstance(n.ctx, ast.Store)), default=None)
    return first is not None and isinstance(first.ctx, ast.Load)


def _around(source: Source, block: ast.With) -> ast.AST:
    """The innermost function that holds the block, or the file."""
    functions = [n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
                 and n.lineno <= block.lineno <= (n.end_lineno or n.lineno)]  # fmt: skip
    return max(functions, key=lambda n: n.lineno, default=source.tree)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """What a block holds in reading order, but not what a `with` inside it holds: each invoke is a pass of its own."""
    for statement in getattr(node, "body", []):
        # of an assignment the right side is read first
        parts = [statement.value, *statement.targets] if isinstance(statement, ast.Assign) else [statement]
        for part in parts if not isinstance(statement, ast.With) else ():
            yield from sorted((n for n in ast.walk(part) if isinstance(n, ast.expr)), key=_place)


def _place(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset
