"""Names of the single parts a layer is made of: heads L3H7, key-value heads L3KV1, neurons L3N17."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import BadArguments, BadSite
from ..model.sites import Shape, Site, SiteKind, check_site

LETTERS: Mapping[str, str] = {"head": "H", "q": "H", "k": "KV", "v": "KV", "neuron": "N"}
AXES: Mapping[str, str] = {"H": "head", "KV": "key-value head", "N": "neuron"}


def unit_name(site: Site) -> str:
    """'L3H7', 'L3KV1', 'L3N17'; a place without an index is written 'L3 mlp_out'."""
    if site.index is None:
        return f"L{site.layer} {site.kind}"
    return f"L{site.layer}{LETTERS[site.kind]}{site.index}"


def parse_unit(text: str, kind: SiteKind, shape: Shape) -> Site:
    """Read a unit of one kind and check that the model has it.

    Raises:
        BadArguments: this kind of place has no such units.
        BadSite: not written as one, or outside the model.
    """
    if kind not in LETTERS:
        raise BadArguments(f"{kind} has no heads: leave `heads` out and choose `layers`, or take a site with heads.")
    letter, count = LETTERS[kind], shape.count(kind)
    found = re.fullmatch(r"L(\d+)([A-Z]+)(\d+)", text)
    if not found or found[2] != letter:
        raise BadSite(
            f"{text!r} is no {AXES[letter]} of site {kind!r}. Write it like L3{letter}0: layers are 0 to "
            f"{shape.n_layers - 1}, {letter} 0 to {count - 1} in each."
        )
    return check_site(Site(kind, int(found[1]), int(found[3])), shape)


def chosen_layers(layers: Sequence[int] | None, shape: Shape) -> tuple[int, ...]:
    """The layers asked for, all when none are named.

    Raises:
        BadArguments: none, or one named twice.
        BadSite: one that does not exist.
    """
    if layers is None:
        return tuple(range(shape.n_layers))
    if not layers or len(set(layers)) < len(layers):
        raise BadArguments(f"layers {list(layers)}: name at least one, each once; or leave `layers` out for all.")
    for layer in layers:
        if not 0 <= layer < shape.n_layers:
            raise BadSite(f"layer {layer} does not exist: layers are 0 to {shape.n_layers - 1}.")
    return tuple(sorted(layers))


def chosen_units(
    kind: SiteKind, heads: Sequence[str] | None, layers: Sequence[int] | None, shape: Shape
) -> tuple[Site, ...]:
    """The heads (or key-value heads, or neurons) asked for: by name, or all of the layers.

    Raises:
        BadArguments: an empty list, one named twice, or heads outside the layers that are also named.
        BadSite: see `parse_unit`.
    """
    within = chosen_layers(layers, shape)
    if heads is None:
        return tuple(Site(kind, layer, i) for layer in within for i in range(shape.count(kind)))
    units = [parse_unit(text, kind, shape) for text in heads]
    if not units or len(set(units)) < len(units):
        raise BadArguments(f"heads {list(heads)}: name at least one, each once; or leave `heads` out for all.")
    if outside := [unit_name(u) for u in units if u.layer not in within]:
        raise BadArguments(f"{', '.join(outside)} lie outside layers {list(within)}; name heads or layers, not both.")
    return tuple(sorted(units, key=lambda u: (u.layer or 0, u.index or 0)))
