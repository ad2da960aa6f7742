"""Names of places in a model: parse, print, list.

A place is written `blocks.3.resid_post`, `blocks.3.head.7`, `blocks.3.neuron.17`, `embed`, `final_norm` or `logits`.
B: rows. T: positions. D: model width. H: query heads. K: key-value heads. h: head width. F: MLP width. V: vocabulary.

| kind | shape read | meaning, the same on every backend |
|---|---|---|
| embed | [B, T, D] | what enters block 0 (token plus learned position embedding, after any scaling) |
| resid_pre | [B, T, D] | the residual stream entering a block |
| resid_mid | [B, T, D] | the residual between attention and MLP; parallel blocks have none |
| resid_post | [B, T, D] | the residual leaving a block |
| attn_out | [B, T, D] | what attention adds to the residual, after any post-norm |
| mlp_out | [B, T, D] | what the MLP adds to the residual, after any post-norm |
| head | [B, T, H, h] | z: the mixed values of each head, before the output matrix |
| q | [B, T, H, h] | queries as they enter the product, after rotary and any norm |
| k, v | [B, T, K, h] | keys and values as they enter the product, one per key-value head |
| scores | [B, H, T, T] | attention scores before the softmax, scaled, masked entries very negative |
| pattern | [B, H, T, T] | attention weights after the softmax, [.., query position, key position] |
| neuron | [B, T, F] | MLP activations entering the output matrix |
| final_norm | [B, T, D] | output of the final norm |
| logits | [B, T, V] | output of the unembedding, after any soft-cap |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from ..errors import BadSite

SiteKind = Literal[
    "embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head", "q", "k", "v",
    "scores", "pattern", "neuron", "final_norm", "logits",
]  # fmt: skip
KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
WHOLE_MODEL: frozenset[SiteKind] = frozenset({"embed", "final_norm", "logits"})
INDEXED: frozenset[SiteKind] = frozenset({"head", "q", "k", "v", "scores", "pattern", "neuron"})


class Site(NamedTuple):
    """One place: its kind, its layer (none for whole-model places), and a head or neuron index where one is meant."""

    kind: SiteKind
    layer: int | None = None
    index: int | None = None  # type: ignore[assignment]  # a head's number; hides tuple.index, which nobody needs

    def __str__(self) -> str:
        if self.layer is None:
            return self.kind
        return f"blocks.{self.layer}.{self.kind}" + ("" if self.index is None else f".{self.index}")

    @property
    def whole(self) -> Site:
        """The same place with all its heads or neurons."""
        return self._replace(index=None)


class Shape(NamedTuple):
    """What is needed to say which places exist."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_mlp: int
    kinds: tuple[SiteKind, ...]
    backend: str = ""

    def count(self, kind: SiteKind) -> int:
        """How many heads or neurons a kind has at one layer."""
        return {"k": self.n_kv_heads, "v": self.n_kv_heads, "neuron": self.d_mlp}.get(kind, self.n_heads)


def parse_site(text: str) -> Site:
    """Read a place from its name; says what a name looks like when it is not one.

    Raises:
        BadSite: the text is not a place's name.
    """
    parts = text.split(".")
    if len(parts) == 1 and parts[0] in WHOLE_MODEL:
        return Site(parts[0])  # type: ignore[arg-type]
    if len(parts) in (3, 4) and parts[0] == "blocks" and all(p.isdigit() for p in (parts[1], *parts[3:])):
        kind = parts[2]
        if kind in KINDS and kind not in WHOLE_MODEL and (len(parts) == 3 or kind in INDEXED):
            return Site(kind, int(parts[1]), int(parts[3]) if len(parts) == 4 else None)  # type: ignore[arg-type]
    per_layer = ", ".join(k for k in KINDS if k not in WHOLE_MODEL)
    raise BadSite(
        f"{text!r} is not a site. Write 'blocks.<layer>.<kind>' with kind one of {per_layer}; a head or neuron adds "
        f"its number ('blocks.3.head.7'); whole-model sites are {', '.join(sorted(WHOLE_MODEL))}."
    )


def check_site(site: Site, shape: Shape) -> Site:
    """Return the site if the model has it.

    Raises:
        BadSite: the kind, layer or index does not exist; the text lists what does.
    """
    if site.kind not in shape.kinds:
        # nnsight offers what is proven in the plain forward pass, the other backend has modules of its own for more
        other = " The same model on backend='local' may have it." if shape.backend == "nnsight" else ""
        raise BadSite(f"this model and backend have no {site.kind!r}; they have {', '.join(shape.kinds)}.{other}")
    if site.kind in WHOLE_MODEL:
        return site
    if site.layer is None or not 0 <= site.layer < shape.n_layers:
        raise BadSite(f"layer {site.layer} of {site} does not exist: layers are 0 to {shape.n_layers - 1}.")
    if site.index is not None and not 0 <= site.index < shape.count(site.kind):
        raise BadSite(f"{site} does not exist: {site.kind} runs from 0 to {shape.count(site.kind) - 1}.")
    return site


def list_sites(shape: Shape) -> list[Site]:
    """Every place of a model, heads and neurons not spelled out, in the order they are computed."""
    first = [Site("embed")] if "embed" in shape.kinds else []
    inner: Sequence[SiteKind] = (
        "resid_pre", "q", "k", "v", "scores", "pattern", "head", "attn_out", "resid_mid", "neuron", "mlp_out",
        "resid_post",
    )  # fmt: skip
    blocks = [Site(kind, layer) for layer in range(shape.n_layers) for kind in inner if kind in shape.kinds]
    last: Iterable[SiteKind] = ("final_norm", "logits")
    return first + blocks + [Site(kind) for kind in last if kind in shape.kinds]


def head_name(layer: int, head: int) -> str:
    """The field's way of writing a head: L23H3."""
    return f"L{layer}H{head}"


def parse_head(text: str, shape: Shape) -> tuple[int, int]:
    """Read `L23H3` and check that the model has it.

    Raises:
        BadSite: not a head's name, or outside the model.
    """
    layer, _, head = text[1:].partition("H")
    if not (text.startswith("L") and layer.isdigit() and head.isdigit()):
        raise BadSite(f"{text!r} is not a head. Write it like L3H7: layer 3, head 7.")
    if int(layer) >= shape.n_layers or int(head) >= shape.n_heads:
        raise BadSite(
            f"{text} does not exist: layers are 0 to {shape.n_layers - 1}, heads 0 to {shape.n_heads - 1} in each."
        )
    return int(layer), int(head)
