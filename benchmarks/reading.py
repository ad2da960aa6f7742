"""Activation reading: the residual stream after every layer, in tokens a second."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from .clock import timed
from .ways import Way

SHAPES = ((32, 14), (8, 128))  # prompts x tokens
REPEATS = 3


def measured(ways: Sequence[Way], vocabulary: int) -> list[dict[str, object]]:
    """Every way on the same ids; the values compared with the last way's."""
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        ids = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))
        expected = ways[-1].read(ids)
        for way in ways:
            way.read(ids)
            runs = [timed(lambda way=way, ids=ids: way.read(ids)) for _ in range(REPEATS)]
            rate = ids.numel() / statistics.median(seconds for seconds, _ in runs)
            apart = float((runs[-1][1] - expected).abs().max())
            case = f"resid_post of all layers, {shape[0]} prompts x {shape[1]} tokens"
            rows.append({"case": case, "way": way.name, "tokens_per_second": rate, "max_difference": apart})
    return rows
