"""Where the places of `sites.py` are in an nnsight trace of a Hugging Face model, in the order they are computed.

nnsight hands values over in execution order and only while the trace runs: `Places.visit` is therefore one walk through
the blocks that touches the wanted places alone, earlier ones first. Queries, keys and values are the arguments of the
attention function that the attention module calls, scores and pattern the softmax's argument and the dropout's output
inside that function, so that they are what enters the product, after rotary positions and any norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..sites import Site, SiteKind
from .blocks import Anatomy
from .interventions import Visits

Envoy = Any  # nnsight's stand-in for a module; its values exist while a trace runs
QKV: tuple[SiteKind, ...] = ("q", "k", "v")
INSIDE: tuple[SiteKind, ...] = ("scores", "pattern")
WRAPPED = "_ORIGINAL_EAGER_ATTENTION_FORWARD_0"  # what its wrapper calls, in every Gemma model of the process
OUTSIDE: tuple[SiteKind, ...] = ("embed", "resid_pre", "resid_post", "final_norm", "logits")


@dataclass(frozen=True, eq=False)
class BlockPlaces:
    """The modules of one block at which places are read and written; what an unknown anatomy cannot tell is None."""

    layer: Envoy
    attention: Envoy
    attention_end: Envoy  # its output is what attention adds to the residual
    mlp_end: Envoy | None
    attention_matrix: Envoy | None = None  # its input is z
    mlp_matrix: Envoy | None = None
    middle: Envoy | None = None  # its input is the residual between attention and MLP


class Places:
    """The places of one model, by its anatomy, or by nnterp's standard names where the anatomy is unknown."""

    def __init__(self, traced: Any, anatomy: Anatomy | None, *, eager: bool) -> None:
        self.final_norm: Envoy = traced.ln_final
        self.d_head = anatomy.sizes.d_head if anatomy else 0
        self.eager = eager
        self.blocks = _known(anatomy, traced.modules()) if anatomy else _standard(traced.layers)

    @property
    def kinds(self) -> frozenset[SiteKind]:
        """The kinds of place to be tried and proven on the model."""
        first, kinds = self.blocks[0], set(OUTSIDE)
        # What attention adds is proven together with what the MLP adds.
        kinds |= set() if first.mlp_end is None else {"attn_out", "mlp_out"}
        named: dict[SiteKind, Envoy] = {
            "head": first.attention_matrix, "neuron": first.mlp_matrix, "resid_mid": first.middle
        }  # fmt: skip
        kinds |= {kind for kind, envoy in named.items() if envoy is not None}
        if self.eager:
            # Without z there is nothing that values could be proven by.
            kinds |= {*INSIDE, "q", "k"} | ({"v"} if first.attention_matrix is not None else set())
        return frozenset(kinds)  # type: ignore[arg-type]

    def visit(self, visits: Visits) -> None:
        """Walk through the wanted places up to the final norm, inside a trace."""
        for i, block in enumerate(self.blocks):
            if visits.done:
                return
            if i == 0:
                _rewrite(block.layer, "input", visits, Site("embed"))
            _rewrite(block.layer, "input", visits, Site("resid_pre", i))
            total = self._within(block, i, visits)
            if total is not None:
                block.layer.output = _like(block.layer.output, total)
            _rewrite(block.layer, "output", visits, Site("resid_post", i))
        _rewrite(self.final_norm, "output", visits, Site("final_norm"))

    def _within(self, block: BlockPlaces, i: int, visits: Visits) -> Tensor | None:
        """The places within a block; what the block must add up to if the residual between its parts was changed."""
        self._attention(block, i, visits)
        heads = (lambda x: x.unflatten(-1, (-1, self.d_head))), (lambda x: x.flatten(2))
        _rewrite(block.attention_matrix, "input", visits, Site("head", i), *heads)
        _rewrite(block.attention_end, "output", visits, Site("attn_out", i))
        middle = _rewrite(block.middle, "input", visits, Site("resid_mid", i))
        _rewrite(block.mlp_matrix, "input", visits, Site("neuron", i))
        _rewrite(block.mlp_end, "output", visits, Site("mlp_out", i))
        # The block would add the MLP to the residual it kept: an edit between the two has to reach that sum.
        return None if middle is None or block.mlp_end is None else middle + _tensor(block.mlp_end.output)

    def _attention(self, block: BlockPlaces, i: int, visits: Visits) -> None:
        """Queries, keys, values, scores and pattern of one layer."""
        wanted = {kind for kind in (*QKV, *INSIDE) if Site(kind, i) in visits.sites}
        if not wanted:
            return
        call = block.attention.source.attention_interface_0
        # The function has to be opened before its arguments are waited for: by then it is being entered.
        inside = _opened(call) if wanted & set(INSIDE) else None
        if wanted & set(QKV):
            _rewrite_arguments(call, visits, {n: Site(kind, i) for n, kind in enumerate(QKV, start=1)})
        if inside is not None and "scores" in wanted:
            _rewrite(inside.nn_functional_softmax_0, "input", visits, Site("scores", i))
        if inside is not None and "pattern" in wanted:
            _rewrite(inside.nn_functional_dropout_0, "output", visits, Site("pattern", i))


