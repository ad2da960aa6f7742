"""PNG from a figure, without a browser and without a network."""

from __future__ import annotations

from ..figures import Figure
from .specification import spec
from .theme import Theme, config

VEGALITE = "6.4"


def png(figure: Figure, *, scale: float = 2.0, theme: Theme = "light") -> bytes:
    """The picture with title and caption; `scale` is pixels per drawn pixel."""
    from vl_convert import vegalite_to_png

    drawn = config(theme) | {"aria": False}  # nothing reads a picture's labels aloud, and writing them takes time
    return vegalite_to_png(spec(figure), vl_version=VEGALITE, scale=scale, config=drawn, allowed_base_urls=[])
