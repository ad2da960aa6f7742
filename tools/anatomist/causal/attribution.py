"""Attribution patching over a grid of cells: estimates per prompt, dropped gradients, saturated heads, completeness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..errors import Unsupported
from ..measures.metrics import Metric
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site, SiteKind
from ..model.sweep_plan import Cell
from ..model.tokens import Tokens
from ..result import Frozen, SelfTest
from .attention_change import moved, through_pattern
from .gradients import EMBED, Linear, Pair, at_places, gradients_at, linear, of_cell, pairs_of, path_of, selected
from .units import unit_name

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

GAP = 0.1  # of M(o) - M(b): a larger completeness gap of the integrated gradient is warned of
OF_SIZE = 0.05  # of M(o) - M(b): heads whose attention is worth less have nothing to saturate
NOTHING = 1e-4  # in the metric's unit
SEEN = 0.5  # of the worth of a change of attention: a gradient that shows less is called saturated


class Completeness(Frozen):
    """Whether the gradient accounts for the whole difference between the runs."""

    attributed: float = Field(description="Sum of the estimates of all embeddings, mean over prompts.")
    difference: float = Field(description="What they must add up to: the metric of the other run minus the base run.")
    gap: float | None = Field(description="|attributed - difference| / |difference|; absent where they do not differ.")


class Saturated(Frozen):
    """A head whose attention moves with its queries or keys while its gradient does not see it."""

    head: str = Field(description="The head: 'L3H7', or 'L3KV1' where several share their keys.")
    through: Literal["q", "k"] = Field(description="Whether its queries or its keys move.")
    estimate: float = Field(description="What the gradient at q or k says, in the metric's unit.")
    by_attention: float = Field(description="What the exact change of its attention is worth, in the same unit.")


class Attribution(NamedTuple):
    """Estimates of every cell on every prompt, in the metric's unit."""

    values: Tensor  # [cells, B]
    magnitude: Tensor | None  # [cells, B]: mean over dropped layers of |estimate|; None without dropping
    base: Tensor  # [B]
    other: Tensor  # [B]
    embeddings: Tensor  # [B] sum over the embeddings
    saturated: tuple[Saturated, ...]
    looked: bool  # whether attention could be worked out, so that saturation could be seen


class Way(NamedTuple):
    """How the estimates are made."""

    steps: int = 0  # of the integrated gradient; 0: the gradient at the base run
    qk_fix: bool = False  # exact change of attention for queries and keys
    drop: bool = False  # layers' gradients dropped one at a time


def attribute(
    model: Model, base: Tokens, other: Tokens, metric: Metric, cells: Sequence[Cell], way: Way, budget_bytes: int,
    progress: Callable[[float, float, str], None],
) -> Attribution:  # fmt: skip
    """Estimates of all cells: `steps` (at least 1) backward passes, and one more a layer where layers are dropped.

    Raises:
        WouldNotFit: the gradient of one prompt is over the budget.
        Unsupported: the QK fix on an architecture whose attention is not known.
    """
    work = _Work(model, cells, way)
    parts: list[_Part] = []
    total, a_pass = base.n_rows, len(path_of(way.steps)) + (model.info.n_layers if way.drop else 0)
    for pair in pairs_of(model, base, other, metric, work.reads, budget_bytes):
        def tick(done: int, pair: Pair = pair) -> None:
            progress(pair.rows.start * a_pass + done * len(pair.rows), total * a_pass, "gradients")
        tick(0)
        parts.append(work.part(pair, tick))
    progress(1, 1, "gradients")
    return _joined(parts, work)


class _Part(NamedTuple):
    """Estimates of some rows."""

    values: Tensor
    magnitude: Tensor | None
    linear: Linear
    embeddings: Tensor
    by_attention: Mapping[Site, tuple[Tensor, Tensor]]  # of q and k: [heads] by the gradient, and exactly; row sums


