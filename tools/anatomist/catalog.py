"""Discovery: every file in `techniques/` and `operations/` is in the catalog, checked for its face when it is imported.

Names are listed without importing anything; `find` imports one file, `entries` all. No torch is imported by any of it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Literal, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .errors import BadArguments, UnknownName, Unsupported
from .operation import Outcome, Where
from .result import Frozen, Result

Kind = Literal["technique", "operation"]
_FAULTS = 8  # told at once
_SHOWN = 80  # characters of a refused value that are repeated in an error


@dataclass(frozen=True)
class Entry:
    """One technique or operation, with its face checked."""

    name: str
    kind: Kind
    module: ModuleType
    title: str
    questions: tuple[str, ...]  # empty for operations
    where: Where
    read_only: bool  # changes nothing but the list of stored runs
    destructive: bool
    arguments: type[Frozen]
    result: type[Frozen]

    @cached_property
    def docstring(self) -> str:
        return inspect.cleandoc(self.module.__doc__ or "")

    @property
    def headline(self) -> str:
        """The docstring's first line."""
        return self.docstring.partition("\n")[0]

    def input_schema(self) -> dict[str, object]:
        """JSON schema of the arguments."""
        return self.arguments.model_json_schema()

    def output_schema(self) -> dict[str, object]:
        """JSON schema of the result, as it is written (serialisation mode)."""
        return self.result.model_json_schema(mode="serialization")


class Catalog:
    """All techniques and operations of the given packages."""

    def __init__(
        self,
        techniques: Sequence[str] = ("anatomist.techniques",),
        operations: Sequence[str] = ("anatomist.operations",),
    ) -> None:
        self._packages: dict[Kind, tuple[str, ...]] = {"technique": tuple(techniques), "operation": tuple(operations)}
        self._found: dict[str, Entry] = {}

    @cached_property
    def _modules(self) -> dict[str, tuple[Kind, str]]:
        """Name -> kind and full module name, sorted by name within a kind; nothing but the packages is imported."""
        found: dict[str, tuple[Kind, str]] = {}
        for kind, packages in self._packages.items():
            for package in packages:
                for name in _files(package):
                    if name in found:
                        raise Unsupported(f"{name!r} exists twice: {found[name][1]} and {package}.{name}; rename one.")
                    found[name] = (kind, f"{package}.{name}")
        return found

    def names(self, kind: Kind | None = None) -> tuple[str, ...]:
        """Names in the catalog, without importing them."""
        return tuple(n for n, (k, _) in self._modules.items() if kind in (None, k))

    def find(self, name: str, kind: Kind | None = None) -> Entry:
        """One entry by name.

        Raises:
            UnknownName: no such technique or operation; the nearest names are listed.
            Unsupported: the file lacks part of its face.
        """
        if name not in self.names(kind):
            raise UnknownName.of(kind or "technique or operation", name, self.names(kind), "Call list_techniques.")
        if name not in self._found:
            found_kind, module = self._modules[name]
            self._found[name] = _entry(name, found_kind, importlib.import_module(module))
        return self._found[name]

    def entries(self, kind: Kind | None = None) -> tuple[Entry, ...]:
        """Every entry, each face checked."""
        return tuple(self.find(name) for name in self.names(kind))


def parse_arguments(entry: Entry, arguments: Mapping[str, object]) -> Frozen:
    """Arguments of an entry from plain JSON data.

    Raises:
        BadArguments: unknown names (with the nearest), missing ones, values that do not fit; all at once.
    """
    try:
        return entry.arguments.model_validate(dict(arguments))
    except ValidationError as error:
        fields = tuple(entry.arguments.model_fields)
        told = list(dict.fromkeys(_explain(e, entry) for e in _meant(error.errors(include_url=False))))
        takes = ", ".join(fields) or "no arguments"
        raise BadArguments(
            f"{entry.name}: {'; '.join(told)}. It takes: {takes}. "
            f"Next: describe_technique(name={entry.name!r}) shows each."
        ) from None


def _files(package: str) -> Iterable[str]:
    module = importlib.import_module(package)
    return sorted(m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_"))


def _entry(name: str, kind: Kind, module: ModuleType) -> Entry:
    lacks = [part for part in ("TITLE", "Arguments", "run", *_NEEDED[kind]) if not hasattr(module, part)]
    if not (module.__doc__ or "").strip():
        lacks.insert(0, "a docstring")
    if lacks:
        raise Unsupported(f"{module.__name__} is no {kind}: it lacks {', '.join(lacks)}. See {_FACE[kind]}.")
    if not (isinstance(module.Arguments, type) and issubclass(module.Arguments, Frozen)):
        raise Unsupported(f"{module.__name__}.Arguments must be a subclass of Frozen; it is {module.Arguments!r}.")
    return Entry(
        name=name,
        kind=kind,
        module=module,
        title=module.TITLE,
        questions=tuple(getattr(module, "QUESTIONS", ())),
        where=_where(module) if kind == "operation" else "worker",
        read_only=bool(getattr(module, "READ_ONLY", True)),
        destructive=bool(getattr(module, "DESTRUCTIVE", False)),
        arguments=module.Arguments,
        result=_result_class(module, Result if kind == "technique" else Outcome),
    )


_NEEDED: Mapping[Kind, tuple[str, ...]] = {
    "technique": ("QUESTIONS", "plot"),
    "operation": ("WHERE", "READ_ONLY", "DESTRUCTIVE"),
}
_FACE: Mapping[Kind, str] = {"technique": "anatomist/technique.py", "operation": "anatomist/operation.py"}


def _where(module: ModuleType) -> Where:
    if module.WHERE not in get_args(Where):
        raise Unsupported(f"{module.__name__}.WHERE is {module.WHERE!r}; write 'server' or 'worker'.")
    return module.WHERE


def _result_class(module: ModuleType, base: type[Frozen]) -> type[Frozen]:
    own = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, base) and c is not base and c.__module__.startswith(module.__name__)
    ]
    if len(own) != 1:
        shown = ", ".join(c.__name__ for c in own) or "none"
        raise Unsupported(f"{module.__name__} must define exactly one subclass of {base.__name__}; it defines {shown}.")
    return own[0]


def _meant(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Of the errors of a union's branches those that came furthest into the value: theirs is the branch meant."""
    depth: dict[object, int] = {}
    for error in errors:
        key = error["loc"][:1]
        depth[key] = max(depth.get(key, 0), len(error["loc"]))
    return [e for e in errors if len(e["loc"]) == depth[e["loc"][:1]]][:_FAULTS]


def _explain(error: ErrorDetails, entry: Entry) -> str:
    where = _path(error["loc"])
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        return str(UnknownName.of("argument", where, entry.arguments.model_fields)).rstrip(". ")
    if error["type"] == "missing":
        return f"argument {where!r} is missing{_meaning(entry, error['loc'])}"
    if error["type"] == "extra_forbidden":
        return f"argument {where!r} is no such field"
    value = repr(error["input"])
    shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
    return f"argument {where!r} is {shown}: {error['msg'].lower()}{_meaning(entry, error['loc'])}"


def _path(loc: Sequence[int | str]) -> str:
    """'prompts.0.clean' from pydantic's location, without the names of union branches."""
    return ".".join(str(part) for part in loc if isinstance(part, int) or part.isidentifier() or part == loc[0])


def _meaning(entry: Entry, loc: Sequence[int | str]) -> str:
    field = entry.arguments.model_fields.get(str(loc[0])) if loc else None
    return f" ({field.description.rstrip('.')})" if field and field.description else ""


CATALOG = Catalog()
