"""An independent copy of a model's weights, to be changed, run, changed back, and written to a folder.

The original is never touched: a copy holds tensors of its own. A copy is run as a plain model (no hooks, no reads), and
becomes a model like any other once its folder is loaded.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import BadArguments, Unsupported
from .backends.architecture import anatomy_of
from .backends.blocks import Affine, Anatomy, Heads, LeafNorm
from .backends.hf_weights import HFWeights
from .backends.interventions import at_positions, logits_positions, pad_ids
from .backends.toy import ToyModel, ToyWeights
from .backends.toy_file import Form, named_tensors, save_toy
from .edits import Edit
from .protocol import Model, ModelInfo, Norm, Run, Weights
from .sites import Site
from .tokens import Tokens
from .trained import TOY_FILE
from .weight_edits import READERS, WeightEdit


class Copy(ABC):
    """Weights that can be changed. `untied` says whether a shared embedding was given an unembedding of its own."""

    def __init__(self, weights: Weights, info: ModelInfo, *, untied: bool) -> None:
        self.weights, self.info, self.untied = weights, info, untied

    def run(
        self, tokens: Tokens, *, edits: Sequence[Edit] = (), logits_at: Sequence[int] | Literal["all"] | None = None
    ) -> Run:
        """Logits, as `Model.run` gives them.

        Raises:
            BadArguments: activations cannot be edited here.
        """
        if edits:
            raise BadArguments("activations of a copy cannot be edited; load it as a model first.")
        with torch.no_grad():
            logits = self._logits(tokens)
        if logits_at is None or logits_at == "all":
            return Run({}, logits, ())
        return Run({}, at_positions(logits, logits_positions(tokens, list(logits_at))), ())  # type: ignore[arg-type]

    @contextmanager
    def changed(self, edits: Sequence[WeightEdit]) -> Iterator[None]:
        """The changes made for the time of a block, and undone to the bit."""
        kept = [(tensor, tensor.clone()) for edit in edits for tensor in self._touched(edit)]
        try:
            self.change(edits)
            yield
        finally:
            for tensor, before in reversed(kept):
                tensor.copy_(before)

    def change(self, edits: Sequence[WeightEdit]) -> None:
        """Make changes, in order.

        Raises:
            Unsupported: a matrix that this architecture does not have.
        """
        for edit in edits:
            for tensor in self._touched(edit):
                _change(tensor, edit, self.weights)

    def _touched(self, edit: WeightEdit) -> list[Tensor]:
        """The tensors that an edit writes, as views; biases go with whole matrices that write."""
        whole = self._embedding() if edit.matrix == "embed" else _matrix(self.weights, edit)
        if whole is None:
            return []
        if edit.index is not None:
            return [whole[edit.index]]
        biases = {"o": self.weights.o_bias, "mlp_out": self.weights.mlp_out_bias}
        bias = biases[edit.matrix](edit.layer or 0) if edit.matrix in biases else None
        return [whole] if bias is None else [whole, bias]

    def _embedding(self) -> Tensor:
        return self.weights.embed()

    @abstractmethod
    def _logits(self, tokens: Tokens) -> Float[Tensor, "B T V"]: ...

    @abstractmethod
    def residuals(self, tokens: Tokens) -> list[Float[Tensor, "B T D"]]:
        """The residual stream entering every block."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the copy as a model folder, weights in safetensors."""


def copy_of(model: Model, *, untie: bool = False) -> Copy:
    """A copy of a model's weights. `untie`: an unembedding that shares the embedding's matrix gets one of its own.

    Raises:
        Unsupported: an architecture whose parts are not known.
    """
    if isinstance(model, ToyModel):
        return ToyCopy(model)
    return PlainCopy(model, untie=untie)


class PlainCopy(Copy):
    """Of a Hugging Face model."""

    def __init__(self, model: Model, *, untie: bool) -> None:
        hf, anatomy = getattr(model, "_hf", None), getattr(model, "anatomy", None)
        if hf is None or anatomy is None:
            raise Unsupported(
                f"the weights of {model.info.name} cannot be copied, for its architecture is not known; load a model "
                "of another architecture, or edit its activations instead (ablate, steer)."
            )
        config = copy.deepcopy(hf.config)
        tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
        if untie and tied:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        with torch.random.fork_rng(devices=[]):
            self.hf: Any = type(hf)._from_config(config, dtype=hf.dtype, attn_implementation="eager")
        self.hf = self.hf.to(hf.device).eval().requires_grad_(False)
        self.hf.generation_config = copy.deepcopy(hf.generation_config)
        own = anatomy_of(self.hf)
        _fill(own, anatomy, self.hf)
        self.tokenizer = getattr(getattr(model, "text", None), "tokenizer", None)
        super().__init__(HFWeights(own), model.info, untied=untie and tied)
        self.anatomy = own

    def _embedding(self) -> Tensor:
        return self.anatomy.embedding.weight.detach()  # type: ignore[operator, return-value]

    def _logits(self, tokens: Tokens) -> Float[Tensor, "B T V"]:
        return self.hf(input_ids=pad_ids(tokens, 0, self.hf.device), use_cache=False).logits

    def residuals(self, tokens: Tokens) -> list[Float[Tensor, "B T D"]]:
        with torch.no_grad():
            out = self.hf(
                input_ids=pad_ids(tokens, 0, self.hf.device), use_cache=False, output_hidden_states=True
            )
        return list(out.hidden_states[:-1])  # the last one stands behind the final norm

    def write(self, folder: Path) -> None:
        self.hf.save_pretrained(folder, max_shard_size="1TB")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