class _Work:
    """What does not change between pieces of the prompts."""

    def __init__(self, model: Model, cells: Sequence[Cell], way: Way) -> None:
        self.model, self.cells, self.way = model, cells, way
        info = model.info
        self.sites = sorted({s.whole for c in cells for s in c.sites}, key=lambda s: (s.layer or 0, s.kind))
        self.fixed = [s for s in self.sites if way.qk_fix and s.kind in ("q", "k")]
        layers = range(info.n_layers)
        self.looks = {"q", "k", "pattern"} <= set(info.sites) and _has_rule(model)
        if self.fixed and not self.looks:
            raise Unsupported(
                f"the exact change of attention needs to know how {info.architecture} makes its scores, which no "
                "backend does. Take method='atp' or 'integrated', which need only reads and edits."
            )
        self.attention = [Site(k, n) for n in layers for k in ("q", "k", "pattern") if self.looks]
        parts: Sequence[SiteKind] = ("attn_out", "mlp_out") if info.d_mlp else ("attn_out",)
        self.added = [Site(k, n) for n in layers for k in parts if way.drop]
        self.reads = list(dict.fromkeys([*self.sites, *self.attention, *self.added]))

    def part(self, pair: Pair, tick: Callable[[int], None]) -> _Part:
        """All cells on some rows."""
        found = linear(self.model, pair, self.reads, self.way.steps)
        tick(len(path_of(self.way.steps)))
        values = self._cells(pair, found)
        embeddings = of_cell({EMBED: at_places(found, EMBED)}, Cell((EMBED,)), pair.base, pair.rows)
        magnitude = self._dropped(pair, found, tick) if self.way.drop else None
        return _Part(values, magnitude, found, embeddings, self._by_attention(pair, found))

    def _cells(self, pair: Pair, found: Linear) -> Float[Tensor, "C B"]:
        places = {s: at_places(found, s) for s in self.sites if s not in self.fixed}
        out = found.base_value.new_zeros((len(self.cells), len(pair.rows))).float()
        fixed: dict[tuple[Site, object], Tensor] = {}
        for c, cell in enumerate(self.cells):
            if cell.sites[0].whole in self.fixed:
                out[c] = self._by_pattern(cell, pair, found, fixed)
            else:
                out[c] = of_cell(places, cell, pair.base, pair.rows)
        return out.cpu()

    def _by_pattern(
        self, cell: Cell, pair: Pair, found: Linear, kept: dict[tuple[Site, object], Tensor]
    ) -> Float[Tensor, " B"]:
        """The QK fix: the exact change of attention; worked out once for all heads of a layer at the same positions."""
        site = cell.sites[0]
        key = (site.whole, cell.positions)
        if key not in kept:
            kept[key] = _pattern_change(self.model, site, cell, pair, found)
        by_query_head = kept[key]  # [B, H]
        if site.index is None:
            return by_query_head.sum(-1)
        group = by_query_head.shape[1] // self.model.info.shape.count(site.kind)
        return by_query_head[:, site.index * group : (site.index + 1) * group].sum(-1)

    def _dropped(self, pair: Pair, found: Linear, tick: Callable[[int], None]) -> Float[Tensor, "C B"]:
        """Mean of |estimate| over gradients that skip one layer each: AtP*'s GradDrop."""
        layers = self.model.info.n_layers
        total = found.base_value.new_zeros((len(self.cells), len(pair.rows))).float().cpu()
        for layer in range(layers):
            held = [
                Edit(site=s, rule="set", value=found.base[s].detach()) for s in self.added if s.layer == layer
            ]
            _, _, gradient = gradients_at(self.model, pair, [EMBED, *self.reads], held)
            total += self._cells(pair, replace(found, gradient=gradient)).abs()
            tick(1 + layer)
        return total / max(1, layers - 1)

    def _by_attention(self, pair: Pair, found: Linear) -> dict[Site, tuple[Tensor, Tensor]]:
        """Queries and keys of every layer moved at all positions: by the gradient that makes the estimates, and by the
        exact attention with the base run's own gradient at the pattern."""
        out: dict[Site, tuple[Tensor, Tensor]] = {}
        at_base = found
        if self.way.steps and self.attention:
            patterns = [s for s in self.attention if s.kind == "pattern"]
            _, _, own = gradients_at(self.model, pair, [EMBED, *patterns])
            at_base = replace(found, gradient={**found.gradient, **own})
        for site in self.attention:
            if site.kind != "pattern":
                everywhere = Cell((site,))
                real = selected(found.gradient[site], everywhere, pair.base, pair.rows)
                first_order = (at_places(found, site) * real[..., None]).sum((0, 1))
                exact = _pattern_change(self.model, site, everywhere, pair, at_base).sum(0)
                out[site] = first_order.cpu(), exact.unflatten(0, (len(first_order), -1)).sum(-1).cpu()
        return out


def _has_rule(model: Model) -> bool:
    """Whether it is known how this model makes scores of queries and keys."""
    try:
        model.weights.attention_rule(0)
    except Unsupported:
        return False
    return True


def _pattern_change(model: Model, site: Site, cell: Cell, pair: Pair, found: Linear) -> Float[Tensor, "B H"]:
    """dM/dpattern times the exact change of the pattern, by query head."""
    layer, kind = site.layer or 0, site.kind
    assert kind == "q" or kind == "k"
    pattern, whole = found.base[Site("pattern", layer)], site.whole
    fixed = found.base[Site("k" if kind == "q" else "q", layer)]
    chosen = selected(found.gradient[whole], cell, pair.base, pair.rows)
    rule = model.weights.attention_rule(layer)
    new = moved(kind, rule, found.base[whole], found.other[whole], fixed, pattern, chosen)
    return through_pattern(found.gradient[Site("pattern", layer)], new, pattern).sum(-1)


def _joined(parts: Sequence[_Part], work: _Work) -> Attribution:
    magnitudes = [p.magnitude for p in parts if p.magnitude is not None]
    base, other = (_along([getattr(p.linear, which) for p in parts]) for which in ("base_value", "other_value"))
    return Attribution(
        _along([p.values for p in parts]),
        _along(magnitudes) if magnitudes else None,
        base,
        other,
        _along([p.embeddings for p in parts]),
        _saturated(parts, work, float((other - base).sum())),
        work.looks,
    )


