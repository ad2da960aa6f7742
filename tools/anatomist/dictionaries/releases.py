"""SAELens's directory of released dictionaries, read from the file that the package carries: no network, no torch.

A release is a set of dictionaries trained on one model; an id names one of them. The directory states L0 and explained
variance where the authors gave them (SAELens itself fills gaps with 0 and 1: here they are absent).
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..errors import Unavailable, UnknownName
from ..result import Frozen

Weights = Literal["safetensors", "npz", "pickle"]
PICKLED = frozenset(  # loaders of SAELens that read pickles
    {"connor_rob_hook_z", "goodfire", "deepseek_r1", "qwen_scope", "dictionary_learning_1"}
)
_ARRAYS = frozenset({"gemma_2", "gemma_2_transcoder"})
_WIDTH = re.compile(r"width[_-](2pow\d+|\d+[km])|-w?(\d+k)(?![a-z0-9])|_(\d+x)\b|hook_\w+?_(\d{4,})\b")
_HOOK = re.compile(r"blocks\.\d+\.(?:\w+\.)?hook_[a-z_]+?(?=$|__|/|_\d)")
_KIND = (  # what a release's name says of the hook, for ids that name the layer alone
    (re.compile(r"transcoders|clt-as-per-layer"), "MLP input of layer {} -> blocks.{}.hook_mlp_out"),
    (re.compile(r"lxa_"), "blocks.{}.hook_attn_out"),
    (re.compile(r"-att(?:-|$)"), "blocks.{}.attn.hook_z"),
    (re.compile(r"-mlp(?:-|$)|lxm_"), "blocks.{}.hook_mlp_out"),
    (re.compile(r"-res(?:-|$)|lxr_|llama_scope_r1|qwen-scope|andyrdt|goodfire|qresearch"), "blocks.{}.hook_resid_post"),
)
_LAYER = re.compile(r"(?:layers?|^l|resid_post_layer)[_.-]?(\d+)", re.IGNORECASE)


class Released(Frozen):
    """One dictionary of a release."""

    name: str = Field(description="Pass it to load_sae as `sae`: release and id, joined by a colon.")
    release: str
    id: str
    model: str = Field(description="Model it was trained on.")
    repository: str = Field(description="Hub repository that holds it.")
    hook: str | None = Field(description="Hook, as far as the id tells; absent: load_sae reads it from the metadata.")
    layer: int | None = Field(description="Layer, as far as the id tells.")
    width: str | None = Field(description="Width as the names tell it, e.g. '16k'; absent where they do not.")
    l0: float | None = Field(description="Mean number of active features a token, as stated; absent: not stated.")
    explained_variance: float | None = Field(description="As stated; absent: not stated.")
    weights: Weights = Field(description="Format; pickles are refused.")
    centred: bool = Field(description="Whether it was trained on a residual stream with centred writing weights.")
    norm_factor: float | None = Field(default=None, description="Factor that brings activations to its norm.")


def released(release: str, id: str) -> Released:
    """One dictionary of the directory.

    Raises:
        UnknownName: no such release, or no such id in it; the nearest are listed.
    """
    entries = _directory()
    if release not in entries:
        raise UnknownName.of("release", release, entries, "Call list_saes with the model's name.")
    rows = _rows(release)
    if id not in rows:
        raise UnknownName.of(f"id in {release}", id, rows, "Call list_saes with this release.")
    return rows[id]


def releases_for(model: str | None = None, release: str | None = None) -> tuple[Released, ...]:
    """All dictionaries of a model (by any of its usual names), of a release, or of everything.

    Raises:
        UnknownName: a release that is not in the directory.
    """
    entries = _directory()
    if release is not None and release not in entries:
        raise UnknownName.of("release", release, entries, "Leave it out to see all releases of a model.")
    chosen = [release] if release is not None else list(entries)
    names = [name for name in chosen if model is None or same_model(model, str(entries[name]["model"]))]
    return tuple(row for name in names for row in _rows(name).values())


def models() -> tuple[str, ...]:
    """Models that have releases."""
    return tuple(sorted({str(entry["model"]) for entry in _directory().values()}))


def same_model(a: str, b: str) -> bool:
    """Whether two names mean the same model: owner, case and usual by-names ('gpt2' is 'gpt2-small') left aside."""
    return plain_name(a) == plain_name(b)


def plain_name(model: str) -> str:
    name = model.rstrip("/").rsplit("/", 1)[-1].lower().replace("_", "-")
    name = {"gpt2": "gpt2-small", "smollm2-135m-instruct": "smollm2-135m"}.get(name, name)
    name = name.removeprefix("meta-")
    return re.sub(r"^(gemma-?3)-270m.*q4.*$", "gemma-3-270m", name).replace("gemma3-", "gemma-3-")


@cache
def _directory() -> dict[str, Any]:
    import yaml

    spec = importlib.util.find_spec("sae_lens")  # finds without importing: the package takes seconds and torch
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise Unavailable("the package sae-lens is not installed; install it to load released dictionaries.")
    text = (Path(folders[0]) / "pretrained_saes.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def _rows(release: str) -> dict[str, Released]:
    entry = _directory()[release]
    return {str(item["id"]): _row(release, entry, item) for item in entry["saes"]}


def _row(release: str, entry: dict[str, Any], item: dict[str, Any]) -> Released:
    id, path, loader = str(item["id"]), str(item["path"]), entry.get("conversion_func")
    told = f"{path}/{id}/{release}"
    hook, width = _HOOK.search(told), _WIDTH.search(told)
    layer = re.match(r"blocks\.(\d+)", hook[0]) if hook else _LAYER.search(id) or _LAYER.search(path)
    overrides = entry.get("config_overrides") or {}
    return Released(
        name=f"{release}:{id}", release=release, id=id, model=str(entry["model"]), repository=str(entry["repo_id"]),
        hook=hook[0] if hook else _hook(release, layer[1]) if layer else None,
        layer=int(layer[1]) if layer else None,
        width=next((w for w in width.groups() if w), None) if width else None,
        l0=_number(item.get("l0")),
        explained_variance=_number(item.get("variance_explained")),
        weights="pickle" if loader in PICKLED else "npz" if loader in _ARRAYS else "safetensors",
        centred=bool((overrides.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights")),
        norm_factor=_number(item.get("norm_scaling_factor")),
    )  # fmt: skip


def _hook(release: str, layer: str) -> str | None:
    """The hook of an id that names the layer alone."""
    return next((hook.replace("{}", layer) for pattern, hook in _KIND if pattern.search(release)), None)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None
