"""The facts about a model, from configurations whose sizes are known."""

from __future__ import annotations

import pytest
import torch
from anatomist.model.backends.describe import describe, fingerprint
from anatomist.model.backends.local import LocalModel
from anatomist.model.protocol import ModelInfo
from anatomist.model.sites import KINDS

from tests.backends.families import FAMILIES


def info(family: str) -> ModelInfo:
    return describe(
        FAMILIES[family](), None, name=family, source="here", backend="local", sites=("embed",), load_seconds=0.0
    )


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("family", "facts"),
    [
        ("gpt2", {"positional": "learned", "norm": "layer", "n_kv_heads": 4, "d_head": 8, "d_mlp": 128}),
        ("llama", {"positional": "rotary", "norm": "rms", "n_kv_heads": 2, "d_head": 8, "d_mlp": 48}),
        ("gpt_neox", {"positional": "rotary", "norm": "layer", "n_kv_heads": 4, "parallel": True}),
        ("gemma3", {"norm": "rms", "d_head": 16, "qk_norm": True, "post_norms": True, "n_kv_heads": 2}),
        ("qwen2", {"d_head": 8, "qk_norm": False, "post_norms": False, "parallel": False}),
        ("qwen3", {"d_head": 12, "qk_norm": True, "post_norms": False}),
    ],
)
def test_the_facts_are_those_of_the_configuration(family: str, facts: dict[str, object]) -> None:
    found = info(family).model_dump()
    assert {name: found[name] for name in facts} == facts
    assert (found["n_layers"], found["d_model"], found["n_heads"], found["d_vocab"], found["n_ctx"]) == (
        3,
        32,
        4,
        97,
        64,
    )
    assert (found["tokenizer"], found["adds_bos"], found["dtype"]) == (None, False, "float32")


@pytest.mark.hand_worked
def test_parameters_are_counted_once() -> None:
    """Llama: two tables of 97 x 32, and in each of 3 blocks q and o of 32 x 32, k and v of 32 x 16, three matrices of
    32 x 48 and two norms of 32; one more norm at the end. 6208 + 3 (2048 + 1024 + 4608 + 64) + 32 = 29472."""
    found = info("llama")
    assert found.parameters == 29472
    assert found.weight_bytes == 4 * 29472


def test_the_fingerprint_changes_with_one_number_and_with_a_name() -> None:
    x = torch.arange(6.0)
    changed = x.clone()
    changed[3] = 7
    prints = {
        fingerprint([("a", x)]),
        fingerprint([("b", x)]),
        fingerprint([("a", changed)]),
        fingerprint([("a", x.view(2, 3))]),
    }
    assert len(prints) == 4
    assert fingerprint([("a", x.clone())]) in prints


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_places_are_proven_in_other_dtypes_too(dtype: torch.dtype) -> None:
    model = LocalModel(FAMILIES["gemma3"]().to(dtype), None, name="other")
    assert set(model.info.sites) == set(KINDS)
    assert model.info.dtype == str(dtype).removeprefix("torch.")
