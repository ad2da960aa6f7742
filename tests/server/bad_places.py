"""A workspace in which things are wrong: damaged runs, folders of models that must not or cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
from safetensors.numpy import save_file

WIDTH, VOCABULARY, CONTEXT = 8, 20, 16


def furnish(workspace: Path) -> None:
    """Put all of it there."""
    _runs(workspace / "runs")
    _prompts(workspace)
    (workspace / "pickled").mkdir()
    (workspace / "pickled" / "config.json").write_text(json.dumps(_config()))
    (workspace / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    (workspace / "empty_folder").mkdir()
    _model(workspace / "nan_weights", weight=float("nan"))
    _model(workspace / "cut_short", weight=0.1)
    whole = (workspace / "cut_short" / "model.safetensors").read_bytes()
    (workspace / "cut_short" / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _runs(runs: Path) -> None:
    damaged = runs / "r-9001"
    damaged.mkdir(parents=True)
    for file in ("arguments.json", "provenance.json"):
        (damaged / file).write_text("{}")
    (damaged / "result.json").write_text('{"summary": "cut off he')


def _prompts(workspace: Path) -> None:
    (workspace / "prompts").mkdir(parents=True)
    (workspace / "prompts" / "broken-0000.json").write_text("not JSON")
    (workspace / "bad.jsonl").write_text('{"clean": "t1 t2"}\n{"clean": "t1 t2"\n')
    (workspace / "misspelt.jsonl").write_text('{"clean": "t1 t2", "anwser": "t3"}\n')
    (workspace / "nothing.jsonl").write_text("\n\n")


def _config() -> dict[str, object]:
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": WIDTH,
        "n_positions": CONTEXT, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def _model(folder: Path, weight: float) -> None:
    """A GPT-2 of one block whose weights are all one number."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_config()))
    shapes = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (CONTEXT, WIDTH)}
    shapes |= {"h.0.attn.c_attn.weight": (WIDTH, 3 * WIDTH), "h.0.attn.c_attn.bias": (3 * WIDTH,)}
    shapes |= {"h.0.attn.c_proj.weight": (WIDTH, WIDTH), "h.0.attn.c_proj.bias": (WIDTH,)}
    shapes |= {"h.0.mlp.c_fc.weight": (WIDTH, 4 * WIDTH), "h.0.mlp.c_fc.bias": (4 * WIDTH,)}
    shapes |= {"h.0.mlp.c_proj.weight": (4 * WIDTH, WIDTH), "h.0.mlp.c_proj.bias": (WIDTH,)}
    shapes |= {f"{norm}.{part}": (WIDTH,) for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f") for part in ("weight", "bias")}
    tensors = {f"transformer.{name}": numpy.full(shape, weight, numpy.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
