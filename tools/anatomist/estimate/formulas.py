"""Bytes and floating-point operations of what the techniques do, by formula.

L layers, d width, H heads, K key-value heads, h head width, F MLP width, V vocabulary, T tokens a row, B rows,
s bytes a number. A multiply-add counts as two operations.
"""

from __future__ import annotations

from .sizes import Sizes


def weight_bytes(s: Sizes) -> int:
    """N s."""
    return s.n_parameters * s.item_bytes


def kv_bytes_per_token(s: Sizes) -> int:
    """2 L K h s."""
    return 2 * s.layers * s.kv_heads * s.d_head * s.item_bytes


def residual_bytes(s: Sizes, rows: int, tokens: int) -> int:
    """resid_post at every layer: B T L d s."""
    return rows * tokens * s.layers * s.d_model * s.item_bytes


def head_bytes(s: Sizes, rows: int, tokens: int) -> int:
    """Head outputs before the output matrix (z) at every layer: B T L H h s."""
    return rows * tokens * s.layers * s.heads * s.d_head * s.item_bytes


def logit_bytes(s: Sizes, rows: int, tokens: int) -> int:
    """B T V s."""
    return rows * tokens * s.d_vocab * s.item_bytes


HOOKED_CACHE = "B T (L (7 d + 4 H h + 2 F + 2 H T + 2) + 4 d + 1 + V) s"


def hooked_cache_bytes(s: Sizes, tokens: int) -> int:
    """Everything TransformerLens' HookedTransformer caches for one row."""
    width = s.heads * s.d_head
    block = 7 * s.d_model + 4 * width + 2 * s.d_mlp + 2 * s.heads * tokens + 2
    return tokens * (s.layers * block + 4 * s.d_model + 1 + s.d_vocab) * s.item_bytes


def autograd_bytes_per_token(s: Sizes, tokens: int, *, eager: bool) -> int:
    """What a forward pass saves for a backward pass with frozen weights (RMSNorm blocks), per token.

    Per block: 3 F for a gated MLP (gate, its activation, up; 2 F otherwise), 2 d + 2 for the norms' inputs and scales;
    sdpa keeps q, output, k, v and one normaliser a head (2 H h + 2 K h + H), eager attention q, the repeated keys and
    values and the pattern (3 H h + H T).
    """
    width = s.heads * s.d_head
    attention = 3 * width + s.heads * tokens if eager else 2 * width + 2 * s.kv_heads * s.d_head + s.heads
    mlp = (3 if s.gated else 2) * s.d_mlp
    return s.layers * (mlp + 2 * s.d_model + 2 + attention) * s.item_bytes


BLOCK_AT_WORK = "B T (6 d + 6 H h + 3 H T + 3 F) s"


def block_at_work_bytes(s: Sizes, rows: int, tokens: int) -> int:
    """What the largest moment of a block holds without gradients.

    The residual and its norm (6 d), queries, keys, values and mixed values before and after rotation (6 H h), scores
    and weights (3 H T), the MLP's hidden layer (3 F).
    """
    token = 6 * s.d_model + 6 * s.heads * s.d_head + 3 * s.heads * tokens + 3 * s.d_mlp
    return rows * tokens * token * s.item_bytes


def dictionary_parameters(d_in: int, d_sae: int) -> int:
    """A sparse autoencoder: 2 d d_sae + d_sae + d."""
    return 2 * d_in * d_sae + d_sae + d_in


def block_flops(s: Sizes, tokens: int) -> int:
    """One block on one row: 2 operations a matrix element a token, and 4 T H h a token for scores and mixing."""
    return tokens * (2 * s.block_parameters + 4 * tokens * s.heads * s.d_head)


def unembed_flops(s: Sizes) -> int:
    """Logits at one position: 2 V d."""
    return 2 * s.unembed_parameters


def forward_flops(s: Sizes, rows: int, tokens: int, *, logits_per_row: int | None = None) -> int:
    """A forward pass; logits at every position unless told how many a row."""
    logits = tokens if logits_per_row is None else logits_per_row
    return rows * (s.layers * block_flops(s, tokens) + logits * unembed_flops(s))


def residual_sweep_flops(s: Sizes, rows: int, tokens: int) -> int:
    """Every layer x position: cell (l, p) needs layers from l and positions from p on; the rest is the base run's own.

    Products of the blocks only; attention over the reused prefix is small at prompt length.
    """
    layers, positions = _triangle(s.layers), _triangle(tokens)
    return rows * (layers * positions * 2 * s.block_parameters + s.layers * tokens * unembed_flops(s))


def head_sweep_flops(s: Sizes, rows: int, tokens: int) -> int:
    """Every layer x head at all positions: cell (l, h) needs layers from l on."""
    cells = s.heads * _triangle(s.layers)
    return rows * (cells * tokens * 2 * s.block_parameters + s.layers * s.heads * unembed_flops(s))


def naive_sweep_flops(s: Sizes, rows: int, tokens: int, cells: int) -> int:
    """One whole forward a cell."""
    return cells * forward_flops(s, rows, tokens, logits_per_row=1)


def attribution_flops(s: Sizes, rows: int, tokens: int, steps: int = 1) -> int:
    """Attribution patching: two forwards and a backward (twice a forward); integrated gradients: `steps` times that."""
    return 4 * steps * forward_flops(s, rows, tokens, logits_per_row=1)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
