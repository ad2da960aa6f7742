"""One name everywhere: technique file = MCP tool = reference page = test file, each with what it owes a reader."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import anatomist.techniques
import pytest
from anatomist.result import Frozen, Result
from anatomist.technique import Arguments
from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
TECHNIQUES = sorted(m.name for m in pkgutil.iter_modules(anatomist.techniques.__path__))
MARKERS = {"hand_worked", "positive_control", "negative_control", "bad_input"}
HEADINGS = (
    "## Idea", "## Source", "## When", "## How to call", "## How to read the result", "## What it does not show",
    "## Controls", "## Mistakes",
)  # fmt: skip


def module(name: str) -> ModuleType:
    return importlib.import_module(f"anatomist.techniques.{name}")


def results(of: ModuleType) -> list[type[Result]]:
    own = [c for c in vars(of).values() if isinstance(c, type) and issubclass(c, Result) and c is not Result]
    return [c for c in own if c.__module__.startswith(of.__name__)]


def models_in(model: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> set[type[BaseModel]]:
    """The model and every model its fields name."""
    seen = set() if seen is None else seen
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for part in _parts(field.annotation):
                models_in(part, seen)
    return seen


def _parts(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [p for a in getattr(annotation, "__args__", ()) for p in _parts(a)]


def test_there_are_techniques() -> None:
    assert {"logit_lens", "direct_logit_attribution", "patch_activations", "ablate"} <= set(TECHNIQUES)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_has_its_face(name: str) -> None:
    face = module(name)
    assert face.__doc__
    assert face.TITLE
    assert face.QUESTIONS
    assert issubclass(face.Arguments, Arguments)
    assert len(results(face)) == 1
    assert callable(face.run)
    assert callable(face.plot)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_argument_and_every_number_is_described(name: str) -> None:
    face = module(name)
    for argument, field in face.Arguments.model_fields.items():
        assert field.description, f"{name}: argument {argument} has no description"
    for field_name, field in results(face)[0].model_fields.items():
        assert field.description, f"{name}: result field {field_name} has no description"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_results_are_frozen_and_closed(name: str) -> None:
    for model in models_in(results(module(name))[0]):
        assert issubclass(model, Frozen), f"{model.__name__} is not Frozen"
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_has_a_reference_page_with_every_part(name: str) -> None:
    page = (ROOT / "references" / "techniques" / f"{name}.md").read_text()
    missing = [h for h in HEADINGS if h not in page]
    assert not missing, f"{name}.md lacks {missing}"
    source = page.split("## Source")[1].split("\n## ")[0]
    assert any(mark in source for mark in ("arXiv", "http", "doi")), f"{name}.md cites no source"
    limits = page.split("## What it does not show")[1].split("\n## ")[0]
    assert len(limits.split()) >= 15, f"{name}.md does not say what the technique does not show"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_has_all_four_kinds_of_test(name: str) -> None:
    path = ROOT / "tests" / "techniques" / f"test_{name}.py"
    used = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert used >= MARKERS, f"{path.name} lacks {sorted(MARKERS - used)}"


def test_reference_pages_and_test_files_belong_to_a_technique() -> None:
    pages = {p.stem for p in (ROOT / "references" / "techniques").glob("*.md")}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests" / "techniques").glob("test_*.py")}
    assert pages == set(TECHNIQUES)
    assert tests == set(TECHNIQUES)
