"""What later components add back when one is ablated: total effect, the part under a frozen norm, and who helps.

B prompts. With M the logit difference (before any soft-cap), c the ablated component and s the intact run's norm scale:

    total  = M(c ablated) - M(intact)            frozen = the same with the final norm still dividing by s
    direct = what c's own change writes, divided by s
    total - direct = (frozen - direct) + (total - frozen) = what later components add + what the norm's scale adds

Under the frozen norm the logit difference is the sum of its terms, so frozen - direct is the change of the other terms,
one by one. Source: McGrath et al., arXiv 2307.15771, section 3 (direct against total effect of an ablation); Rushing &
Nanda, arXiv 2402.15390, sections 3 and 4 (self-repair of single heads; the share of the final norm's scale).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from einops import einsum
from pydantic import Field

from ..measures.metrics import widened
from ..measures.statistics import Clusters
from ..model.batches import batches
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import Tokens
from ..result import Estimate, Frozen
from .direct_effects import Effects, direct_effects, of_changed_heads, pulled_back, sites_read, taken_apart, wide

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

NEGLIGIBLE = 1e-3  # logits; a direct effect below this has nothing to repair
HELPERS = 5
Positions = tuple[tuple[int, ...], ...] | None


class Written(NamedTuple):
    """What replaces activations; zeros where there are no values."""

    values: Mapping[Site, Tensor] | None  # by whole site, [R, T', *feature]
    rows: Sequence[int]  # per prompt, its row of the values

    def at(self, site: Site, row: int, positions: Sequence[int]) -> Tensor | None:
        """[P, *feature] of one prompt."""
        if self.values is None:
            return None
        whole = self.values[site.whole][self.rows[row]]
        return (whole if site.index is None else whole[:, site.index])[list(positions)]


class Task(NamedTuple):
    """The prompts that everything is measured on, one answer and one wrong token each."""

    model: Model
    tokens: Tokens
    answers: Sequence[int]
    wrongs: Sequence[int]
    written: Written
    positions: Positions

    def some(self, rows: Sequence[int]) -> tuple[Tokens, list[int], list[int]]:
        return self.tokens.rows(rows), [self.answers[r] for r in rows], [self.wrongs[r] for r in rows]


class Apart(NamedTuple):
    """An ablation taken apart, per prompt."""

    frozen: Float[Tensor, " B"]
    total: Float[Tensor, " B"]
    others: Mapping[str, Float[Tensor, " B"]]  # change of every other component's direct effect, norm frozen
    own: Float[Tensor, " B"]  # change of what is ablated itself
    gap: float  # of the frozen logit difference to its terms, relative to the largest


def direct_changes(task: Task, sites: Sequence[Site], budget_bytes: int) -> Float[Tensor, "C B"]:
    """The direct effect of replacing each component at the last token, every norm frozen at the intact run."""
    model = task.model
    found: Tensor | None = None
    for rows in batches(model.info, task.tokens, sites_read(model, ()), budget_bytes):
        part = _direct(task, rows, sites)
        found = part.new_empty((len(sites), task.tokens.n_rows)) if found is None else found
        found[:, list(rows)] = part
    assert found is not None
    return found.cpu()


def _direct(task: Task, rows: Sequence[int], sites: Sequence[Site]) -> Float[Tensor, "C b"]:
    some, answers, wrongs = task.some(rows)
    weights, last = task.model.weights, Site("resid_post", task.model.info.n_layers - 1)
    whole = sorted({site.whole for site in sites}, key=lambda s: s.layer or 0)
    ran = task.model.run(some, read=[*whole, last])
    at = {s: widened(x[list(range(some.n_rows)), list(some.last)]) for s, x in ran.reads.items()}
    norm = wide(weights.final_norm())
    contrast = (widened(weights.unembed(answers)) - widened(weights.unembed(wrongs))).T
    direction = pulled_back(norm, contrast, norm.scale(at[last]))
    changes: dict[Site, Tensor] = {}
    for site in whole:
        new = at[site] * 0
        for i, row in enumerate(rows):
            value = task.written.at(site, row, some.last[i : i + 1])
            if value is not None:
                new[i] = widened(value[0])
        change = new - at[site]
        if site.kind == "head":
            changes[site] = of_changed_heads(weights, site.layer or 0, at[site], change, direction)
        else:
            changes[site] = einsum(change, direction, "b d, b d -> b")
    columns = [changes[s.whole] if s.index is None else changes[s.whole][:, s.index] for s in sites]
    out = columns[0].new_empty((len(sites), some.n_rows))
    for c, column in enumerate(columns):
        out[c] = column
    return out


def apart(task: Task, sets: Sequence[Sequence[Site]], budget_bytes: int) -> list[Apart]:
    """Every set ablated together, on every prompt."""
    pieces: list[list[Apart]] = [[] for _ in sets]
    model, order = task.model, list[int]()
    for rows in batches(model.info, task.tokens, sites_read(model, ()), budget_bytes // 2):
        some, answers, wrongs = task.some(rows)
        order += rows
        clean = direct_effects(model, some, answers, wrongs)
        for n, sites in enumerate(sets):
            edits = [_edit(task, site, rows) for site in sites]
            hurt = direct_effects(model, some, answers, wrongs, edits=edits, scale_of=clean.final)
            pieces[n].append(_apart(model, clean, hurt, sites))
    back = sorted(range(len(order)), key=lambda i: order[i])
    return [_joined(found, back) for found in pieces]


def _edit(task: Task, site: Site, rows: Sequence[int]) -> Edit:
    """The ablation of one component on some rows; its value has one entry a position, short rows filled up."""
    lengths = task.tokens.lengths
    at = [tuple(range(lengths[r])) if task.positions is None else task.positions[r] for r in rows]
    values = [task.written.at(site, row, places) for row, places in zip(rows, at, strict=True)]
    if values[0] is None:
        return Edit(site=site, rule="zero", positions=tuple(at))
    value = values[0].new_zeros((len(rows), max(map(len, at)), *values[0].shape[1:]))
    for i, one in enumerate(values):
        if one is not None:
            value[i, : len(one)] = one
    return Edit(site=site, rule="set", positions=tuple(at), value=value)


def _apart(model: Model, clean: Effects, hurt: Effects, sites: Sequence[Site]) -> Apart:
    change = hurt.values - clean.values
    whole = [i for i, term in enumerate(clean.terms) if term.part_of is None]
    split = {i for found in taken_apart(clean.terms).values() for i, _ in found}
    names = {_name(site) for site in sites}
    own = [i for i, t in enumerate(clean.terms) if t.name in names]  # attn_out is edited behind its heads
    finest = [i for i, t in enumerate(clean.terms) if i not in split and t.part_of not in names]
    others = {clean.terms[i].name: change[:, i] for i in finest if i not in own}
    return Apart(
        change[:, whole].sum(1), hurt.logit_diff - clean.logit_diff, others, change[:, own].sum(1),
        _gap(model, clean, hurt, whole),
    )  # fmt: skip


def _name(site: Site) -> str:
    return str(site) if site.index is None else f"L{site.layer}H{site.index}"


def _gap(model: Model, clean: Effects, hurt: Effects, whole: Sequence[int]) -> float:
    """The terms under the intact run's scale against the model's own norm and unembedding, rescaled to that scale."""
    norm = wide(model.weights.final_norm())
    ratio = (norm.scale(hurt.final) / norm.scale(clean.final))[:, 0]
    biases = [i for i in whole if hurt.terms[i].name in ("final_norm bias", "unembedding bias")]
    constant = hurt.values[:, biases].sum(1)
    expected = (hurt.logit_diff - constant) * ratio + constant
    largest = hurt.values[:, whole].abs().amax(1).clamp(min=1e-6)
    return float(((hurt.values[:, whole].sum(1) - expected).abs() / largest).max())


def _joined(parts: Sequence[Apart], back: Sequence[int]) -> Apart:
    """Batches put together, prompts in their order."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        out = tensors[0].new_empty(len(back))
        done = 0
        for t in tensors:
            out[done : done + len(t)] = t
            done += len(t)
        return out[list(back)].cpu()

    return Apart(
        join([p.frozen for p in parts]), join([p.total for p in parts]),
        {name: join([p.others[name] for p in parts]) for name in parts[0].others}, join([p.own for p in parts]),
        max(p.gap for p in parts),
    )  # fmt: skip


