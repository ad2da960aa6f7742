"""The local backend: a TransformerLens bridge over a plain Hugging Face model, with the weights as they are.

The bridge replaces submodules of the model by wrappers with hook points and keeps the arithmetic; nothing is folded or
centred. Places that the bridge has no hook for are made here (see `_places`), and what each place means is proven on
every model at load (`proof.py`), so that an unknown architecture offers only what holds.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import (
    JointQKVPositionEmbeddingsAttentionBridge,
    ParallelBlockBridge,
)
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ...errors import Unavailable, Unsupported
from ..edits import Edit
from ..protocol import ModelInfo, Run, Weights
from ..sites import KINDS, WHOLE_MODEL, Site, SiteKind
from ..tokens import Tokens
from .architecture import HFWeights, try_anatomy
from .describe import describe
from .generation import Advance, generate
from .interventions import Visits, at_positions, finite_or_raise, logits_positions, pad_ids
from .proof import proven_kinds
from .text import TextCodec

Layout = Literal["as_is", "flat_heads", "heads_first"]
LOGITS, EMBED, FINAL_NORM = Site("logits"), Site("embed"), Site("final_norm")


class _AllDone(Exception):
    """Every wanted place has been visited: the rest of the pass is not needed."""


class Place(NamedTuple):
    """Where a site of one block is found, and how its heads lie there."""

    hook: nn.Module
    layout: Layout = "as_is"


class LocalModel:
    """A Hugging Face causal language model in this process. The model given is wrapped in place and belongs to it."""

    def __init__(
        self,
        hf_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str,
        source: str = "",
        revision: str | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        """
        Raises:
            Unsupported: an architecture that the bridge does not know.
        """
        hf_model.eval().set_attn_implementation("eager")
        self.anatomy, self._no_anatomy = try_anatomy(hf_model)
        self.info: ModelInfo = describe(
            hf_model, tokenizer, name=name, source=source or name, backend="local", sites=KINDS,
            load_seconds=load_seconds, revision=revision,
        )  # fmt: skip
        self.text = TextCodec(tokenizer, d_vocab=self.info.d_vocab, n_ctx=self.info.n_ctx)
        self._hf: PreTrainedModel | None = hf_model
        self._bridge = _bridge(hf_model)
        hf_model.requires_grad_(False)
        self._places = [_places(block, self.info) for block in self._bridge.blocks]
        self._declare(self._found())
        cap = getattr(hf_model.config, "attn_logit_softcapping", None)
        self._declare(proven_kinds(self, () if cap is None else (cap,)))

    def _found(self) -> list[SiteKind]:
        """The kinds of place that every block has."""
        parallel = any(isinstance(block, ParallelBlockBridge) for block in self._bridge.blocks)
        everywhere = set(KINDS).intersection(*self._places)
        middle = {"resid_mid"} if "attn_out" in everywhere and not parallel else set()
        return [kind for kind in KINDS if kind in WHOLE_MODEL | everywhere | middle]

    def _declare(self, kinds: Collection[str]) -> None:
        self.info = self.info.model_copy(update={"sites": tuple(kind for kind in KINDS if kind in kinds)})

    @property
    def weights(self) -> Weights:
        if self.anatomy is None:
            raise Unsupported(self._no_anatomy)
        return HFWeights(self.anatomy)

    def tokenize(self, prompts: Sequence[str | Sequence[int]], *, bos: bool | None = None) -> Tokens:
        return self.text.tokenize(prompts, bos=bos)

    def token_ids(self, text: str) -> tuple[int, ...]:
        return self.text.ids(text)

    def token_strings(self, ids: Sequence[int]) -> tuple[str, ...]:
        return self.text.strings(ids)

    def chat(self, text: str) -> str:
        return self.text.chat(text)

    def run(
        self,
        tokens: Tokens,
        *,
        read: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        logits_at: Sequence[int] | Literal["all"] | None = None,
        gradients: bool = False,
    ) -> Run:
        """See `Model.run`."""
        visits = Visits(tokens, read, edits, self.info.shape, gradients=gradients)
        positions = None if logits_at is None or logits_at == "all" else logits_positions(tokens, logits_at)  # type: ignore[arg-type]
        keep = None if LOGITS in visits.sites else positions
        needed = logits_at is not None or LOGITS in visits.sites
        logits = None
        if needed or not visits.done:
            with torch.set_grad_enabled(gradients):
                logits = self._logits(visits, keep, needed=needed)
        if logits is not None:
            logits = _asked_for(visits.at(LOGITS, logits) if keep is None else logits, logits_at, positions, keep)
        reads, fired = visits.result()
        if logits is not None:
            finite_or_raise("the logits", logits.detach())
        return Run(reads, logits, fired)

    def _logits(self, visits: Visits, keep: tuple[int, ...] | None, *, needed: bool) -> Tensor | None:
        """One pass; logits [B, T, V], or [B, 1, V] at the positions to keep, or none where it could stop early."""
        hf = self._plain()
        ids = pad_ids(visits.tokens, 0, hf.device)
        with self._hooked(visits, keep, may_stop=not needed):
            try:
                return hf(input_ids=ids, use_cache=False).logits
            except _AllDone:
                return None

    @contextmanager
    def _hooked(self, visits: Visits, keep: tuple[int, ...] | None, *, may_stop: bool) -> Iterator[None]:
        """Hooks at the wanted places, for the time of one pass."""

        def visit(hook: nn.Module, layout: Layout, layer_sites: Sequence[Site], width: int) -> None:
            def act(_module: nn.Module, _inputs: object, x: Tensor) -> Tensor:
                for site in layer_sites:
                    x = _to(layout, visits.at(site, _from(layout, x, width)))
                if may_stop and visits.done:
                    raise _AllDone
                return x

            handles.append(hook.register_forward_hook(act))

        handles: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for hook, layout, sites in self._wanted(visits):
                visit(hook, layout, sites, self.info.d_head)
            for layer in {site.layer for site in visits.sites if site.kind == "resid_mid"}:
                handles += _watch_middle(self._places[layer or 0], Site("resid_mid", layer), visits, may_stop)
            if keep is not None:
                handles.append(self._bridge.unembed.hook_in.register_forward_hook(_gather(keep)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _wanted(self, visits: Visits) -> Iterator[tuple[nn.Module, Layout, list[Site]]]:
        """The hook points of the wanted places, with the sites that each stands for, in order."""
        entry = [site for site in (EMBED, Site("resid_pre", 0)) if site in visits.sites]
        if entry:
            yield self._places[0]["resid_pre"].hook, "as_is", entry
        for site in visits.sites - {*entry, LOGITS, FINAL_NORM}:
            if site.kind != "resid_mid":
                assert site.layer is not None
                place = self._places[site.layer][site.kind]
                yield place.hook, place.layout, [site]
        if FINAL_NORM in visits.sites:
            yield self._bridge.ln_final.hook_out, "as_is", [FINAL_NORM]

    def generate(
        self, tokens: Tokens, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0,
        edits: Sequence[Edit] = (),
    ) -> tuple[tuple[int, ...], ...]:  # fmt: skip
        """See `Model.generate`; keys and values of earlier tokens are kept between steps."""
        Visits(tokens, (), edits, self.info.shape)  # the checks, before anything runs
        stop = getattr(self._plain().generation_config, "eos_token_id", None)
        return generate(
            self._begin, tokens, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, edits=edits,
            n_ctx=self.info.n_ctx, stop=stop if isinstance(stop, list) else [] if stop is None else [stop],
        )  # fmt: skip

    def _begin(self, tokens: Tokens, edits: Sequence[Edit]) -> Advance:
        hf = self._plain()
        cache = DynamicCache(config=hf.config)
        lasting = [edit for edit in edits if edit.positions is None]

        def advance(added: Tokens) -> Tensor:
            visits = Visits(added, (), lasting if cache.get_seq_length() else edits, self.info.shape)
            keep = None if LOGITS in visits.sites else added.last
            with torch.no_grad(), self._hooked(visits, keep, may_stop=False):
                ids = pad_ids(added, 0, hf.device)
                logits = hf(input_ids=ids, past_key_values=cache, use_cache=True).logits
            logits = logits if keep is not None else visits.at(LOGITS, logits)
            visits.result()
            return logits[:, -1]

        return advance

    def close(self) -> None:
        """Free the weights."""
        self._hf = self.anatomy = None
        self._no_anatomy = f"{self.info.name} was closed; load it again."
        self._places = []
        del self._bridge
        gc.collect()

    def _plain(self) -> PreTrainedModel:
        if self._hf is None:
            raise Unavailable(f"{self.info.name} was closed; load it again.")
        return self._hf


def _bridge(hf_model: PreTrainedModel) -> TransformerBridge:
    name = type(hf_model).__name__
    try:
        return build_bridge_from_module(hf_model, name, hf_config=hf_model.config)
    except ValueError as error:
        raise Unsupported(
            f"TransformerLens has no bridge for {name} ({error}); load the model with backend='nnsight' instead."
        ) from error


def _places(block: Any, info: ModelInfo) -> dict[SiteKind, Place]:
    """The hook points of one block; what an architecture lacks is left out."""
    q, k = _query_key(block.attn, info)
    wanted: dict[SiteKind, tuple[Callable[[], nn.Module], Layout]] = {
        "resid_pre": (lambda: block.hook_in, "as_is"),
        "resid_post": (lambda: block.hook_out, "as_is"),
        "attn_out": (lambda: block.hook_attn_out, "as_is"),  # the bridge points these two past any post-norm
        "mlp_out": (lambda: block.hook_mlp_out, "as_is"),
        "head": (lambda: block.attn.o.hook_in, "flat_heads"),
        "q": (lambda: q.hook, q.layout),
        "k": (lambda: k.hook, k.layout),
        "v": (lambda: block.attn.v.hook_out, "flat_heads"),
        "scores": (lambda: block.attn.hook_attn_scores, "as_is"),
        "pattern": (lambda: block.attn.hook_pattern, "as_is"),
        "neuron": (lambda: block.mlp.out.hook_in, "as_is"),
    }
    found: dict[SiteKind, Place] = {}
    for kind, (hook, layout) in wanted.items():
        try:
            found[kind] = Place(hook(), layout)
        except AttributeError:
            continue
    return found


def _query_key(attention: Any, info: ModelInfo) -> tuple[Place, Place]:
    """Queries and keys as they enter the product."""
    if info.positional != "rotary":
        return Place(attention.q.hook_out, "flat_heads"), Place(attention.k.hook_out, "flat_heads")
    if isinstance(attention, JointQKVPositionEmbeddingsAttentionBridge):
        return _after_rotation(attention)
    return Place(attention.hook_rot_q, "heads_first"), Place(attention.hook_rot_k, "heads_first")


def _after_rotation(attention: Any) -> tuple[Place, Place]:
    """Hook points behind the rotation, which the bridge's fused attention does not have."""
    rotate = attention._apply_rotary_pos_emb
    q_hook, k_hook = HookPoint(), HookPoint()

    def rotate_and_tell(*args: Tensor) -> tuple[Tensor, Tensor]:
        q, k = rotate(*args)
        return q_hook(q), k_hook(k)

    object.__setattr__(attention, "_apply_rotary_pos_emb", rotate_and_tell)
    return Place(q_hook, "heads_first"), Place(k_hook, "heads_first")


