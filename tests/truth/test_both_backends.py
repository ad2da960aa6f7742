"""Every technique of the catalogue on both backends that run language models: the same numbers from the same weights.

A technique that is not called here fails the first test, so that a new one cannot be forgotten. The model is a random
Llama, saved with a tokenizer of plain words and loaded twice; calls go the whole way that a caller's go, through
prompts, corpus and dictionary. Of an architecture whose parts are not known, what needs only reads and edits runs on
both all the same, and the rest is an error that says which backend can, or that none does.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anatomist.catalog import CATALOG, parse_arguments
from anatomist.errors import BadSite, Unsupported
from anatomist.host import Host
from anatomist.model.loading import random_twin
from anatomist.technique import Arguments, Context
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.backends.families import FAMILIES, VOCABULARY, randomised
from tests.dictionaries import small

CLOSE = 1e-4  # of the largest number told under the same name, and never of less than one
BACKENDS = ("local", "nnsight")
SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def rows(seed: int, n: int, length: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(2, VOCABULARY) for _ in range(length)] for _ in range(n)]


def prompts(clean: list[list[int]], other: list[list[int]]) -> list[dict[str, Any]]:
    """The corrupted prompt differs at two places; the answer is what the model itself says most, and least."""
    with torch.no_grad():
        logits = FAMILIES["llama"]()(torch.tensor(clean)).logits[:, -1, 2:]
    said = zip(clean, other, (logits.argmax(1) + 2).tolist(), (logits.argmin(1) + 2).tolist(), strict=True)
    return [
        {"clean": words(a), "corrupted": words([*a[:2], *b[2:4], *a[4:]]), "answer": f"w{most}", "wrong": f"w{least}",
         "roles": {"X": 2}}
        for a, b, most, least in said
    ]  # fmt: skip


ROWS, OTHERS = rows(0, 12, 7), rows(1, 12, 7)
ON: dict[str, Any] = {"prompts": prompts(ROWS, OTHERS)}
SETS = {"positive": [words(r) for r in ROWS], "negative": [words(r) for r in OTHERS]}
TEXT = [words(row) for row in rows(2, 12, 60)]
EXAMPLES = [{"text": words(r), "label": str(i % 2), "group": f"g{i // 2}"} for i, r in enumerate(rows(3, 24, 5))]
SAE: dict[str, Any] = {"sae": "./dictionary-of-MODEL"}

# Several calls where a technique has ways that take other code: a backend could fail in one of them alone.
CALLS: dict[str, list[dict[str, Any]]] = {
    "ablate": [
        {**ON, "heads": ["L1H1", "L2H0"], "ablation": "resample", "controls": 4, "neutral_text": TEXT[:2]},
        {**ON, "site": "neuron", "heads": ["L1N3", "L2N40"], "ablation": "zero"},
        {**ON, **SAE, "site": "feature", "heads": ["L1F3", "L1F7"], "controls": 2},
    ],
    "attention_knockout": [{**ON, "sources": ["X", 4], "controls": 2, "how": how} for how in ("renormalise", "zero")],
    "attention_patterns": [{**ON, "rank_by": "previous_token"}],
    "attribution_patching": [
        {**ON, "site": "head", "top": 4, "sample": 4},
        {**ON, "site": "k", "method": "atp_star", "top": 4, "sample": 4},
        {**ON, "site": "mlp_out", "method": "integrated", "steps": 3, "top": 4, "sample": 4},
    ],
    "check_prompts": [ON],
    "composition_scores": [{}],
    "das": [{**ON, "layers": [1], "steps": 5, "seeds": 2, "controls": 2, "dimension": 2}],
    "detect_heads": [{"seeds": 2, "rows": 4, "length": 8}],
    "direct_logit_attribution": [ON, {**ON, "neurons": 3}],
    "discover_circuit": [
        {**ON, "level": "nodes", "controls": 3, "minimality": 3, "top": 3, "sample": 3},
        {**ON, "level": "edges", "method": "eap", "size": 12, "controls": 2, "minimality": 2, "top": 3, "sample": 3},
    ],
    "edit_weights": [
        {**ON, "changes": [{"rule": "zero", "parts": ["L1H2", "L0 mlp"]}], "controls": 2, "keep": False},
        {**ON, "changes": [{"rule": "project_out", "direction": {"tokens": ["w5"]}}], "controls": 1, "keep": False},
    ],
    "embedding_geometry": [
        {"tokens": [f"w{i}" for i in range(2, 30)]},
        {"space": "resid_post", "layers": [0, 2], "text": TEXT, "points": 30},
    ],
    "encode_sae": [{**ON, **SAE}],
    "erase_concept": [{**ON, **SETS, "layers": [1], "controls": 3, "neutral_text": TEXT[:2]}],
    "evaluate_sae": [
        {**SAE, "text": TEXT, "tokens": 256, "width": 32, "baseline_tokens": 256, "baseline_steps": 5, "probing": False}
    ],
    "find_direction": [{**SETS, "shuffles": 3}],
    "logit_lens": [ON],
    "max_activations": [
        {"units": ["L1N3", "L2H1"], "directions": [{"tokens": ["w5"]}], "site": "blocks.1.resid_post", "text": TEXT,
         "n_tokens": 400, "width": 32, "top": 3}
    ],
    "ov_circuit": [{"head": "L1H1", "tokens_as": tokens_as} for tokens_as in ("embedding", "after_block_0")],
    "patch_activations": [
        {**ON, "site": "resid_pre", "more_metrics": ["kl", "prob"]},
        {**ON, "site": "v", "direction": "noising"},
        {**ON, "site": "neuron", "layers": [1], "positions": ["X"]},
    ],
    "patchscope": [{**ON, "target": words([3, 4, 5]), "max_new_tokens": 3}],
    "path_patching": [
        {**ON, "senders": ["L0H1", "L1MLP"], "receivers": ["logits"], "norm": "frozen"},
        {**ON, "senders": ["L0H1", "L0MLP"], "receivers": ["L1H2.q", "L2KV1.k", "L1MLP"]},
    ],
    "probe": [{"examples": EXAMPLES, "splits": 2}],
    "qk_circuit": [{"head": "L1H1", "tokens_as": tokens_as} for tokens_as in ("embedding", "after_block_0")],
    "run_with_cache": [{**ON, "sites": ["resid_pre", "pattern", "q", "neuron", "final_norm"]}],
    "sae_attribution": [{**ON, **SAE, "top": 4, "sample": 3, "controls": 3}],
    "sae_feature_search": [{**SETS, **SAE, "text": TEXT, "n_tokens": 400, "top": 3, "show": 1}],
    "self_repair": [{**ON, "controls": 3, "top": 3}],
    "steer": [
        {**ON, "direction": {"tokens": ["w5"], "minus": ["w6"]}, "layers": [0, 1], "controls": 3, "new_tokens": 4}
    ],
    "token_statistics": [{"layers": [1]}, {"units": ["L1H1", "L0N4"]}],
    "tuned_lens": [
        {"text": TEXT, "n_tokens": 400, "width": 16, "test_tokens": 64, "steps": 6, "prompt": words(ROWS[0])}
    ],
}  # fmt: skip
# The same without weights, heads and neurons: what an architecture that is not known offers on every backend.
VALUES = [float(i % 5 - 2) for i in range(32)]
READS_AND_EDITS: dict[str, dict[str, Any]] = {
    "ablate": {**ON, "site": "mlp_out", "ablation": "zero"},
    "attention_knockout": {**ON, "sources": ["X", 4], "controls": 2},
    "attention_patterns": {**ON, "rank_by": "previous_token"},
    "attribution_patching": {**ON, "site": "attn_out", "top": 4, "sample": 4},
    "check_prompts": ON,
    "das": {**ON, "layers": [1], "steps": 5, "seeds": 1, "controls": 2},
    "detect_heads": {"seeds": 2, "rows": 4, "length": 8},
    "embedding_geometry": {"space": "resid_post", "layers": [0, 2], "text": TEXT, "points": 30},
    "encode_sae": {**ON, **SAE},
    "erase_concept": {**ON, **SETS, "layers": [1], "controls": 3},
    "evaluate_sae": CALLS["evaluate_sae"][0],
    "find_direction": {**SETS, "shuffles": 3},
    "max_activations": {
        "directions": [{"values": VALUES}], "site": "blocks.1.resid_post", "text": TEXT, "n_tokens": 400, "width": 32
    },
    "patch_activations": {**ON, "site": "q"},
    "patchscope": {**ON, "target": words([3, 4, 5])},
    "path_patching": {**ON, "senders": ["L0MLP", "embed"], "receivers": ["logits", "L1H2.q", "L2KV1.k"]},
    "probe": {"examples": EXAMPLES, "splits": 2},
    "run_with_cache": {**ON, "sites": ["resid_pre", "pattern", "final_norm"]},
    "sae_attribution": {**ON, **SAE, "top": 4, "sample": 3, "controls": 3},
    "sae_feature_search": {**SETS, **SAE, "text": TEXT, "n_tokens": 400, "top": 3, "show": 1},
    "steer": {**ON, "direction": {"values": VALUES}, "layers": [1], "controls": 3, "new_tokens": 4},
}  # fmt: skip
EACH = [(name, number) for name, calls in CALLS.items() for number in range(len(calls))]
# Calls that need weights, which no backend gives of such an architecture, or heads and neurons, which one may.
REFUSED = [
    ("ablate", 0), ("ablate", 1), ("attribution_patching", 0), ("attribution_patching", 1), ("composition_scores", 0),
    ("direct_logit_attribution", 0), ("discover_circuit", 0), ("discover_circuit", 1), ("edit_weights", 0),
    ("edit_weights", 1), ("embedding_geometry", 0), ("logit_lens", 0), ("max_activations", 0), ("ov_circuit", 0),
    ("patch_activations", 1), ("patch_activations", 2), ("path_patching", 0), ("path_patching", 1), ("qk_circuit", 0),
    ("run_with_cache", 0), ("self_repair", 0), ("steer", 0), ("token_statistics", 0), ("token_statistics", 1),
    ("tuned_lens", 0),
]  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    known = {"<unknown>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    plain = Tokenizer(models.WordLevel(known, unk_token="<unknown>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unknown>", eos_token="<end>")


def both(workspace: Path, model: PreTrainedModel) -> Host:
    """A host with the model loaded on each backend, under the backend's name, and a dictionary for each."""
    host = Host(workspace)
    for backend in BACKENDS:
        small.standard().save_model(workspace / f"dictionary-of-{backend}")
        model.save_pretrained(workspace / backend)
        tokenizer().save_pretrained(workspace / backend)
        host.call("load_model", {"name": str(workspace / backend), "backend": backend})
        assert host.model(backend).info.backend == backend
    return host


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return both(tmp_path_factory.mktemp("llamas"), FAMILIES["llama"]())


