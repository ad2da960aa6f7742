"""The local backend: a TransformerLens bridge over a plain Hugging Face model, with the weights as they are.

The bridge replaces submodules of the model by wrappers with hook points and keeps the arithmetic; nothing is folded or
centred. Where the places are is said in `local_places.py`, and what they mean is proven on every model at load
(`proof.py`), so that an unknown architecture offers only what holds.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import ParallelBlockBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ...errors import Unavailable, Unsupported
from ..edits import Edit
from ..protocol import ModelInfo, Run, Weights
from ..sites import KINDS, WHOLE_MODEL, Site, SiteKind
from ..tokens import Tokens
from .architecture import Anatomy, HFWeights, try_anatomy
from .describe import describe
from .generation import Advance, generate
from .interventions import Visits, at_positions, finite_or_raise, logits_positions, pad_ids
from .local_places import AllDone, Place, SharedMatrix, places_of, watch_middle
from .proof import proven_kinds
from .text import TextCodec

LOGITS, EMBED, FINAL_NORM = Site("logits"), Site("embed"), Site("final_norm")


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
        self._bridge = _bridge(hf_model, self.anatomy)
        hf_model.requires_grad_(False)
        rotary = self.info.positional == "rotary"
        self._places = [places_of(block, rotary=rotary) for block in self._bridge.blocks]
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
            except AllDone:
                return None

    @contextmanager
    def _hooked(self, visits: Visits, keep: tuple[int, ...] | None, *, may_stop: bool) -> Iterator[None]:
        """Hooks at the wanted places, for the time of one pass."""
        handles: list[RemovableHandle] = []
        try:
            for place, sites in self._wanted(visits):
                handles.append(place.watch(visits, sites, self.info.d_head, may_stop=may_stop))
            for site in visits.sites:  # after the hooks of the places it is made of
                if site.kind == "resid_mid" and site.layer is not None:
                    handles += watch_middle(self._places[site.layer], site, visits, may_stop=may_stop)
            if keep is not None:
                handles.append(self._bridge.unembed.hook_in.register_forward_hook(_gather(keep)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _wanted(self, visits: Visits) -> Iterator[tuple[Place, list[Site]]]:
        """The hook points of the wanted places, with the sites that each stands for, in order."""
        entry = [site for site in (EMBED, Site("resid_pre", 0)) if site in visits.sites]
        if entry:
            yield self._places[0]["resid_pre"], entry
        for site in visits.sites - {*entry, LOGITS, FINAL_NORM}:
            if site.kind != "resid_mid" and site.layer is not None:
                yield self._places[site.layer][site.kind], [site]
        if FINAL_NORM in visits.sites:
            yield Place(self._bridge.ln_final.hook_out), [FINAL_NORM]

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


def _bridge(hf_model: PreTrainedModel, anatomy: Anatomy | None) -> TransformerBridge:
    name = type(hf_model).__name__
    try:
        bridge = build_bridge_from_module(hf_model, name, hf_config=hf_model.config)
        for block, own in zip(bridge.blocks, anatomy.blocks if anatomy else (), strict=anatomy is not None):
            if own.q.layout == "interleaved":
                SharedMatrix(own).put_into(block.attn)
        return bridge
    except ValueError as error:
        raise Unsupported(
            f"TransformerLens has no bridge for {name} ({error}); load the model with backend='nnsight' instead."
        ) from error


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