def _watch_middle(
    places: dict[SiteKind, Place], site: Site, visits: Visits, may_stop: bool
) -> list[torch.utils.hooks.RemovableHandle]:
    """resid_mid = resid_pre + attn_out; a change of it is made through attn_out, so that both of its readers see it."""
    entering: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: object, x: Tensor) -> None:
        entering.append(x)

    def act(_module: nn.Module, _inputs: object, attn_out: Tensor) -> Tensor:
        before = entering.pop()
        middle = before + attn_out
        changed = visits.at(site, middle)
        if may_stop and visits.done:
            raise _AllDone
        return attn_out if changed is middle else changed - before

    hooks = places["resid_pre"].hook, places["attn_out"].hook
    return [hooks[0].register_forward_hook(remember), hooks[1].register_forward_hook(act)]


def _gather(positions: Sequence[int]) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """Only the positions asked for go through the unembedding: with a big vocabulary it is the largest tensor."""

    def gather(_module: nn.Module, _inputs: object, x: Tensor) -> Tensor:
        return at_positions(x, positions).unsqueeze(1)

    return gather


def _asked_for(
    logits: Tensor,
    logits_at: Sequence[int] | Literal["all"] | None,
    positions: tuple[int, ...] | None,
    keep: tuple[int, ...] | None,
) -> Tensor | None:
    if logits_at is None or positions is None:
        return None if logits_at is None else logits
    return logits[:, 0] if keep is not None else at_positions(logits, positions)


def _from(layout: Layout, x: Tensor, width: int) -> Tensor:
    """From the hook point's layout to that of `sites.py`; always a view."""
    if layout == "as_is":
        return x
    return x.unflatten(-1, (-1, width)) if layout == "flat_heads" else x.transpose(1, 2)


def _to(layout: Layout, x: Tensor) -> Tensor:
    """Back again."""
    if layout == "as_is":
        return x
    return x.flatten(-2) if layout == "flat_heads" else x.transpose(1, 2)
