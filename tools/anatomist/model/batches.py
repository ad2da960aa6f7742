"""Rows in batches: how many prompts one reading pass can take within a memory budget."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import WouldNotFit
from .protocol import ModelInfo
from .sites import Site
from .sweep_cost import item_bytes, row_bytes
from .tokens import Tokens

MOST_ROWS = 64  # more rows in one pass bring no speed at prompt length
Rows = tuple[int, ...]


def read_bytes(info: ModelInfo, site: Site, width: int) -> int:
    """Bytes of one place on one row of `width` tokens, with all its heads or neurons."""
    per_position = {
        "head": info.n_heads * info.d_head, "q": info.n_heads * info.d_head, "k": info.n_kv_heads * info.d_head,
        "v": info.n_kv_heads * info.d_head, "scores": info.n_heads * width, "pattern": info.n_heads * width,
        "neuron": info.d_mlp, "logits": info.d_vocab,
    }.get(site.kind, info.d_model)  # fmt: skip
    return width * per_position * item_bytes(info)


def batches(
    info: ModelInfo, tokens: Tokens, sites: Sequence[Site], budget_bytes: int, *, extra: int = 0, in_order: bool = False
) -> list[Rows]:
    """Rows grouped into passes that read `sites`; `extra` bytes a row are needed besides.

    Rows of like length stand together, so that little is padded, unless `in_order`.

    Raises:
        WouldNotFit: the longest prompt alone is over the budget.
    """
    width = tokens.width
    held = sum(read_bytes(info, site, width) for site in sites) + extra
    each = held + row_bytes(info, width, None)
    if each > budget_bytes:
        raise WouldNotFit(
            f"reading {len(sites)} places on one prompt of {width} tokens needs {each / 2**20:,.0f} MiB, of which "
            f"{held / 2**20:,.0f} MiB for what is read; {budget_bytes / 2**20:,.0f} MiB may be used. Read fewer layers "
            "or sites, or use shorter prompts."
        )
    size = max(1, min(MOST_ROWS, budget_bytes // each))
    order = list(range(tokens.n_rows)) if in_order else sorted(range(tokens.n_rows), key=lambda r: tokens.lengths[r])
    return [tuple(order[i : i + size]) for i in range(0, len(order), size)]
