"""The hand-set circuit with soft attention: every gradient method and exact patching, against values that bare torch
computed in float64 (`tests/fixtures/soft_induction/values.py` made `values.json` and says what each number is)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from anatomist.causal.circuit_parts import Edges
from anatomist.model.loading import load_model
from anatomist.model.protocol import Model
from anatomist.prompts.given import inline_set
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context
from anatomist.techniques import attribution_patching, discover_circuit, patch_activations

FOLDER = Path(__file__).parent.parent / "fixtures" / "soft_induction"
WITHIN = 1e-3
TRUE_EDGES = {
    "embed -> L0H1.v", "embed -> L1H2.q", "embed -> L1H2.v", "L0H1 -> L1H2.k", "L1H2 -> logits",
}  # fmt: skip


@pytest.fixture(scope="module")
def stored() -> Any:
    return json.loads((FOLDER / "values.json").read_text())


@pytest.fixture(scope="module")
def soft() -> Model:
    return load_model("toy-induction-soft")


@pytest.fixture(scope="module")
def prompts(stored: Any) -> PromptSet:
    names = ("clean", "corrupted", "answer", "wrong")
    rows = enumerate(stored["prompts"])
    return inline_set([dict(zip(names, row, strict=True)) | {"cluster": str(i)} for i, row in rows])


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soft_induction_values", FOLDER / "values.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [x for key in sorted(tree) for x in numbers(tree[key])]
    return [x for one in tree for x in numbers(one)] if isinstance(tree, list) else [float(tree)]


def test_the_script_still_gives_the_stored_values(stored: Any) -> None:
    again = json.loads(script().text())
    assert again.keys() == stored.keys()
    assert again["edges"].keys() == stored["edges"].keys()
    assert numbers(again) == pytest.approx(numbers(stored), abs=1e-6)


@pytest.mark.parametrize("site", ["head", "q", "k", "v"])
@pytest.mark.parametrize("method", ["atp", "atp_star", "integrated"])
def test_estimates_of_every_head_agree_on_every_prompt(
    soft: Model, prompts: PromptSet, stored: Any, site: str, method: str
) -> None:
    """Rules out a wrong sign, run, axis or mean over the path; and for q and k that the fix is the plain gradient."""
    context = Context(soft, prompts)
    attribution_patching.run(
        context,
        attribution_patching.Arguments(
            model="m", prompts="given", site=site, method=method, steps=stored["steps"], direction="noising"  # type: ignore[arg-type]
        ),
    )
    cells = stored["cells"][site]
    expected = list((cells.get(method) or cells["atp"]).values())  # the fix is of q and k alone
    assert context.arrays["estimates"].tensor.double().numpy() == pytest.approx(_array(expected), abs=WITHIN)
    assert max(abs(x) for row in expected for x in row) > 1


@pytest.mark.parametrize("site", ["head", "q", "k", "v"])
def test_exact_patching_of_every_head_agrees_on_average(
    soft: Model, prompts: PromptSet, stored: Any, site: str
) -> None:
    found = patch_activations.run(
        Context(soft, prompts),
        patch_activations.Arguments(model="m", prompts="given", site=site, grid="layer_head", direction="noising"),  # type: ignore[arg-type]
    )
    expected = [sum(row) / len(row) for row in stored["cells"][site]["exact"].values()]
    assert found.effects[0].change.values == pytest.approx(expected, abs=WITHIN)
    assert found.effects[0].base.mean == pytest.approx(sum(stored["clean"]) / 4, abs=WITHIN)


@pytest.mark.parametrize("method", ["exact", "eap", "eap_ig"])
def test_every_edge_agrees_on_every_prompt(soft: Model, prompts: PromptSet, stored: Any, method: str) -> None:
    context = Context(soft, prompts, prompts)
    discover_circuit.run(
        context,
        discover_circuit.Arguments(
            model="m", prompts="given", level="edges", method=method, steps=stored["steps"], size=5, controls=1,  # type: ignore[arg-type]
            minimality=0,
        ),
    )  # fmt: skip
    names, found = Edges(soft, 2**28).names, context.arrays["contributions"].tensor.T.numpy()
    assert set(names) == stored["edges"].keys()
    expected = [stored["edges"][name][method] for name in names]
    assert found == pytest.approx(_array(expected), abs=WITHIN)


def test_the_five_true_edges_are_all_there_is_and_gradients_see_them(stored: Any) -> None:
    """Soft attention, so that the stored values are no saturated zeros: a fixture of nothing would agree with much."""
    for method in ("exact", "eap", "eap_ig"):
        sizes = {name: max(map(abs, edge[method])) for name, edge in stored["edges"].items()}
        assert {name for name, size in sizes.items() if size > 1e-6} == TRUE_EDGES
        assert min(sizes[name] for name in TRUE_EDGES) > 0.5
    differ = [abs(a - b) for edge in stored["edges"].values() for a, b in zip(edge["exact"], edge["eap"], strict=True)]
    assert max(differ) > 1


def _array(rows: list[list[float]]) -> Any:
    import numpy as np

    return np.array(rows)