def told(host: Host, name: str, arguments: dict[str, Any], backend: str) -> dict[str, Any]:
    """Everything a run says, by the path of its name: fields of the result, then the arrays it keeps.

    As the runner does it, but for the picture and the store, which know no backend. A run's own tests are left out:
    there is one more where heads and their sum can both be read.
    """
    entry = CATALOG.find(name)
    given = json.loads(json.dumps({"model": backend, **arguments}).replace("MODEL", backend))
    parsed = parse_arguments(entry, given)
    assert isinstance(parsed, Arguments)
    model, on = host.model(backend), getattr(parsed, "prompts", None)
    context = Context(
        model, prompts=None if on is None else host.resolve(on, "discovery").chosen, text=host.text(parsed),
        dictionary=host.dictionary(parsed), random_twin=partial(random_twin, model),
        find_dictionary=lambda handle: host.named_dictionary(handle, backend),
    )  # fmt: skip
    result = entry.module.run(context, parsed)
    kept = {f"array {key}": array.tensor.numpy() for key, array in context.arrays.items()}
    return dict(_leaves("", result.model_dump(mode="json", exclude={"cost", "self_tests"}))) | kept


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _leaves(f"{path}.{key}", value[key])
    elif isinstance(value, list):
        yield f"{path} length", len(value)
        for number, item in enumerate(value):
            yield from _leaves(f"{path}[{number}]", item)
    else:
        yield path, value


