"""Draws a figure: as a Vega-Lite specification, as PNG without a browser, as HTML that opens without a network.

The specification holds what is shown; colours and fonts come from a theme, so that one page can be light or dark. The
drawing engine (vl-convert) is imported when the first picture is made.
"""

from .page import bundle, embed_snippet, html
from .render import png
from .specification import spec

__all__ = ["bundle", "embed_snippet", "html", "png", "spec"]
