"""One self-contained page of features, in the order readers of Neuronpedia and SAEDashboard know: tokens it lowers and
raises, histograms, then text by strength. Nothing is fetched; the pictures are inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from ..causal.feature_pages import ActivatingText, Counts, FeatureDescription, TokenLogit
from ..prompts.columns import one_line

HEADINGS = {
    "top": "Top activations", "middle": "Around the median of active tokens", "low": "Weakest tenth of active tokens",
    "random": "Random tokens",
}  # fmt: skip
STRONG = 0.62  # share of the largest activation from which text is drawn in the light colour
WIDTH, HEIGHT = 420, 92  # of a histogram, in its own units
_THEME = (
    "const r=document.documentElement,b=document.getElementById('theme');b.onclick=()=>{const d=r.dataset.theme||"
    "(matchMedia('(prefers-color-scheme: dark)').matches?'dark':'light');r.dataset.theme=d==='dark'?'light':'dark'};"
)


def dashboard(
    title: str, paragraphs: Sequence[str], notes: Sequence[str], features: Sequence[FeatureDescription]
) -> str:
    """The page: a heading, what must be known, and one card a feature."""
    links = "".join(f'<a href="#{escape(f.feature)}">{escape(f.feature)}</a>' for f in features) if features[1:] else ""
    style = files("anatomist.report").joinpath("dashboard.css").read_text(encoding="utf-8")
    said = "".join(f"<p>{escape(p)}</p>" for p in paragraphs) + "".join(
        f'<p class="note">{escape(note)}</p>' for note in notes
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(title)}</h1>{said}<nav class="bar" aria-label="Features">{links}'
        '<button id="theme" type="button">Light or dark</button></nav></header>'
        f"<main>{''.join(map(_card, features))}</main>"
        "<footer>Colour: activation over the feature's largest on this text; hover for the number. A framed token is "
        "the example. Top examples alone mislead: a name must fit the rows below them too, and predict text not seen. "
        f"Active is not used.</footer><script>{_THEME}</script></body></html>"
    )


def _card(one: FeatureDescription) -> str:
    mean = "" if one.mean_active is None else f", mean where active {one.mean_active:.3g}"
    token = "" if one.by_token is None else f"; the token alone explains {one.by_token:.0%}"
    near = "".join(
        f'<tr><td class="token">{escape(n.feature)}</td><td class="n">{n.cosine:.2f}</td></tr>' for n in one.nearest
    )
    activations = _histogram("Activations above 0 (sample)", one.histogram)
    return (
        f'<article id="{escape(one.feature)}"><h2>{escape(one.feature)} <small>active on {one.density:.3%} of tokens; '
        f"largest {one.highest:.3g}{mean}{token}; decoder norm {one.decoder_norm:.3g}</small></h2>"
        f'<div class="grid"><div>{_tokens("Negative logits", one.suppresses, "down")}</div>'
        f'<div>{_tokens("Positive logits", one.promotes, "up")}</div><div>'
        f'{activations}{_histogram("Logits over the vocabulary", one.logits)}'
        f"<h3>Nearest features (cosine)</h3><table>{near}</table></div></div>{_examples(one)}</article>"
    )


def _tokens(heading: str, listed: Sequence[TokenLogit], side: str) -> str:
    rows = "".join(
        f'<tr><td class="token"><span>{escape(one_line(t.token))}</span></td><td class="n">{t.logit:.2f}</td></tr>'
        for t in listed
    )
    return f'<h3>{heading}</h3><table class="{side}">{rows or "<tr><td>none</td></tr>"}</table>'


def _histogram(heading: str, counts: Counts | None) -> str:
    if counts is None:
        return f"<h3>{heading}</h3><p>none</p>"
    most, n = max(counts.counts), len(counts.counts)
    step = WIDTH / n
    bars = "".join(
        f'<rect class="{"low" if right <= 0 else "bin"}" x="{i * step:.1f}" width="{step - 1:.1f}" '
        f'y="{HEIGHT - HEIGHT * c / most:.1f}" height="{HEIGHT * c / most:.1f}">'
        f"<title>{left:.3g} to {right:.3g}: {c}</title></rect>"
        for i, (c, left, right) in enumerate(zip(counts.counts, counts.edges, counts.edges[1:], strict=False))
        if c
    )
    return (
        f'<h3>{heading}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT + 18}" role="img" aria-label="{escape(heading)}">'
        f'{bars}<line class="base" x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/>'
        f'<text x="0" y="{HEIGHT + 13}">{counts.edges[0]:.3g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 13}" text-anchor="end">{counts.edges[-1]:.3g}; most in a bin {most}</text>'
        "</svg>"
    )


def _examples(one: FeatureDescription) -> str:
    parts = []
    for kind, heading in HEADINGS.items():
        rows = [e for e in one.examples if e.kind == kind]
        if rows:
            listed = "".join(_row(e, one.highest) for e in rows)
            parts.append(f"<h3>{heading}</h3><ol>{listed}</ol>")
    return "".join(parts) or "<p>Active on no token of this text.</p>"


def _row(e: ActivatingText, highest: float) -> str:
    pairs = enumerate(zip(e.tokens, e.values, strict=True))
    apart = "" if any(token[:1].isspace() for token in e.tokens) else " "  # vocabularies without spaces in their tokens
    tokens = apart.join(_token(token, value, highest, i == e.focus) for i, (token, value) in pairs)
    return f'<li><b title="document {e.document}">{e.value:.3g}</b><span class="text">{tokens}</span></li>'


def _token(token: str, value: float, highest: float, focus: bool) -> str:
    text = escape(token).replace("\n", "<u>↵</u>").replace("\t", "<u>⇥</u>").replace("\r", "")
    share = max(0.0, value) / highest if highest > 0 else 0.0
    if not share and not focus:
        return text
    names = " ".join(name for name, on in (("strong", share > STRONG), ("focus", focus)) if on)
    classes = f' class="{names}"' if names else ""
    return f'<i{classes} style="--a:{share:.2f}" title="{value:.3g}">{text}</i>'