def _along(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along the last axis, the prompts."""
    out = tensors[0].new_empty((*tensors[0].shape[:-1], sum(t.shape[-1] for t in tensors)))
    start = 0
    for t in tensors:
        out[..., start : start + t.shape[-1]] = t
        start += t.shape[-1]
    return out.float().cpu()


def _saturated(parts: Sequence[_Part], work: _Work, gap: float) -> tuple[Saturated, ...]:
    """Heads whose moved attention is worth much more than the gradient says; those worth most first."""
    found: list[Saturated] = []
    rows = sum(len(p.linear.base_value) for p in parts)
    for site in parts[0].by_attention:
        sides = [[p.by_attention[site][i].tolist() for p in parts] for i in (0, 1)]
        estimates, exact = ([sum(x) / rows for x in zip(*side, strict=True)] for side in sides)
        for unit, (guess, worth) in enumerate(zip(estimates, exact, strict=True)):
            if abs(worth) >= OF_SIZE * abs(gap) / rows and abs(worth) > NOTHING and guess / worth < SEEN:
                name = unit_name(Site("head" if len(exact) == work.model.info.n_heads else "k", site.layer, unit))
                through = "q" if site.kind == "q" else "k"
                found.append(Saturated(head=name, through=through, estimate=guess, by_attention=worth))
    return tuple(sorted(found, key=lambda f: -abs(f.by_attention)))


def completeness(found: Attribution) -> Completeness:
    """The embeddings' estimates beside the difference they must add up to."""
    attributed, difference = float(found.embeddings.mean()), float((found.other - found.base).mean())
    gap = abs(attributed - difference) / abs(difference) if abs(difference) > 1e-6 else None
    return Completeness(attributed=attributed, difference=difference, gap=gap)


def saturation_warnings(
    saturated: Sequence[Saturated], complete: Completeness, way: Way, looked: bool
) -> tuple[str, ...]:
    """What the gradient cannot see on this run."""
    warnings: list[str] = []
    if saturated:
        named = ", ".join(
            f"{s.head} ({s.through}: {s.by_attention:+.2g}, gradient {s.estimate:+.2g})" for s in saturated[:6]
        )
        more = f" and {len(saturated) - 6} more" if len(saturated) > 6 else ""
        warnings.append(
            f"SATURATION: the gradient does not see what moving the attention does in {named}{more}. Estimates of "
            "whatever acts through these queries or keys are too small; trust the exact values."
        )
    if way.steps and complete.gap is not None and complete.gap > GAP:
        warnings.append(
            f"COMPLETENESS GAP: over {way.steps} steps the embeddings account for {complete.attributed:.3g} of "
            f"{complete.difference:.3g} ({complete.gap:.0%} off): the path is steeper than the steps (saturation). "
            "Take more steps, or patch exactly."
        )
    if not looked:
        warnings.append("Attention cannot be worked out on this architecture: saturated heads were not looked for.")
    return tuple(warnings)


SLOPE_ROWS, SLOPE_STEP = 4, 0.01


def slope_test(
    model: Model, base: Tokens, other: Tokens, metric: Metric, cell: Cell, estimates: Float[Tensor, " B"]
) -> SelfTest:
    """The estimate of one cell beside the slope of the metric when the cell is moved a hundredth of its way there and
    back: they are the same number, whatever the metric does further on."""
    rows = range(min(SLOPE_ROWS, base.n_rows))
    here, there, small = base.rows(rows), other.rows(rows), metric.rows(rows)
    whole = [s.whole for s in cell.sites]
    reads = model.run(there, read=whole).reads
    sides: list[Tensor] = []
    for factor in (SLOPE_STEP, -SLOPE_STEP):
        edits = [_moved_a_little(site, cell, rows, reads[site.whole], factor) for site in cell.sites]
        logits = model.run(here, edits=edits, logits_at=here.last).logits
        assert logits is not None
        sides.append(small(logits).double().cpu())
    slope = float(((sides[0] - sides[1]) / (2 * SLOPE_STEP)).mean())
    estimate = float(estimates[: len(rows)].double().mean())
    tolerance = 0.05 * max(abs(slope), abs(estimate)) + 5e-3
    name = f"estimate of {', '.join(map(str, cell.sites[:2]))} equals the metric's measured slope ({len(rows)} prompts)"
    passed = abs(slope - estimate) <= tolerance
    return SelfTest(name=name, expected=slope, found=estimate, tolerance=tolerance, passed=passed)


def _moved_a_little(site: Site, cell: Cell, rows: range, there: Tensor, factor: float) -> Edit:
    value = there if site.index is None else there[:, :, site.index]
    if cell.positions is None:
        return Edit(site=site, rule="interpolate", value=value, factor=factor)
    places = [list(cell.positions[b]) for b in rows]
    most = max(map(len, places))
    filled = [[*p, *[p[0]] * (most - len(p))] for p in places]
    picked = value[[[b] * most for b in range(len(places))], filled]
    positions = tuple(tuple(p) for p in places)
    return Edit(site=site, rule="interpolate", positions=positions, value=picked, factor=factor)
