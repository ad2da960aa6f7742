"""Shape checking under pytest: the names that the library imports only for type checkers are made real.

The library's torch-free modules write `Float[Tensor, "B T D"]` with both names under TYPE_CHECKING. Before such a
module is executed its namespace is given the real ones; jaxtyping then checks every signature that names a shape.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import beartype
import jaxtyping
import torch

NAMES: dict[str, Any] = {
    "Tensor": torch.Tensor,
    **{name: getattr(jaxtyping, name) for name in ("Float", "Int", "Bool", "Shaped", "Num")},
}


def check(function: Any) -> Any:
    """Check the shapes in one signature at every call; hints that name no shape are left alone."""
    if not isinstance(function, type):
        hints = function.__annotations__
        function.__annotations__ = {n: h for n, h in hints.items() if "[Tensor" in str(h)}
    return beartype.beartype(function)


class _Supplier(MetaPathFinder):
    """Finds the library's modules with the next finder (jaxtyping's) and puts the names in before they run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != "anatomist":
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next((s for f in later if (s := f.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def supplied(module: ModuleType) -> None:
                vars(module).update(NAMES)
                run(module)

            spec.loader.exec_module = supplied  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Turn the checking on for everything of the library that is imported from now on."""
    jaxtyping.install_import_hook("anatomist", "tests.shape_names.check")
    sys.meta_path.insert(0, _Supplier())
