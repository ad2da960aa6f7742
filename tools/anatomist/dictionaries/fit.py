"""Whether a dictionary belongs to a model: its width, its site, its name."""

from __future__ import annotations

from ..errors import BadArguments
from ..model.protocol import ModelInfo
from ..model.sites import Site, check_site
from .protocol import DictionaryInfo
from .releases import plain_name

IN_MEMORY = "in memory"  # source of models that were wrapped: their name says nothing


def check_fit(info: DictionaryInfo, model: ModelInfo, *, other_model: bool = False) -> tuple[str, ...]:
    """Cautions in words where a dictionary can be used on a model, though not all is as it was in its training.

    Raises:
        BadSite: the model has no such layer or site.
        BadArguments: another width, or a dictionary of another model (unless `other_model`).
    """
    for site, width in ((info.reads, info.d_in), (info.writes, info.d_out)):
        check_site(site, model.shape)
        there = width_of(site, model)
        if there != width:
            raise BadArguments(
                f"{info.name} has width {width} at {site}; {model.name} has {there} there. It was trained on "
                f"{info.model or 'a model its metadata do not name'}: load that model, or choose a dictionary of "
                f"{model.name} (list_saes)."
            )
    return (*_name(info, model, other_model), *_bos(info, model))


def width_of(site: Site, model: ModelInfo) -> int:
    """Numbers a token at a site, heads side by side."""
    return {"head": model.n_heads * model.d_head, "neuron": model.d_mlp}.get(site.kind, model.d_model)


def _name(info: DictionaryInfo, model: ModelInfo, other_model: bool) -> tuple[str, ...]:
    if info.model is None:
        return (f"The metadata of {info.name} do not name its model: judge by what is measured here.",)
    ours, theirs = {plain_name(model.name), plain_name(model.source)}, plain_name(info.model)
    if theirs in ours:
        return ()
    told = f"{info.name} was trained on {info.model}; the model here is {model.source or model.name}."
    named = model.source != IN_MEMORY and not _is_folder(model.source)
    if named and not other_model and not any(a.startswith(theirs) or theirs.startswith(a) for a in ours):
        raise BadArguments(
            f"{told} Its features mean nothing there: load {info.model}, or choose a dictionary of this model "
            "(list_saes). If both names mean the same weights, call load_sae with other_model=true."
        )
    return (f"{told} If these are not the same weights, its features may not carry over: judge by what is measured.",)


def _is_folder(source: str) -> bool:
    return source.startswith(("/", ".", "~")) or "\\" in source


def _bos(info: DictionaryInfo, model: ModelInfo) -> tuple[str, ...]:
    if info.bos is None or info.bos == model.adds_bos:
        return ()
    return (
        f"{info.name} was trained {'with' if info.bos else 'without'} BOS at the start of each row; the tokenizer of "
        f"{model.name} {'adds' if model.adds_bos else 'adds no'} BOS: pass bos={str(info.bos).lower()} to techniques.",
    )
