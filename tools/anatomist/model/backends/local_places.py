"""Where the places of `sites.py` are in a TransformerLens bridge, one block at a time: hook points and their layout.

What the bridge lacks is added here: queries and keys behind the rotation of fused attention, and the residual between
attention and MLP as one place that both of its readers see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import JointQKVPositionEmbeddingsAttentionBridge

from ..sites import Site, SiteKind
from .blocks import Block, Heads
from .interventions import Visits

Layout = Literal["as_is", "flat_heads", "heads_first"]


class AllDone(Exception):
    """Every wanted place has been visited: the rest of the pass is not needed."""


class Place(NamedTuple):
    """A hook point, and how the heads lie in its tensor."""

    hook: nn.Module
    layout: Layout = "as_is"

    def watch(self, visits: Visits, sites: Sequence[Site], d_head: int, *, may_stop: bool) -> RemovableHandle:
        """Let the visits see these sites whenever the place is computed."""

        def act(_module: nn.Module, _inputs: object, x: Tensor) -> Tensor:
            for site in sites:
                x = self._back(visits.at(site, self._canonical(x, d_head)))
            if may_stop and visits.done:
                raise AllDone
            return x

        return self.hook.register_forward_hook(act)

    def _canonical(self, x: Tensor, d_head: int) -> Tensor:
        """In the layout of `sites.py`; always a view."""
        if self.layout == "as_is":
            return x
        return x.unflatten(-1, (-1, d_head)) if self.layout == "flat_heads" else x.transpose(1, 2)

    def _back(self, x: Tensor) -> Tensor:
        if self.layout == "as_is":
            return x
        return x.flatten(-2) if self.layout == "flat_heads" else x.transpose(1, 2)


def places_of(block: Any, *, rotary: bool) -> dict[SiteKind, Place]:
    """The places of one block of the bridge; what an architecture lacks is left out."""
    wanted: dict[SiteKind, tuple[Callable[[], nn.Module], Layout]] = {
        "resid_pre": (lambda: block.hook_in, "as_is"),
        "resid_post": (lambda: block.hook_out, "as_is"),
        "attn_out": (lambda: block.hook_attn_out, "as_is"),  # the bridge points these two past any post-norm
        "mlp_out": (lambda: block.hook_mlp_out, "as_is"),
        "head": (lambda: block.attn.o.hook_in, "flat_heads"),
        "q": (lambda: block.attn.hook_rot_q, "heads_first"),
        "k": (lambda: block.attn.hook_rot_k, "heads_first"),
        "v": (lambda: block.attn.v.hook_out, "flat_heads"),
        "scores": (lambda: block.attn.hook_attn_scores, "as_is"),
        "pattern": (lambda: block.attn.hook_pattern, "as_is"),
        "neuron": (lambda: block.mlp.out.hook_in, "as_is"),
    }
    if not rotary:
        wanted["q"] = (lambda: block.attn.q.hook_out, "flat_heads")
        wanted["k"] = (lambda: block.attn.k.hook_out, "flat_heads")
    elif isinstance(getattr(block, "attn", None), JointQKVPositionEmbeddingsAttentionBridge):
        q_hook, k_hook = _behind_rotation(block.attn)
        wanted["q"], wanted["k"] = (lambda: q_hook, "heads_first"), (lambda: k_hook, "heads_first")
    found: dict[SiteKind, Place] = {}
    for kind, (hook, layout) in wanted.items():
        try:
            found[kind] = Place(hook(), layout)
        except AttributeError:
            continue
    return found


def _behind_rotation(attention: Any) -> tuple[nn.Module, nn.Module]:
    """Hook points that the bridge's fused attention does not have."""
    rotate = attention._apply_rotary_pos_emb
    q_hook, k_hook = HookPoint(), HookPoint()

    def rotate_and_tell(*args: Tensor) -> tuple[Tensor, Tensor]:
        q, k = rotate(*args)
        return q_hook(q), k_hook(k)

    object.__setattr__(attention, "_apply_rotary_pos_emb", rotate_and_tell)
    return q_hook, k_hook


def watch_middle(places: dict[SiteKind, Place], site: Site, visits: Visits, *, may_stop: bool) -> list[RemovableHandle]:
    """resid_mid = resid_pre + attn_out; a change of it is made through attn_out, so that both of its readers see it."""
    entering: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: object, x: Tensor) -> None:
        entering.append(x)

    def act(_module: nn.Module, _inputs: object, attn_out: Tensor) -> Tensor:
        before = entering.pop()
        middle = before + attn_out
        changed = visits.at(site, middle)
        if may_stop and visits.done:
            raise AllDone
        # With a graph the middle must lie on the way: read beside it, its gradient would be 0.
        return attn_out if changed is middle and not visits.gradients else changed - before

    hooks = places["resid_pre"].hook, places["attn_out"].hook
    return [hooks[0].register_forward_hook(remember), hooks[1].register_forward_hook(act)]


class SharedMatrix:
    """Queries, keys and values of one block from the model's own fused matrix, computed once for the three.

    The bridge copies an interleaved matrix into three; with this in their place nothing is stored twice.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._seen: tuple[Tensor, Tensor] | None = None

    def put_into(self, attention: Any) -> None:
        for bridge, heads in zip((attention.q, attention.k, attention.v), self._parts(), strict=True):
            bridge.set_original_component(_Part(self, heads))

    def _parts(self) -> tuple[Heads, Heads, Heads]:
        return self._block.q, self._block.k, self._block.v

    def part(self, x: Tensor, heads: Heads) -> Tensor:
        if self._seen is None or self._seen[0] is not x:
            self._seen = x, heads.linear.module(x)
        y = self._seen[1]
        if heads is self._block.v:  # the last of the three: let go of the tensors
            self._seen = None
        return heads.pick(y).flatten(-2)


class _Part(nn.Module):
    def __init__(self, shared: SharedMatrix, heads: Heads) -> None:
        super().__init__()
        self._of, self._heads = shared, heads

    def forward(self, x: Tensor) -> Tensor:
        return self._of.part(x, self._heads)
