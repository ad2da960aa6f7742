"""From prompts to a sweep's metrics, and from a finished sweep to what is told of its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from ..errors import BadArguments, BadPrompts
from ..measures.metrics import NEEDS, Metric, MetricName, metric_for
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sweep_cost import flops_of, pieces
from ..model.sweep_plan import SweepPlan
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts, Part, encode
from ..prompts.prompt_set import PromptSet
from ..result import Frozen, SelfTest
from .neutral import Runs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ..model.sweep import SweepResult

REFERENCE_ROWS = 16  # prompts a pass when whole logits are read


class SweepCost(Frozen):
    """How the cells were computed and what it cost."""

    path: str = Field(description="'generic' (whole forward passes), 'fast', or 'fast+shared-prefix'.")
    reason: str = Field(description="Why this path.")
    cells: int = Field(description="Cells, each on every prompt.")
    places_written: int = Field(
        description="(row, position) places of all edits: counted while writing; needless ones count too."
    )
    seconds: float = Field(description="Wall-clock seconds of the sweep.")
    estimated_flops: float = Field(description="Estimate made before: a whole forward pass for each cell and prompt.")
    flops: float = Field(description="Floating-point operations counted while running.")
    layer_tokens: int = Field(description="(row, position, layer) triples that went through a block.")
    chunks: int = Field(description="Batches it was computed in.")
    largest_chunk: int = Field(description="Rows of the largest batch.")
    planned_bytes: int = Field(description="Most memory planned beyond the weights.")


def metric_names(first: MetricName, more: Sequence[MetricName]) -> tuple[MetricName, ...]:
    """The metrics of one pass, each once.

    Raises:
        BadArguments: one is named twice.
    """
    names = (first, *more)
    if len(set(names)) < len(names):
        raise BadArguments(f"metrics {', '.join(names)}: name each once.")
    return names


def encoded(
    prompts: PromptSet | None, model: Model, bos: bool | None, names: Sequence[MetricName], *, corrupted: bool
) -> EncodedPrompts:
    """Prompts with all that the metrics need.

    Raises:
        BadPrompts: from `encode`, or no prompts.
    """
    if prompts is None:
        raise BadPrompts("there are no prompts; give a handle from make_prompts or a list of prompts.")
    parts: tuple[Part, ...] = ("answer", "wrong")
    wanted = {part for name in names for part in NEEDS[name]}
    need: list[Part] = [part for part in parts if part in wanted]
    if corrupted:
        need.append("corrupted")
    return encode(prompts, model, bos=bos, need=need)


def bound_metrics(
    names: Sequence[MetricName], prompts: EncodedPrompts, model: Model, base: Tokens
) -> tuple[Metric, ...]:
    """Metrics bound to prompts; the reference of kl is the unedited base run at its last tokens."""
    reference = last_logits(model, base) if "kl" in names else None
    return tuple(metric_for(name, prompts, reference=reference) for name in names)


def last_logits(
    model: Runs, tokens: Tokens, edits: Sequence[Edit] = (), places: Sequence[tuple[int, ...]] | None = None
) -> Float[Tensor, "B V"]:
    """Float32 logits at each row's last token, a few rows at a time; with `places`, the edits act there in each row."""
    found: Tensor | None = None
    for part in pieces(tokens.n_rows, REFERENCE_ROWS):
        rows = tokens.rows(part)
        here = edits if places is None else [replace(e, positions=tuple(places[row] for row in part)) for e in edits]
        logits = model.run(rows, edits=here, logits_at=rows.last).logits
        assert logits is not None
        found = logits.new_empty((tokens.n_rows, logits.shape[-1])).float() if found is None else found
        found[part.start : part.stop] = logits.float()
    assert found is not None
    return found


def cost_of(model: Model, plan: SweepPlan, result: SweepResult, *further: SweepResult) -> SweepCost:
    """What a finished sweep cost, with further ones on the same prompts, beside a whole forward pass a cell."""
    one, info = flops_of(model), model.info
    every = (result, *further)
    cells, work = sum(len(r.fired) for r in every), [r.work for r in every]
    whole = sum(one.run(info.n_layers, n, info.d_vocab) for n in plan.base.lengths) * cells
    return SweepCost(
        path=result.path, reason=result.reason, cells=cells, places_written=sum(sum(r.fired) for r in every),
        seconds=sum(r.seconds for r in every), estimated_flops=float(whole), flops=sum(w.flops for w in work),
        layer_tokens=sum(w.layer_tokens for w in work), chunks=sum(w.chunks for w in work),
        largest_chunk=max(w.largest_chunk for w in work), planned_bytes=max(w.peak_bytes for w in work),
    )  # fmt: skip


def failed(tests: Sequence[SelfTest]) -> tuple[str, ...]:
    """A warning for every self-test that failed."""
    return tuple(
        f"SELF-TEST FAILED: {t.name}: found {t.found:.3g}, expected {t.expected:g} within {t.tolerance:.1g}. Do not "
        "use these numbers; report the model and the site."
        for t in tests
        if not t.passed
    )