def without_numbers(text: str) -> str:
    """A sentence with its figures masked: their last digit may differ; and so may the name of the model,
    which is the backend's."""
    return re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", re.sub("|".join(BACKENDS), "MODEL", text))


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """Numbers further apart than rounding explains, and words that differ."""
    sizes: dict[str, float] = defaultdict(lambda: 1.0)
    for key, value in ours.items():
        if not isinstance(value, (str, bool, type(None))):
            size = float(np.abs(value).max(initial=0.0))
            sizes[family(key)] = max(sizes[family(key)], size)
    for key in ours.keys() | theirs.keys():
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, str) and isinstance(b, str):
            same = without_numbers(a) == without_numbers(b)
        elif isinstance(a, (bool, type(None))) or isinstance(b, (bool, type(None))):
            same = a is b
        else:
            same = np.shape(a) == np.shape(b) and bool(np.all(np.abs(a - b) <= CLOSE * sizes[family(key)]))
        if not same:
            yield f"{key}: {a} here, {b} there"


def family(key: str) -> str:
    """Entries of one list are measured on one scale."""
    return re.sub(r"\[\d+\]", "[]", key)


def test_every_technique_of_the_catalogue_is_called_here() -> None:
    every = set(CATALOG.names("technique"))
    assert set(CALLS) == every
    assert {*READS_AND_EDITS, *(name for name, _ in REFUSED)} == every


