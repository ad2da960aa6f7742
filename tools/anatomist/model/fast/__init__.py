"""Sweeps at the cost of their arithmetic.

Cell (l, p) of a causal model needs only layers from l and positions from p on: everything before is the unpatched
run's own, so its residuals, keys and values are computed once. All cells of many prompts travel as segments of one
flat batch of tokens, each from its own layer and position on; `schedule.py` says where every token stands, `walk.py`
carries them through the layers, `chunks.py` keeps the batch within a budget.
"""

from __future__ import annotations

from ...errors import Unsupported
from ..backends.blocks import Anatomy
from ..protocol import Model
from .engine import FastEngine

__all__ = ["FastEngine", "engine"]


def engine(model: Model) -> FastEngine:
    """The fast engine of a loaded model.

    Raises:
        Unsupported: a backend or architecture without a known anatomy.
    """
    anatomy = getattr(model, "anatomy", None)
    if not isinstance(anatomy, Anatomy):
        raise Unsupported(
            f"fast sweeps need the anatomy of {model.info.architecture}, which is not known here "
            f"(backend {model.info.backend!r}); the generic path computes the same numbers."
        )
    return FastEngine(anatomy)