class ToyCopy(Copy):
    """Of a toy."""

    def __init__(self, model: ToyModel) -> None:
        self.form = Form(
            name=model.info.name, source=f"changed weights of {model.info.name}", n_ctx=model.n_ctx,
            strings=model.words.strings, bos=model.words.bos, readable=model.words.readable,
            activation=model.weights.activation, causal=model.weights.causal, learned=False,
        )  # fmt: skip
        weights: ToyWeights = _cloned(model.weights)
        self.toy = ToyModel(weights, name=model.info.name, n_ctx=model.n_ctx, words=model.words)
        super().__init__(weights, model.info, untied=False)

    def _logits(self, tokens: Tokens) -> Float[Tensor, "B T V"]:
        logits = self.toy.run(tokens, logits_at="all").logits
        assert logits is not None
        return logits

    def residuals(self, tokens: Tokens) -> list[Float[Tensor, "B T D"]]:
        sites = [Site("resid_pre", layer) for layer in range(self.info.n_layers)]
        reads = self.toy.run(tokens, read=sites).reads
        return [reads[site] for site in sites]

    def write(self, folder: Path) -> None:
        form = replace(self.form, name=folder.name)
        save_toy(folder / TOY_FILE, named_tensors(self.toy.weights), form)


def weights_digest(model: Model) -> str:
    """sha256 over the weights that a model holds now (not those it was loaded with)."""
    digest = hashlib.sha256()
    if isinstance(model, ToyModel):
        found = list(_tensors(model.weights))
    else:
        found = list(_tensors(getattr(model, "anatomy", None)))
    for tensor in found:
        if tensor.ndim == 1 and not tensor.any():
            continue  # a bias of zeros is none: the bridge gives the unembedding one, other backends do not
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _matrix(weights: Weights, edit: WeightEdit) -> Tensor | None:
    """The matrix of an edit as a view; None where the architecture has none."""
    if edit.matrix == "position_embed":
        return weights.position_embed()
    if edit.matrix == "unembed":
        return weights.unembed()
    assert edit.layer is not None, "weight_edits has seen to it"
    return getattr(weights, edit.matrix)(edit.layer)


def _change(tensor: Tensor, edit: WeightEdit, weights: Weights) -> None:
    """Zero a tensor, or take the direction out of it, in place."""
    if edit.rule == "zero":
        tensor.zero_()
        return
    assert edit.direction is not None, "weight_edits has seen to it"
    norm = _norm(weights, edit)
    v = edit.direction.double()
    if norm is not None and edit.matrix in READERS and norm.kind == "layer":
        v = v - v.mean()
    u = v if norm is None or norm.weight is None else v * norm.weight.double()
    if not u.norm() > 0:
        return  # the norm's weight is 0 all along it: nothing passes as it is
    u = (u / u.norm()).to(tensor.device)
    wide = tensor.double()
    if edit.matrix in READERS:
        along = torch.einsum("...dn,d->...n", wide, u)
        tensor.copy_(wide - torch.einsum("d,...n->...dn", u, along))
    else:
        tensor.copy_(wide - (wide @ u)[..., None] * u)


def _norm(weights: Weights, edit: WeightEdit) -> Norm | None:
    """The norm between the matrix and the residual stream."""
    layer = edit.layer or 0
    if edit.matrix in ("q", "k", "v"):
        return weights.attention_norm(layer)
    if edit.matrix in ("mlp_in", "mlp_gate"):
        return weights.mlp_norm(layer)
    if edit.matrix == "unembed":
        return weights.final_norm()
    if edit.matrix == "o":
        return weights.post_attention_norm(layer)
    return weights.post_mlp_norm(layer) if edit.matrix == "mlp_out" else None


def _fill(own: Anatomy, other: Anatomy, hf: nn.Module) -> None:
    """Copy every weight of one anatomy into another of the same architecture.

    Raises:
        Unsupported: the model has weights that the anatomy does not know.
    """
    filled: set[int] = set()
    for mine, theirs in zip(_modules(own), _modules(other), strict=True):
        given = dict(theirs.named_parameters())
        for name, parameter in mine.named_parameters():
            parameter.data.copy_(given[name].data)
            filled.add(id(parameter))
    if missed := [name for name, p in hf.named_parameters() if id(p) not in filled]:
        raise Unsupported(
            f"{type(hf).__name__} has weights that are not known here ({', '.join(missed[:3])}); it cannot be copied."
        )


def _modules(anatomy: Anatomy) -> Iterator[nn.Module]:
    """The leaf modules, in a fixed order."""
    yield anatomy.embedding
    if anatomy.position_embedding is not None:
        yield anatomy.position_embedding
    for block in anatomy.blocks:
        for field in fields(block):
            part = getattr(block, field.name)
            if isinstance(part, Affine | LeafNorm):
                yield part.module
            elif isinstance(part, Heads):
                yield part.linear.module
    yield anatomy.final_norm.module
    yield anatomy.lm_head.module


def _tensors(holder: object) -> Iterator[Tensor]:
    """Every weight of an anatomy or of a toy."""
    if isinstance(holder, Anatomy):
        for module in _modules(holder):
            yield from module.parameters()
    elif isinstance(holder, Tensor):
        yield holder
    elif isinstance(holder, tuple):
        for part in holder:
            yield from _tensors(part)
    elif is_dataclass(holder):
        for field in fields(holder):
            yield from _tensors(getattr(holder, field.name))


def _cloned(value: Any) -> Any:
    """A dataclass of weights with tensors of its own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple):
        return tuple(_cloned(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cloned(getattr(value, f.name)) for f in fields(value)})
    return value