@pytest.mark.positive_control
@pytest.mark.parametrize(("name", "number"), EACH, ids=lambda x: str(x))
def test_both_backends_tell_the_same(llamas: Host, name: str, number: int) -> None:
    ours, theirs = (told(llamas, name, CALLS[name][number], backend) for backend in BACKENDS)
    assert not list(differences(ours, theirs))


@pytest.mark.negative_control
def test_a_number_a_word_or_a_name_that_differs_is_found() -> None:
    same: dict[str, Any] = {".x[0]": 1.0, ".x[1]": 200.0, ".said": "local: 3 heads", ".flag": True, "array": np.ones(3)}
    assert not list(differences(same, {**same, ".x[0]": 1.01, ".said": "nnsight: 4 heads"}))  # .x is on a scale of 200
    for other in ({".x[0]": 1.03}, {".said": "local: 3 tails"}, {".flag": None}, {"array": np.ones(3) + 2e-4}):
        assert len(list(differences(same, {**same, **other}))) == 1
    assert len(list(differences(same, {k: v for k, v in same.items() if k != ".flag"}))) == 1


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Experts in place of an MLP: no backend knows the parts of this architecture."""
    shape = FAMILIES["llama"]().config.to_dict()
    config = MixtralConfig(**{k: shape[k] for k in SHAPE}, num_local_experts=4, pad_token_id=0)
    return both(tmp_path_factory.mktemp("unknown"), randomised(MixtralForCausalLM(config)))


@pytest.mark.positive_control
@pytest.mark.parametrize("name", READS_AND_EDITS)
def test_what_needs_only_reads_and_edits_runs_where_the_architecture_is_not_known(unknown: Host, name: str) -> None:
    ours, theirs = (told(unknown, name, READS_AND_EDITS[name], backend) for backend in BACKENDS)
    assert not list(differences(ours, theirs))


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "number"), REFUSED, ids=lambda x: str(x))
def test_what_a_backend_cannot_do_says_which_one_can(unknown: Host, name: str, number: int) -> None:
    with pytest.raises((Unsupported, BadSite), match=r"backend='local'|no backend|on any backend"):
        told(unknown, name, CALLS[name][number], "nnsight")


@pytest.mark.bad_input
@pytest.mark.parametrize("name", sorted({name for name, _ in REFUSED} - READS_AND_EDITS.keys() - {"discover_circuit"}))
def test_what_no_backend_can_do_says_so_on_the_other_one_too(unknown: Host, name: str) -> None:
    with pytest.raises(Unsupported, match="on any backend"):
        told(unknown, name, CALLS[name][0], "local")
