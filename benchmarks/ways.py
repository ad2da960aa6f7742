"""The ways to compute a sweep that are compared, each as a library's own users would write it.

All but ours run one forward pass over all prompts for each cell, with the activations of the source run read before.
Each way holds the same weights (the same folder), float32 or what is given, eager attention, no BOS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from anatomist.model.sites import Site
from anatomist.model.sweep_plan import Cell
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .tasks import Task

BUDGET = 2 * 1024**3


class Way(Protocol):
    """One way: `prepare` a task (counted in its time), then cells one call after the other, or all at once."""

    name: str
    at_once: bool  # takes all cells in one call

    def prepare(self, task: Task) -> None: ...
    def cells(self, task: Task, cells: tuple[Cell, ...]) -> Tensor:
        """Logit differences [cells, prompts]."""
        ...

    def read(self, ids: Tensor) -> Tensor:
        """resid_post of every layer [layers, B, T, D] for the reading benchmark."""
        ...


def plain(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The Hugging Face model and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def difference(task: Task, logits: Tensor) -> Tensor:
    """[B] from logits [B, V] at the last position."""
    rows = torch.arange(len(logits))
    return logits[rows, torch.tensor(task.answers)] - logits[rows, torch.tensor(task.wrongs)]


def written(site: Site, position: int | None) -> tuple[Any, ...]:
    """Where a cell writes in an activation [B, T, ...]."""
    place = slice(None) if position is None else position
    return (slice(None), place) if site.index is None else (slice(None), place, site.index)


def _position(cell: Cell) -> int | None:
    return None if cell.positions is None else cell.positions[0][0]


def edges(cell: Cell) -> tuple[int, tuple[int, ...]]:
    """The query of a cell of cut edges and its keys, the same in every prompt."""
    assert cell.positions is not None
    assert cell.keys is not None
    return cell.positions[0][0], cell.keys[0][0]


class Ours:
    """anatomist: `sweep`, through the local backend."""

    at_once = True

    def __init__(self, folder: Path, *, share_prefix: bool = False) -> None:
        from anatomist.model.loading import load_model

        self.model = load_model(str(folder), threads=torch.get_num_threads())
        self._named(share_prefix)

    def _named(self, share_prefix: bool) -> None:
        self.share_prefix = share_prefix
        self.name = "anatomist, shared prefix" if share_prefix else "anatomist"

    def sharing(self) -> Ours:
        """The same model with the shared prefix used."""
        other = Ours.__new__(Ours)
        other.model = self.model
        other._named(True)
        return other

    def prepare(self, task: Task) -> None:
        from anatomist.model.sweep import prove

        prove(self.model)  # once a model; part of its loading, as parity is

    def cells(self, task: Task, cells: tuple[Cell, ...]) -> Tensor:
        from dataclasses import replace

        from anatomist.model.sweep import silent, sweep

        plan = replace(task, cells=cells).plan(share_prefix=self.share_prefix)
        # The engine recomputes a few cells the plain way in every sweep. A sampled grid is too small to carry that.
        result = sweep(self.model, plan, silent, BUDGET, spot_check=len(cells) == task.whole)
        assert result.path != "generic", result.reason
        self.path = result.path
        return result.values[0]

    def read(self, ids: Tensor) -> Tensor:
        tokens = self.model.tokenize([tuple(row) for row in ids.tolist()], bos=False)
        sites = [Site("resid_post", i) for i in range(self.model.info.n_layers)]
        run = self.model.run(tokens, read=sites)
        return torch.stack([run.reads[site] for site in sites])


class Bare:
    """Plain module hooks on the Hugging Face model."""

    name, at_once = "bare hooks", False

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = plain(folder)
        self.source: dict[Site, Tensor] = {}

    def prepare(self, task: Task) -> None:
        self.source = {}
        if task.rule == "patch":
            whole = {site.whole for cell in task.cells for site in cell.sites}
            handles = [self._hook(site, lambda x, site=site: self.source.update({site: x.clone()})) for site in whole]
            self.model(torch.tensor(task.source), use_cache=False)
            for handle in handles:
                handle.remove()

    def cells(self, task: Task, cells: tuple[Cell, ...]) -> Tensor:
        return torch.stack([self._cell(task, cell) for cell in cells])

    def _cell(self, task: Task, cell: Cell) -> Tensor:
        handles = self._cuts(cell) if task.rule == "cut" else [self._edit(task, cell)]
        logits = self.model(torch.tensor(task.base), use_cache=False).logits[:, -1]
        for handle in handles:
            handle.remove()
        return difference(task, logits)

    def _edit(self, task: Task, cell: Cell) -> Any:
        site, at = cell.sites[0], written(cell.sites[0], _position(cell))
        new = self.source[site.whole][at] if task.rule == "patch" else 0.0

        def change(x: Tensor) -> None:
            x[at] = new

        return self._hook(site, change)

    def _cuts(self, cell: Cell) -> list[Any]:
        """Eager attention adds its mask to the scores: the edges are cut there."""
        query, keys = edges(cell)

        def pre(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            mask = named["attention_mask"].clone()
            mask[:, :, query, list(keys)] = float("-inf")
            return args, {**named, "attention_mask": mask}

        layers = [self.model.model.layers[site.layer or 0] for site in cell.sites]
        return [layer.self_attn.register_forward_pre_hook(pre, with_kwargs=True) for layer in layers]

    def _hook(self, site: Site, change: Callable[[Tensor], None]) -> Any:
        layer = self.model.model.layers[site.layer or 0]
        module = {"resid_pre": layer, "head": layer.self_attn.o_proj, "neuron": layer.mlp.down_proj}[site.kind]

        def pre(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0].clone()
            change(x.unflatten(-1, (self.model.config.num_attention_heads, -1)) if site.kind == "head" else x)
            return (x, *args[1:])

        return module.register_forward_pre_hook(pre)

    def read(self, ids: Tensor) -> Tensor:
        found: list[Tensor] = []
        layers = self.model.model.layers
        handles = [layer.register_forward_hook(lambda _, args, out: found.append(out)) for layer in layers]
        self.model.model(ids, use_cache=False)
        for handle in handles:
            handle.remove()
        return torch.stack(found)


class Bridge:
    """TransformerLens: `run_with_hooks` on the bridge for each cell, as its `patching` module does."""

    name, at_once = "TransformerLens bridge", False
    HOOKS: ClassVar = {
        "resid_pre": "blocks.{}.hook_resid_pre", "head": "blocks.{}.attn.hook_z", "neuron": "blocks.{}.mlp.hook_post",
        "scores": "blocks.{}.attn.hook_attn_scores",
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        model, tokenizer = plain(folder)
        self.model = TransformerBridge.boot_transformers(
            str(folder), hf_model=model, tokenizer=tokenizer, dtype=torch.float32, device="cpu"
        )
        self.heads = model.config.num_attention_heads
        self.cache: Any = None

    def prepare(self, task: Task) -> None:
        if task.rule == "patch":
            names = {self._hook(site) for cell in task.cells for site in cell.sites}
            _, self.cache = self.model.run_with_cache(torch.tensor(task.source), names_filter=lambda n: n in names)

    def cells(self, task: Task, cells: tuple[Cell, ...]) -> Tensor:
        return torch.stack([self._cell(task, cell) for cell in cells])

    def _cell(self, task: Task, cell: Cell) -> Tensor:
        if task.rule == "cut":
            return self._cut(task, cell)
        site, at = cell.sites[0], written(cell.sites[0], _position(cell))
        name = self._hook(site)

        def patch(x: Tensor, hook: Any) -> Tensor:
            self._by_head(site, x)[at] = self._by_head(site, self.cache[name])[at] if task.rule == "patch" else 0.0
            return x

        logits = self.model.run_with_hooks(torch.tensor(task.base), fwd_hooks=[(name, patch)])
        return difference(task, logits[:, -1])

    def _cut(self, task: Task, cell: Cell) -> Tensor:
        query, keys = edges(cell)

        def cut(x: Tensor, hook: Any) -> Tensor:
            x[:, :, query, list(keys)] = float("-inf")
            return x

        hooks: list[Any] = [(self._hook(site), cut) for site in cell.sites]
        return difference(task, self.model.run_with_hooks(torch.tensor(task.base), fwd_hooks=hooks)[:, -1])

    def _by_head(self, site: Site, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)) if site.kind == "head" and x.ndim == 3 else x

    def _hook(self, site: Site) -> str:
        name = self.HOOKS[site.kind].format(site.layer)
        assert name in self.model.hook_dict, f"no hook {name}"  # a name that does not exist would change nothing
        return name

    def read(self, ids: Tensor) -> Tensor:
        _, cache = self.model.run_with_cache(ids, names_filter=lambda n: n.endswith("hook_resid_post"))
        return torch.stack([cache[f"blocks.{i}.hook_resid_post"] for i in range(self.model.cfg.n_layers)])


class Nnterp:
    """nnterp (nnsight): one trace for each cell."""

    name, at_once = "nnterp", False

    def __init__(self, folder: Path) -> None:
        from nnterp import StandardizedTransformer

        model, tokenizer = plain(folder)
        self.model: Any = StandardizedTransformer(model, tokenizer=tokenizer, attn_implementation="eager")
        self.heads = model.config.num_attention_heads
        self.source: dict[Site, Tensor] = {}

    def prepare(self, task: Task) -> None:
        self.source = {}
        if task.rule != "patch":
            return
        whole = sorted({site.whole for cell in task.cells for site in cell.sites}, key=lambda s: s.layer or 0)
        found: list[Tensor] = []
        with self.model.trace({"input_ids": torch.tensor(task.source)}, use_cache=False):
            for site in whole:
                found.append(self._envoy(site).input.clone())
        self.source = {site: self._by_head(site, x) for site, x in zip(whole, found, strict=True)}

    def cells(self, task: Task, cells: tuple[Cell, ...]) -> Tensor:
        return torch.stack([self._cell(task, cell) for cell in cells])

    def _cell(self, task: Task, cell: Cell) -> Tensor:
        if task.rule == "cut":
            return self._cut(task, cell)
        site, at = cell.sites[0], written(cell.sites[0], _position(cell))
        envoy, found = self._envoy(site), []
        new = self.source[site.whole][at] if task.rule == "patch" else 0.0
        with self.model.trace({"input_ids": torch.tensor(task.base)}, use_cache=False):
            x = envoy.input.clone()
            self._by_head(site, x)[at] = new
            envoy.input = x
            found.append(self.model.output.logits[:, -1])
        return difference(task, found[0])

    def _cut(self, task: Task, cell: Cell) -> Tensor:
        """In the mask that eager attention adds to the scores."""
        (query, keys), found = edges(cell), []
        with self.model.trace({"input_ids": torch.tensor(task.base)}, use_cache=False):
            for site in cell.sites:
                attention = self.model.layers[site.layer].self_attn
                args, named = attention.inputs
                mask = named["attention_mask"].clone()
                mask[:, :, query, list(keys)] = float("-inf")
                attention.inputs = args, {**named, "attention_mask": mask}
            found.append(self.model.output.logits[:, -1])
        return difference(task, found[0])

    def _by_head(self, site: Site, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)) if site.kind == "head" else x

    def _envoy(self, site: Site) -> Any:
        layer = self.model.layers[site.layer]
        return {"resid_pre": layer, "head": layer.self_attn.o_proj, "neuron": layer.mlp.down_proj}[site.kind]

    def read(self, ids: Tensor) -> Tensor:
        found: list[Tensor] = []
        with self.model.trace({"input_ids": ids}, use_cache=False):
            for i in range(self.model.num_layers):
                found.append(self.model.layers_output[i])
        return torch.stack(found)


WAYS: dict[str, Callable[[Path], Way]] = {
    "anatomist": Ours, "TransformerLens bridge": Bridge, "nnterp": Nnterp, "bare hooks": Bare,
}  # fmt: skip
