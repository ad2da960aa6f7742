"""HTML from figures: a page of its own, or a snippet for a page that carries the drawing script once."""

from __future__ import annotations

import json
import re
from functools import cache
from html import escape

from ..figures import Figure
from .render import VEGALITE
from .specification import spec
from .theme import PALETTES, config

_GLOBALS = "window.vegaEmbed = vegaEmbed;"
_HELPER = """
window.anatomistDraw = (id, spec) => {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const draw = () => vegaEmbed(document.getElementById(id), spec, {
    mode: 'vega-lite', renderer: 'svg', config: dark.matches ? DARK : LIGHT,
    actions: {export: true, source: false, compiled: false, editor: false},
  }).catch(error => { document.getElementById(id).textContent = 'This picture could not be drawn: ' + error; });
  dark.addEventListener('change', draw);
  draw();
};
"""


@cache
def bundle() -> str:
    """The drawing script, to stand once in a page's <script> before any snippet; needs no network."""
    from vl_convert import javascript_bundle

    themes = {name.upper(): config(name, transparent=True) for name in PALETTES}
    constants = "".join(f"const {name} = {_json(value)};" for name, value in themes.items())
    script = f"(() => {{\n{javascript_bundle(snippet=_GLOBALS, vl_version=VEGALITE)}\n{constants}{_HELPER}}})();"
    return re.sub(r"</(script)", r"<\\/\1", script, flags=re.IGNORECASE)


def embed_snippet(figure: Figure, id: str) -> str:
    """A figure without its title and caption, for a page whose head holds `bundle()`; `id` is unique in the page."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", id)
    script = f"anatomistDraw({_json(name)},{_json(spec(figure, words=False))})"
    return f'<div id="{name}" role="img" aria-label="{escape(figure.title)}"></div><script>{script}</script>'


def html(figure: Figure) -> str:
    """One self-contained page with the figure, its title and caption, in the reader's light or dark mode."""
    light, dark = (PALETTES[name] for name in ("light", "dark"))
    links = "".join(f'<li><a href="{escape(url)}">{escape(name)}</a></li>' for name, url in figure.links.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(figure.title)}</title><style>"
        f"body{{margin:2rem auto;max-width:70rem;padding:0 1.5rem;background:{light.paper};color:{light.ink};"
        "font:16px/1.55 system-ui,-apple-system,'Segoe UI','Helvetica Neue',Arial,sans-serif}"
        "h1{font-size:1.3rem;margin:0 0 .3rem}p{max-width:50rem;opacity:.8;margin:.2rem 0 1.2rem}"
        ".chart{overflow-x:auto}"
        f"@media(prefers-color-scheme:dark){{body{{background:{dark.paper};color:{dark.ink}}}a{{color:#7fb8de}}}}"
        f"</style><script>{bundle()}</script></head><body><h1>{escape(figure.title)}</h1>"
        f'<p>{escape(figure.caption)}</p><div class="chart">{embed_snippet(figure, "figure")}</div>'
        f"{f'<ul>{links}</ul>' if links else ''}</body></html>"
    )


def _json(data: object) -> str:
    """JSON that can stand inside a <script> element."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\!--")
