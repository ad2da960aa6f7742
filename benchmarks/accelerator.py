"""The residual sweep of a model of 7B shape with random weights in half precision, on this machine's accelerator.

`python -m benchmarks.accelerator [--layers 32 --length 64 --prompts 4]`: our engine on whole grids, bare hooks on some
cells, both beside the matrix-multiply rate measured there. Prints one line of JSON and writes results/accelerator.json.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from anatomist.measures.metrics import Metric
from anatomist.model.backends.architecture import anatomy_of
from anatomist.model.backends.blocks import Anatomy
from anatomist.model.fast import FastEngine
from anatomist.model.sites import Site
from anatomist.model.sweep_plan import Cell, SweepPlan
from anatomist.model.tokens import Tokens
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from .clock import Rate, timed
from .report import keep, machine
from .tasks import block_parameters

BUDGET = 24 * 2**30
FEW = 4  # cells that are computed the plain way
REPEATS = 3


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    torch.set_grad_enabled(False)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    dtype = getattr(torch, options.dtype)
    anatomy = anatomy_of(_random_model(options, dtype, device))
    rate = Rate(dtype, device)
    shapes = [(8192, options.width, options.mlp), (8192, options.mlp, options.width)]
    plan = _plan(anatomy, options.length, options.prompts)
    engine = FastEngine(anatomy)
    engine.measure(plan.some(range(0, len(plan.cells), 64)), lambda *_: None, BUDGET)
    seconds, measured = [], None
    for _ in range(REPEATS):
        rate.measure(shapes)
        taken, measured = timed(lambda: engine.measure(plan, lambda *_: None, BUDGET))
        seconds.append(taken)
    assert measured is not None
    few = list(range(0, len(plan.cells), len(plan.cells) // FEW))[:FEW]
    plain_seconds, plain = timed(lambda: torch.stack([_bare(anatomy, plan, plan.cells[i]) for i in few]))
    floor = _flops(anatomy, plan) / rate.best
    found = {
        "machine": {**machine(), "device": str(device), "name": _name(device)}, "dtype": options.dtype,
        "parameters": sum(p.numel() for p in anatomy.model.parameters()), "cells": len(plan.cells),
        "length": options.length, "prompts": options.prompts, "seconds": statistics.median(seconds),
        "spread": (min(seconds), max(seconds)), "rates": rate.found, "floor": floor,
        "times_the_floor": statistics.median(seconds) / floor,
        "bare_hooks_seconds": plain_seconds / FEW * len(plan.cells),
        "logit_spread": float(measured.values.std()),
        "max_difference": float((measured.values[0, few] - plain.float().cpu()).abs().max()),
        "chunks": measured.work.chunks, "planned_bytes": measured.work.peak_bytes,
    }  # fmt: skip
    keep(found, "accelerator")
    print(json.dumps(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"layers": 32, "width": 4096, "heads": 32, "mlp": 11008, "length": 64, "prompts": 4}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16")
    return parser


def _random_model(options: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=options.width, intermediate_size=options.mlp, num_hidden_layers=options.layers,
        num_attention_heads=options.heads, num_key_value_heads=options.heads, vocab_size=32_000, dtype=dtype,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype=dtype).eval().requires_grad_(False)


def _plan(anatomy: Anatomy, length: int, prompts: int) -> SweepPlan:
    generator = torch.Generator().manual_seed(0)
    base, source = (
        torch.randint(anatomy.sizes.d_vocab, (prompts, length), generator=generator).tolist() for _ in range(2)
    )
    cells = [
        Cell((Site("resid_pre", layer),), ((p,),) * prompts)
        for layer in range(anatomy.sizes.n_layers)
        for p in range(length)
    ]
    metric = Metric("logit_diff", [(1,)] * prompts, [(2,)] * prompts)
    tokens = _tokens(base)
    return SweepPlan(
        base=tokens, source=_tokens(source), cells=tuple(cells), metrics=(metric,), read_at=tokens.last, rule="resample"
    )


def _tokens(ids: list[list[int]]) -> Tokens:
    return Tokens(tuple(map(tuple, ids)), tuple(tuple(map(str, row)) for row in ids), bos=False)


def _bare(anatomy: Anatomy, plan: SweepPlan, cell: Cell) -> Tensor:
    """One cell by two whole forward passes: the source's activation, and the patched run."""
    assert plan.source is not None
    assert cell.positions is not None
    layer, position = anatomy.blocks[cell.sites[0].layer or 0].module, cell.positions[0][0]
    seen: list[Tensor] = []

    def patch(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        if seen:
            x[:, position] = seen[0][:, position]
        else:
            seen.append(x)
        return (x, *args[1:])

    handle = layer.register_forward_pre_hook(patch)
    device = anatomy.reference.device
    for tokens in (plan.source, plan.base):
        logits = anatomy.model(torch.tensor(tokens.ids, device=device), use_cache=False).logits[:, -1].float()
    handle.remove()
    return logits[:, 1] - logits[:, 2]


def _flops(anatomy: Anatomy, plan: SweepPlan) -> float:
    """As `tasks.flops`, for this plan."""
    sizes, length = anatomy.sizes, plan.base.width
    starts = [(cell.sites[0].layer or 0, (cell.positions or ((0,),))[0][0]) for cell in plan.cells]
    places = sum((sizes.n_layers - layer) * (length - position) for layer, position in starts)
    logits = 2.0 * sizes.d_model * sizes.d_vocab * len(plan.cells)
    return (2.0 * block_parameters(anatomy) * places + logits) * plan.base.n_rows


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()