def _opened(call: Envoy) -> Envoy:
    """The inside of the attention function; of the original where TransformerLens has put a wrapper around it."""
    inside = call.source
    original = getattr(inside, WRAPPED, None)
    return inside if original is None else original.source


def _known(anatomy: Anatomy, envoys: Iterable[Envoy]) -> list[BlockPlaces]:
    by_module = {id(envoy._module): envoy for envoy in envoys}

    def of(module: nn.Module) -> Envoy:
        return by_module[id(module)]

    return [
        BlockPlaces(
            layer=of(block.module),
            attention=of(block.attention),
            attention_end=of((block.post_attention_norm or block.o).module),
            mlp_end=of((block.post_mlp_norm or block.mlp_out).module),
            attention_matrix=of(block.o.module),
            mlp_matrix=of(block.mlp_out.module),
            middle=None if anatomy.parallel else of(block.mlp_norm.module),
        )
        for block in anatomy.blocks
    ]


def _standard(layers: Iterable[Envoy]) -> list[BlockPlaces]:
    """What nnterp's names say; that the two outputs add up to the residual is proven before they are offered."""
    return [
        BlockPlaces(layer, layer.self_attn, layer.self_attn, layer.mlp if hasattr(layer._module, "mlp") else None)
        for layer in layers
    ]


def _same(x: Tensor) -> Tensor:
    return x


def _rewrite(
    envoy: Envoy | None,
    side: str,
    visits: Visits,
    site: Site,
    to_site: Callable[[Tensor], Tensor] = _same,
    back: Callable[[Tensor], Tensor] = _same,
) -> Tensor | None:
    """Show a value to the visits if it is wanted, and put back what they made of it; that, if it was changed."""
    if envoy is None or site not in visits.sites:
        return None
    whole = getattr(envoy, side)
    before = to_site(_tensor(whole))
    after = visits.at(site, before)
    if after is before and (to_site is _same or not visits.gradients):
        return None  # with a graph a view is put back all the same: read beside the way, its gradient would be 0
    setattr(envoy, side, _like(whole, back(after)))
    return after


def _rewrite_arguments(call: Envoy, visits: Visits, sites: dict[int, Site]) -> None:
    """The same for positional arguments [B, heads, T, h] of a call."""
    positional, named = call.inputs
    arguments = list(positional)
    for n, site in sites.items():
        arguments[n] = visits.at(site, arguments[n].transpose(1, 2)).transpose(1, 2)
    call.inputs = (tuple(arguments), named)


def _tensor(value: Any) -> Tensor:
    """The hidden states of a module's value, which in some architectures stand first in a tuple."""
    return value[0] if isinstance(value, tuple) else value


def _like(whole: Any, tensor: Tensor) -> Any:
    return (tensor, *whole[1:]) if isinstance(whole, tuple) else tensor