class Helper(Frozen):
    """A component whose own direct effect changes when another one is ablated."""

    name: str = Field(description="Head L10H7, or site.")
    change: Estimate = Field(description="Change of its direct effect, norm frozen, in logits.")


class Repair(Frozen):
    """One ablation taken apart; all in logits."""

    name: str = Field(description="What is ablated.")
    direct: Estimate = Field(description="What its own change writes, norm frozen.")
    frozen: Estimate = Field(description="Total effect with the final norm frozen at the intact run's scale.")
    total: Estimate = Field(description="Total effect.")
    by_components: Estimate = Field(description="frozen - direct: what later components add.")
    by_norm: Estimate = Field(description="total - frozen: what the final norm's scale adds.")
    repair: Estimate = Field(description="total - direct, both together.")
    repaired: Estimate | None = Field(
        description="Share of the direct effect that comes back, 1 - total / direct, of means; not clipped; absent "
        "where the direct effect has 0 in its interval or is below .001 logits."
    )
    helpers: tuple[Helper, ...] = Field(description="Components that change most; together they are `by_components`.")


def repair_of(name: str, direct: ndarray, found: Apart, clusters: Clusters) -> Repair:
    """One ablation with its intervals and the components that change most; direct [B]."""

    def mean(values: ndarray) -> Estimate:
        return clusters.means(values).estimate()

    frozen, total = numbers(found.frozen), numbers(found.total)
    changes = {other: numbers(change) for other, change in found.others.items()}
    order = sorted(changes, key=lambda other: -abs(changes[other].mean()))
    sure = mean(direct)
    in_doubt = sure.low is not None and sure.high is not None and sure.low <= 0 <= sure.high
    share = None
    if not in_doubt and abs(sure.mean) > NEGLIGIBLE:
        share = clusters.ratios(direct - total, direct).estimate()
    return Repair(
        name=name, direct=sure, frozen=mean(frozen), total=mean(total), by_components=mean(frozen - direct),
        by_norm=mean(total - frozen), repair=mean(total - direct), repaired=share,
        helpers=tuple(Helper(name=o, change=mean(changes[o])) for o in order[:HELPERS] if changes[o].any()),
    )  # fmt: skip


def numbers(x: Tensor) -> ndarray:
    """Float64, on the processor."""
    return x.detach().double().cpu().numpy()
