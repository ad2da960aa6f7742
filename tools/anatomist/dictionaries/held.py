"""Dictionaries that are loaded, by handle; each measured on the model in hand when it is loaded.

What was asked for is also kept in the workspace (`dictionaries/<handle>.json`), so that a handle outlives the process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from ..devices import memory_available
from ..errors import BadPrompts, UnknownName, WouldNotFit
from ..handles import Handles, free_name
from ..model.protocol import Model
from ..model.sites import parse_site
from ..model.tokens import Tokens
from ..prompts.corpus import Corpus, rows
from ..result import Frozen
from .fit import check_fit
from .mismatch import diagnosis
from .protocol import Dictionary, DictionaryInfo
from .quality import Quality, measure_quality
from .sources import Found, find, is_folder, shipped

MEASURED_TOKENS, MEASURED_WIDTH = 512, 128
Progress = Callable[[float, float, str], None]


class DictionaryRequest(Frozen):
    """What was asked of load_sae; the same request on the same model gives the same dictionary again."""

    sae: str = Field(description="Shipped name, folder, or 'release:id'.")
    site: str | None = Field(default=None, description="Site that overrules the metadata.")
    dtype: str | None = None
    other_model: bool = Field(default=False, description="Whether the model may have another name than the metadata's.")


class LoadedDictionary(Frozen):
    """One dictionary held by the worker."""

    handle: str = Field(description="Pass it as `sae`.")
    request: DictionaryRequest
    model: str = Field(description="Handle of the model it was measured on.")
    info: DictionaryInfo
    quality: Quality | None = Field(description="Measured at load; absent where the model could not read the text.")


@dataclass(frozen=True, eq=False)
class _Entry:
    loaded: LoadedDictionary
    dictionary: Dictionary


class Held:
    """The loaded dictionaries of one process."""

    def __init__(self, workspace: Path) -> None:
        self._handles = Handles(workspace / "dictionaries", DictionaryRequest, "load_sae")
        self._entries: dict[str, _Entry] = {}

    def loaded(self) -> tuple[LoadedDictionary, ...]:
        return tuple(entry.loaded for entry in self._entries.values())

    def load(
        self, request: DictionaryRequest, model: Model, model_handle: str, text: Corpus | None, progress: Progress
    ) -> LoadedDictionary:
        """Load, check that it fits the model, and measure it there; the same request returns what is loaded.

        Raises:
            BadArguments, BadSite: it does not belong to this model. WouldNotFit: it is larger than the free memory.
            And all of `saelens.load_dictionary`.
        """
        for entry in self._entries.values():
            if entry.loaded.request == request and entry.loaded.model == model_handle:
                return entry.loaded
        from .saelens import load_dictionary  # torch and SAELens, only in the process that holds models

        progress(0, 1, f"loading {request.sae}")
        site = None if request.site is None else parse_site(request.site)
        source = find(request.sae)
        _check_room(source)
        handle = free_name(source.name, self._entries.__contains__)
        found = load_dictionary(request.sae, model=model, site=site, dtype=request.dtype, handle=handle)
        cautions = list(check_fit(found.info, model.info, other_model=request.other_model))
        quality = None
        try:
            tokens = measured_tokens(model, found.info, text)
        except BadPrompts as error:
            cautions.append(f"Not measured at load: {error}")
        else:
            quality = measure_quality(model, found, tokens, progress=progress)
            cautions += diagnosis(model, found, tokens)
        found.info = found.info.model_copy(update={"cautions": tuple(cautions)})
        loaded = LoadedDictionary(
            handle=handle, request=request, model=model_handle, info=found.info, quality=quality
        )
        self._entries[handle] = _Entry(loaded, found)
        if is_folder(request.sae):
            self._handles.remember(handle, request, place="sae")
        return loaded

    def get(self, name: str, model: Model, model_handle: str, text: Corpus | None, progress: Progress) -> Dictionary:
        """A dictionary by handle, or by a name that `load` takes, for a model.

        Raises:
            UnknownName: neither a handle nor a name. BadArguments, BadSite: it does not belong to the model.
        """
        entry = self._entries.get(name)
        if entry is not None and entry.loaded.model == model_handle:
            return entry.dictionary
        request = entry.loaded.request if entry is not None else self._request(name)
        handle = self.load(request, model, model_handle, text, progress).handle
        return self._entries[handle].dictionary

    def unload(self, handle: str) -> LoadedDictionary:
        """Free a dictionary.

        Raises:
            UnknownName: none of that handle is loaded.
        """
        if handle not in self._entries:
            raise UnknownName.of("loaded dictionary", handle, self._entries, "Call list_saes.")
        entry = self._entries.pop(handle)
        entry.dictionary.close()
        gc.collect()
        return entry.loaded

    def drop(self, model_handle: str) -> None:
        """Free the dictionaries of a model that is unloaded."""
        for handle in [h for h, entry in self._entries.items() if entry.loaded.model == model_handle]:
            self.unload(handle)

    def _request(self, name: str) -> DictionaryRequest:
        """What a handle of an earlier process stood for, or the name itself."""
        if name in shipped() or is_folder(name) or ":" in name:
            return DictionaryRequest(sae=name)
        if (request := self._handles.recall(name)) is None:
            known = [*self._entries, *self._handles.names(), *shipped()]
            raise UnknownName.of(
                "sae", name, dict.fromkeys(known),
                "Or give a folder (./my-sae), or a release and its id joined by a colon: list_saes shows them.",
            )  # fmt: skip
        return request


def measured_tokens(model: Model, info: DictionaryInfo, text: Corpus | None) -> Tokens:
    """A few hundred tokens to measure a dictionary on, as it was trained: with BOS or without.

    Raises:
        BadPrompts: no text, or one that the model cannot read.
    """
    if text is None:
        raise BadPrompts("no text was given.")
    width = min(MEASURED_WIDTH, info.context_size or MEASURED_WIDTH, model.info.n_ctx)
    return rows(text, model, width=width, n_tokens=MEASURED_TOKENS, bos=info.bos)


def _check_room(found: Found) -> None:
    """
    Raises:
        WouldNotFit: the weights are larger than the free memory. What is not on this disk yet is not known.
    """
    need, free = 2 * found.weight_bytes, memory_available()  # the file, and its numbers as they are computed with
    if need > free:
        raise WouldNotFit(
            f"the dictionary {found.name} needs about {need / 2**20:,.0f} MiB; {free / 2**20:,.0f} MiB are free. "
            "Unload a model or a dictionary, or choose a narrower one."
        )
