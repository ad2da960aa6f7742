"""Sweeps the plain way: one whole forward pass of the Hugging Face model for each cell and row, edited by bare hooks.

The reference of the fast engine. It knows where a place is and nothing of how a block computes. Queries and keys are
edited before the rotation, which is the same when a whole vector of the same position, or zero, is put in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from anatomist.model.backends.blocks import Anatomy, Block, Heads
from anatomist.model.sites import Site
from anatomist.model.sweep_plan import Cell, SweepPlan, values_of
from torch import Tensor, nn

Change = Callable[[Tensor], None]  # edits an activation [1, T, *feature] in place


def measure(anatomy: Anatomy, plan: SweepPlan) -> Tensor:
    """[M, C, B] by whole forward passes."""
    found = [[_cell(anatomy, plan, cell, row) for row in range(plan.base.n_rows)] for cell in plan.cells]
    return torch.tensor(found).permute(2, 0, 1)


def logits(anatomy: Anatomy, ids: tuple[int, ...]) -> Tensor:
    """[T, V]"""
    with torch.no_grad():
        return anatomy.model(torch.tensor([ids]), use_cache=False).logits[0]


def _cell(anatomy: Anatomy, plan: SweepPlan, cell: Cell, row: int) -> list[float]:
    if plan.rule == "cut":
        with _cut(cell, row):
            return _values(anatomy, plan, row)
    places = list(cell.positions[row]) if cell.positions is not None else list(range(plan.base.lengths[row]))
    with _edits(anatomy, plan, cell, row, places):
        return _values(anatomy, plan, row)


def _values(anatomy: Anatomy, plan: SweepPlan, row: int) -> list[float]:
    read = logits(anatomy, plan.base.ids[row])[plan.read_at[row]][None]
    columns = plan.vocabulary
    chosen = read if columns is None else read[:, list(columns)]
    return [float(v) for v in values_of(plan.metrics, chosen, columns, [row])]


@contextmanager
def _cut(cell: Cell, row: int) -> Iterator[None]:
    """Eager attention takes one softmax a layer, of scores [1, H, T, T] that are masked and capped already."""
    softmax, layers = nn.functional.softmax, itertools.count()

    def without(x: Tensor, kind: str, layer: int, value: float) -> Tensor:
        x = x.clone()
        for site in cell.sites:
            if (site.kind, site.layer) == (kind, layer):
                for q, keys in zip((cell.positions or ())[row], (cell.keys or ())[row], strict=True):
                    x[:, slice(None) if site.index is None else [site.index], q, list(keys)] = value
        return x

    def cutting(scores: Tensor, *more: object, **named: object) -> Tensor:
        layer = next(layers)
        pattern = softmax(without(scores, "scores", layer, float("-inf")), *more, **named)  # type: ignore[arg-type]
        return without(pattern, "pattern", layer, 0.0)

    nn.functional.softmax = cutting  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.softmax = softmax


@contextmanager
def _edits(anatomy: Anatomy, plan: SweepPlan, cell: Cell, row: int, places: list[int]) -> Iterator[None]:
    wanted = {site: _new(anatomy, plan, site, row) for site in cell.sites}
    handles = []
    for site, new in wanted.items():

        def change(x: Tensor, site: Site = site, new: Tensor | None = new) -> None:
            part = x if site.index is None else x[:, :, site.index]
            at = 0.0 if new is None else (new if site.index is None else new[:, site.index])[places]
            part[:, places] = part[:, places] + plan.factor * at if plan.rule == "add" else at

        handles += hook(anatomy, site, change)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _new(anatomy: Anatomy, plan: SweepPlan, site: Site, row: int) -> Tensor | None:
    """[T, *feature] of what is written."""
    if plan.source is not None:
        return read(anatomy, plan.source.ids[row], site)
    if plan.values is None:
        return None
    values = plan.values[site.whole][0 if plan.value_rows is None else plan.value_rows[row]]
    return values.expand(max(len(values), plan.base.lengths[row]), *values.shape[1:])


def read(anatomy: Anatomy, ids: tuple[int, ...], site: Site) -> Tensor:
    """[T, *feature] of a whole place in a plain run."""
    seen: list[Tensor] = []
    handles = hook(anatomy, site.whole, lambda x: seen.append(x.clone()))
    logits(anatomy, ids)
    for handle in handles:
        handle.remove()
    return seen[0][0]


def hook(anatomy: Anatomy, site: Site, change: Change) -> list:
    """Hooks that hand a place to `change` and use what it leaves."""
    block = anatomy.blocks[site.layer or 0]
    if site.kind == "resid_pre":
        return [_into(block.module, change)]
    if site.kind == "resid_post":
        return [_out_of(block.module, change)]
    if site.kind == "head":
        return [_into(block.o.module, change, anatomy.sizes.n_heads)]
    if site.kind == "neuron":
        return [_into(block.mlp_out.module, change)]
    if site.kind == "attn_out":
        return [_out_of((block.post_attention_norm or block.o).module, change)]
    if site.kind == "mlp_out":
        return [_out_of((block.post_mlp_norm or block.mlp_out).module, change)]
    if site.kind == "resid_mid":
        return _middle(block, change)
    return [_projected(block, site.kind, change)]


def _into(module: nn.Module, change: Change, heads: int | None = None) -> object:
    def pre(_: nn.Module, args: tuple, kwargs: dict) -> tuple:
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        change(x if heads is None else x.unflatten(-1, (heads, -1)))
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    return module.register_forward_pre_hook(pre, with_kwargs=True)


def _out_of(module: nn.Module, change: Change, part: Heads | None = None) -> object:
    def post(_: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        change(x if part is None else part.pick(x))
        return (x, *output[1:]) if isinstance(output, tuple) else x

    return module.register_forward_hook(post)


def _middle(block: Block, change: Change) -> list:
    """The residual between attention and MLP: what attention adds is chosen so that the sum is what is wanted."""
    before: list[Tensor] = []
    seen = _into(block.module, lambda x: before.append(x.clone()))

    def move(x: Tensor) -> None:
        total = before[-1] + x
        change(total)
        x.copy_(total - before[-1])

    return [seen, _out_of((block.post_attention_norm or block.o).module, move)]


def _projected(block: Block, kind: str, change: Change) -> object:
    part = {"q": block.q, "k": block.k, "v": block.v}[kind]
    norm = {"q": block.q_norm, "k": block.k_norm}.get(kind)
    if norm is None:
        return _out_of(part.linear.module, change, part)
    heads_first = type(block.attention).__name__ in ("Gemma3Attention", "PhiAttention")  # transposed, then normalised
    return _out_of(norm.module, (lambda x: change(x.transpose(1, 2))) if heads_first else change)
