"""Names of hooks in the metadata of a dictionary -> the site it reads, and what it is given of it.

TransformerLens: HookedTransformer's names and those of its bridge; Hugging Face: module paths (a decoder layer's output
is its `resid_post`). Names whose place has no site here, or whose value differs from the site's (queries and keys
before the rotary turn), are refused.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import BadSite
from ..model.sites import Shape, Site, SiteKind, check_site
from .protocol import Input

_BLOCK: dict[str, tuple[SiteKind, Input]] = {
    "hook_resid_pre": ("resid_pre", "plain"),
    "hook_in": ("resid_pre", "plain"),
    "hook_resid_mid": ("resid_mid", "plain"),
    "hook_mlp_in": ("resid_mid", "plain"),
    "hook_resid_post": ("resid_post", "plain"),
    "hook_out": ("resid_post", "plain"),
    "hook_attn_out": ("attn_out", "plain"),
    "attn.hook_out": ("attn_out", "plain"),
    "hook_mlp_out": ("mlp_out", "plain"),
    "mlp.hook_out": ("mlp_out", "plain"),
    "attn.hook_z": ("head", "plain"),
    "mlp.hook_post": ("neuron", "plain"),
    "ln2.hook_normalized": ("resid_mid", "scaled"),
    "mlp.hook_in": ("resid_mid", "normed"),
}
_MODULE: dict[str, SiteKind] = {"": "resid_post", ".mlp": "mlp_out", ".self_attn": "attn_out", ".attn": "attn_out"}
_LAYERS = re.compile(r"(?:model\.|transformer\.|gpt_neox\.)?(?:layers|h)\.(\d+)(\.\w+)?(?:\.output)?")
_BLOCKS = re.compile(r"blocks\.(\d+)\.(.+)")
_INTO_MLP = ("pre_feedforward_layernorm.output", "post_attention_layernorm.output")  # Hugging Face: after the norm


class Place(NamedTuple):
    """A site, and what a dictionary is given of it."""

    site: Site
    input: Input


def place_of(hook: str, *, hf_hook: str | None = None) -> Place:
    """The place of a hook's name. `hf_hook`: the name in Hugging Face's model, where the release gives it beside.

    Raises:
        BadSite: no site holds what that hook sees.
    """
    if hook == "hook_embed":
        return Place(Site("embed"), "plain")
    if (found := _BLOCKS.fullmatch(hook)) and found[2] in _BLOCK:
        kind, given = _BLOCK[found[2]]
        normed = found[2] == "hook_mlp_in" and hf_hook is not None and hf_hook.endswith(_INTO_MLP)
        return Place(Site(kind, int(found[1])), "normed" if normed else given)
    if (found := _LAYERS.fullmatch(hook)) and (found[2] or "") in _MODULE:
        return Place(Site(_MODULE[found[2] or ""], int(found[1])), "plain")
    raise BadSite(
        f"the dictionary was trained at the hook {hook!r}, for which there is no site. Known within a block: "
        f"{', '.join(_BLOCK)}; whole model: hook_embed. Give the site yourself (site='blocks.3.resid_post') if it is "
        "one of these under another name."
    )


def in_model(place: Place, shape: Shape) -> Place:
    """The place in a model: where attention and MLP read the same residual, the MLP's input is `resid_pre`.

    Raises:
        BadSite: the model has no such layer or site.
    """
    site = place.site
    if site.kind == "resid_mid" and "resid_mid" not in shape.kinds and place.input != "plain":
        site = site._replace(kind="resid_pre")
    return Place(check_site(site, shape), place.input)
