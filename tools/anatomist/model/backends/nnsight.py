"""The nnsight backend: a Hugging Face model read and edited through traces of nnterp's StandardizedTransformer.

It shares no hooks with the local backend, which makes each a check of the other. Ids are padded on the right here and
handed over as tensors, so that positions count the same on every backend. nnsight is not thread-safe, not even over
two models: one thread of work a process.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from nnsight.intervention.interleaver import Mediator
from nnterp import StandardizedTransformer
from torch import Tensor

from ...errors import AnatomistError, Unavailable, Unsupported
from ..edits import Edit
from ..protocol import ModelInfo, Run, Weights
from ..sites import KINDS, Site
from ..tokens import Tokens
from .architecture import HFWeights, try_anatomy
from .describe import describe
from .generation import generate, uncached
from .interventions import Visits, at_positions, finite_or_raise, logits_positions, pad_ids
from .nnsight_places import Places
from .proof import proven_kinds
from .text import TextCodec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGITS = Site("logits")
NOT_THERE = (Mediator.MissedProviderError, AttributeError)  # a place that the traced source does not have


class NNsightModel:
    """See `Model`. The model given is wrapped in place and belongs to it."""

    def __init__(
        self,
        hf_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str,
        source: str = "",
        revision: str | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        """
        Raises:
            Unsupported: an architecture that nnterp does not know.
        """
        hf_model.eval().set_attn_implementation("eager")
        hf_model.requires_grad_(False)
        self.anatomy, self._no_weights = try_anatomy(hf_model)
        self._weights = None if self.anatomy is None else HFWeights(self.anatomy)
        self.info: ModelInfo = describe(
            hf_model, tokenizer, name=name, source=source or name, backend="nnsight", sites=KINDS,
            load_seconds=load_seconds, revision=revision,
        )  # fmt: skip
        self.text = TextCodec(tokenizer, d_vocab=self.info.d_vocab, n_ctx=self.info.n_ctx)
        self._hf: PreTrainedModel | None = hf_model
        self._keeps_positions = "logits_to_keep" in inspect.signature(hf_model.forward).parameters
        self._traced = _standardized(hf_model, tokenizer)
        self._places = Places(self._traced, self.anatomy, eager=self.info.attention == "eager")
        self._declare(self._places.kinds)
        cap = getattr(hf_model.config, "attn_logit_softcapping", None)
        self._declare(proven_kinds(self, () if cap is None else (cap,)))

    def _declare(self, kinds: Collection[str]) -> None:
        self.info = self.info.model_copy(update={"sites": tuple(kind for kind in KINDS if kind in kinds)})

    @property
    def weights(self) -> Weights:
        if self._weights is None:
            raise Unsupported(self._no_weights)
        return self._weights

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
        """See `Model.run`. One trace."""
        visits = Visits(tokens, read, edits, self.info.shape, gradients=gradients)
        positions = None if logits_at is None or logits_at == "all" else logits_positions(tokens, logits_at)  # type: ignore[arg-type]
        sparse = positions is not None and self._keeps_positions and LOGITS not in visits.sites
        kept = sorted(set(positions)) if positions is not None and sparse else None
        logits = None
        if logits_at is not None or not visits.done:
            logits = self._logits(visits, kept, needed=logits_at is not None or LOGITS in visits.sites)
        reads, fired = visits.result()
        if logits_at is None or logits is None:
            return Run(reads, None, fired)
        if positions is not None:
            logits = at_positions(logits, positions if kept is None else [kept.index(p) for p in positions])
        finite_or_raise("the logits", logits.detach())
        return Run(reads, logits, fired)

    def generate(
        self, tokens: Tokens, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0,
        edits: Sequence[Edit] = (),
    ) -> tuple[tuple[int, ...], ...]:  # fmt: skip
        """See `Model.generate`; each new token is a whole trace."""
        Visits(tokens, (), edits, self.info.shape)  # the checks, before anything runs
        stop = getattr(self._plain().generation_config, "eos_token_id", None)
        return generate(
            uncached(self), tokens, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, edits=edits,
            n_ctx=self.info.n_ctx, stop=stop if isinstance(stop, list) else [] if stop is None else [stop],
        )  # fmt: skip

    def close(self) -> None:
        """Free the weights."""
        self._hf = self._weights = self.anatomy = None
        self._no_weights = f"{self.info.name} was closed; load it again."
        del self._traced, self._places
        gc.collect()

    def _plain(self) -> PreTrainedModel:
        if self._hf is None:
            raise Unavailable(f"{self.info.name} was closed; load it again.")
        return self._hf

    def _logits(self, visits: Visits, kept: list[int] | None, *, needed: bool) -> Float[Tensor, "B P V"] | None:
        """One trace through the wanted places; all logits or those at the positions kept, none if they are not needed.

        Raises:
            Unsupported: the traced source lacks a wanted place.
        """
        device = self._plain().device
        options: dict[str, Any] = {"use_cache": False}
        if kept is not None:
            options["logits_to_keep"] = torch.tensor(kept, device=device)
        found: list[Tensor] = []
        refused: list[AnatomistError] = []

        def body(stop: Callable[[], None]) -> None:
            # nnsight runs this in a thread of its own, where torch's gradient mode is at its default.
            with torch.set_grad_enabled(visits.gradients):
                try:
                    self._places.visit(visits)
                    if needed:
                        found.append(visits.at(LOGITS, self._traced.output.logits))
                except AnatomistError as error:  # kept aside: nnsight would change its class
                    refused.append(error)
            if not found:
                stop()

        with torch.set_grad_enabled(visits.gradients):
            try:
                self._enter(pad_ids(visits.tokens, 0, device), options, body)
            except NOT_THERE as error:
                wanted = ", ".join(sorted({site.kind for site in visits.sites}))
                raise Unsupported(
                    f"nnsight finds no such place in {self.info.architecture} (asked for {wanted}): "
                    f"{str(error).splitlines()[-1]}. Load the model with backend='local'."
                ) from error
        if refused:
            raise refused[0]
        return found[0] if found else None

    def _enter(
        self, ids: Int[Tensor, "B T"], options: dict[str, Any], body: Callable[[Callable[[], None]], None]
    ) -> None:
        """Run the body inside a trace. nnsight reads the source of the block: its body stays on a line of its own."""
        with self._traced.trace({"input_ids": ids}, **options) as tracer:
            body(tracer.stop)


def _standardized(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """nnterp's model over a plain one; its own checks of the names are for models whose anatomy we do not know."""
    try:
        return StandardizedTransformer(
            hf_model, tokenizer=tokenizer, check_renaming=try_anatomy(hf_model)[0] is None, attn_implementation="eager"
        )
    except Exception as error:  # nnterp raises several kinds, some of them made by nnsight on the spot
        raise Unsupported(
            f"nnterp cannot standardise {type(hf_model).__name__}: {(str(error).splitlines() or ['no reason'])[-1]}. "
            "Load the model with backend='local'."
        ) from error
