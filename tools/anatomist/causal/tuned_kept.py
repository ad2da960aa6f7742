"""Maps of a tuned lens as arrays: written layer by layer where a run can take them so, and read from an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments
from ..model.sites import Site
from .tuned import Map

if TYPE_CHECKING:
    from torch import Tensor

    from ..technique import OpenStream

EMBED = "embed"
AXES, UNIT = ("layer", "from", "to"), "activation per activation"


class Kept(NamedTuple):
    """An array to keep with a run."""

    name: str
    tensor: Tensor
    axes: tuple[str, ...]
    unit: str


class Keeper:
    """Collects maps; with a stream only their biases stay in memory."""

    def __init__(self, sites: Sequence[Site], width: int, stream: OpenStream | None) -> None:
        self.numbers, self.maps = [_number(site) for site in sites], list[Map]()
        shape = (len(sites), width, width)
        self.stream = None if stream is None else stream("maps", shape=shape, dtype="float32", axes=AXES, unit=UNIT)

    def add(self, maps: Sequence[Map]) -> None:
        """The maps of the next layers."""
        for own in maps:
            if self.stream is not None:
                self.stream.append(own.weight.float().cpu()[None])
            self.maps.append(own if self.stream is None else Map(own.weight[:0], own.bias))

    def close(self) -> list[Kept]:
        """What is still to be kept: biases, which layers, and the maps where they were not streamed."""
        from torch import stack, tensor

        kept = [
            Kept("bias", stack([m.bias for m in self.maps]).float().cpu(), ("layer", "d_model"), "activation"),
            Kept("levels", tensor(self.numbers), ("layer",), "layer; -1 for the embedding"),
        ]
        if self.stream is not None:
            self.stream.close()
            return kept
        return [Kept("maps", stack([m.weight for m in self.maps]).float().cpu(), AXES, UNIT), *kept]


def earlier_maps(run: str, arrays: Sequence[Tensor], sites: Sequence[Site], like: Tensor) -> dict[Site, Map]:
    """Maps from the arrays (maps, bias, levels) that a run kept, on the device and in the type of `like` [1, D].

    Raises:
        BadArguments: they are of another width, or some layer has none.
    """
    weight, bias, numbers = arrays
    if weight.shape[-1] != like.shape[-1]:
        raise BadArguments(f"the maps of run {run} are of width {weight.shape[-1]}, this model of {like.shape[-1]}.")
    place = {int(number): i for i, number in enumerate(numbers.tolist())}
    if absent := [level_of(site) for site in sites if _number(site) not in place]:
        held = ", ".join(EMBED if n < 0 else str(n) for n in place)
        raise BadArguments(f"run {run} has no map for layers {', '.join(absent)}; it has {held}: name those `layers`.")
    return {site: Map(weight[place[_number(site)]].to(like), bias[place[_number(site)]].to(like)) for site in sites}


def level_of(site: Site) -> str:
    """'embed' for what enters block 0, else the layer."""
    return EMBED if site.kind == "resid_pre" else str(site.layer)


def _number(site: Site) -> int:
    return -1 if site.kind == "resid_pre" else site.layer or 0
