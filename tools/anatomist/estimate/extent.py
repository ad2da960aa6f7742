"""What a technique works on, and how its arguments are read for a cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import formulas as f
from .cost import Part
from .sizes import Sizes

Given = Mapping[str, object]


@dataclass(frozen=True)
class Extent:
    """What a technique works on."""

    rows: int  # prompts
    width: int  # tokens of the longest
    shared: float = 0.0  # tokens that a prompt and its counterfactual begin with alike; patching computes none of them
    budget: int | None = None  # bytes that batches are fitted to; None for all prompts at once

    @property
    def prompts(self) -> str:
        return f"{self.rows} prompts of {self.width} tokens"


class Cells(NamedTuple):
    """The cells of a sweep, on one prompt."""

    n: float
    block_tokens: float  # blocks times tokens that all of them compute
    logits: float = 0.0  # cells that need every logit; a logit difference needs two


def names_of(named: object) -> list[str]:
    """What a selection names; nothing for all."""
    return [str(n) for n in items_of(named)]


def items_of(named: object) -> Sequence[object]:
    """What a list holds; nothing where it is none."""
    return named if isinstance(named, Sequence) and not isinstance(named, str) else ()


def number_of(given: Given, name: str, default: int) -> int:
    """An argument that is a whole number."""
    value = given.get(name, default)
    return value if isinstance(value, int) else default


def widths_of(texts: object) -> list[int]:
    """Tokens of texts in the arguments: about three characters each, or as many as there are ids."""
    return [1 + len(t) // 3 if isinstance(t, str) else len(items_of(t)) for t in items_of(texts)]


def needs_every_logit(given: Given) -> bool:
    """Whether some metric is no logit difference, which needs two logits alone."""
    metrics = {str(given.get("metric") or "logit_diff"), *names_of(given.get("more_metrics"))}
    return bool(given.get("targets")) or metrics != {"logit_diff"}


def passing(s: Sizes, on: Extent) -> list[Part]:
    """What any pass holds."""
    work, logits = f.block_at_work_bytes(s, on.rows, on.width), f.logit_bytes(s, on.rows, 1)
    return [
        Part(what="one block at work", formula=f.BLOCK_AT_WORK, bytes=work),
        Part(what="logits at the read position", formula="B V s", bytes=logits),
    ]
