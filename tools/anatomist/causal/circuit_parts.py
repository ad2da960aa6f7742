"""What circuits are made of: nodes (heads and MLPs), or edges between them; how they score and what they keep.

A circuit keeps its parts on the clean run; everything else carries the paired corrupted prompt. A contribution is what
the metric loses when a part alone carries the corrupted prompt: exactly, or to first order (attribution patching and
EAP: gradient at the clean run; EAP-IG: averaged over embeddings between the runs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ..measures.metrics import Metric, MetricName
from ..measures.statistics import Place
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site
from ..model.sweep_plan import Cell
from ..model.tokens import Tokens
from ..prompts.encoding import EncodedPrompts
from ..result import SelfTest
from .attribution import Attribution, Completeness, Saturated, Way, attribute, completeness
from .gradients import path_of
from .measured import bound_metrics, last_logits
from .random_circuits import Links
from .units import unit_name

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FEW = 4  # prompts of the self-tests
DOUBTED = 20  # parts behind saturated attention that are re-checked, the largest estimates first
Level = Literal["nodes", "edges"]
Method = Literal["exact", "eap", "eap_ig"]
Tick = Callable[[float, float, str], None]


class Task(NamedTuple):
    """Prompts and the metric on them."""

    prompts: EncodedPrompts
    metric: Metric

    @classmethod
    def of(cls, prompts: EncodedPrompts, name: MetricName, model: Model) -> Task:
        """Bind the metric."""
        (metric,) = bound_metrics((name,), prompts, model, prompts.clean)
        return cls(prompts, metric)

    def rows(self, index: Sequence[int]) -> Task:
        """Some of the prompts."""
        return Task(self.prompts.rows(index), self.metric.rows(index))

    @property
    def runs(self) -> tuple[Tokens, Tokens]:
        """Clean and corrupted tokens."""
        assert self.prompts.corrupted is not None
        return self.prompts.clean, self.prompts.corrupted


class FirstOrder(NamedTuple):
    """Contributions by gradients, and what the gradients could and could not see."""

    values: Tensor  # [prompts, parts]
    saturated: tuple[Saturated, ...]
    completeness: Completeness
    looked: bool  # whether saturation could be seen

    @classmethod
    def of(cls, values: Tensor, found: Attribution) -> FirstOrder:
        return cls(values, found.saturated, completeness(found), found.looked)


class CircuitParts(Protocol):
    """The parts of one model, by number."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]  # head or mlp; q, k, v, mlp or logits

    @property
    def links(self) -> Links | None:
        """How edges join; None for nodes, which all join through the residual."""
        ...

    @property
    def places(self) -> tuple[Place | None, ...] | None:
        """Layer and head of every node, None for an MLP; None for edges."""
        ...

    def values(self, on: Task, circuits: Sequence[Sequence[int]], tick: Tick) -> Float[Tensor, "C B"]:
        """The metric where only the given parts are clean, a circuit a row."""
        ...

    def first_order(self, on: Task, steps: int, tick: Tick) -> FirstOrder:
        """Contributions of the parts by gradients; no steps: at the clean run."""
        ...

    def behind(self, saturated: Saturated) -> list[int]:
        """The parts whose estimate a saturated head makes doubtful."""
        ...

    def tests(self, on: Task) -> tuple[SelfTest, ...]:
        """Identities of circuits on this model and these prompts."""
        ...


def parts_at(level: Level, model: Model, budget_bytes: int) -> CircuitParts:
    """
    Raises:
        Unsupported: edges on a model whose parts are not known.
    """
    return Nodes(model, budget_bytes) if level == "nodes" else Edges(model, budget_bytes)


def exact(parts: CircuitParts, on: Task, index: Sequence[int], tick: Tick) -> Float[Tensor, "k B"]:
    """Contributions of some parts, each by a pass of its own."""
    everything = range(len(parts.names))
    found = parts.values(on, [everything, *([j for j in everything if j != i] for i in index)], tick)
    return found[0] - found[1:]


def doubted(parts: CircuitParts, saturated: Sequence[Saturated], estimates: Sequence[float]) -> list[int]:
    """Parts whose estimate rests on saturated attention, at most 20, the largest estimates first."""
    found = dict.fromkeys(i for head in saturated for i in parts.behind(head))
    return sorted(found, key=lambda i: -abs(estimates[i]))[:DOUBTED]


class Nodes:
    """Heads and MLPs, on every backend: those outside a circuit are patched from the corrupted run."""

    links = None

    def __init__(self, model: Model, budget_bytes: int) -> None:
        info = model.info
        self.model, self.budget_bytes = model, budget_bytes
        self.checked: tuple[SelfTest, ...] = ()  # of the first sweep that was recomputed in part
        self.sites: list[Site] = []
        for layer in range(info.n_layers):
            self.sites += [Site("head", layer, h) for h in range(info.n_heads)]
            self.sites += [Site("mlp_out", layer)] if info.d_mlp else []
        self.names = tuple(unit_name(s) if s.kind == "head" else f"L{s.layer}MLP" for s in self.sites)
        self.kinds = tuple("head" if s.kind == "head" else "mlp" for s in self.sites)
        self.places = tuple((s.layer or 0, s.index) if s.index is not None else None for s in self.sites)

    def values(self, on: Task, circuits: Sequence[Sequence[int]], tick: Tick) -> Float[Tensor, "C B"]:
        """See `CircuitParts.values`."""
        from ..model.sweep import SweepPlan, sweep  # torch, only where a model is

        clean, corrupted = on.runs
        left_out = [tuple(s for i, s in enumerate(self.sites) if i not in kept) for kept in map(set, circuits)]
        cells = tuple(Cell(sites) for sites in left_out if sites) or (Cell((self.sites[0],)),)
        plan = SweepPlan(base=clean, source=corrupted, cells=cells, metrics=(on.metric,), read_at=clean.last)
        result = sweep(self.model, plan, tick, self.budget_bytes, spot_check=not self.checked)
        self.checked = self.checked or result.self_tests
        out, swept = result.values.new_empty((len(left_out), clean.n_rows)), iter(result.values[0])
        for c, sites in enumerate(left_out):
            out[c] = next(swept) if sites else result.base_values[0]
        return out.double()

    def first_order(self, on: Task, steps: int, tick: Tick) -> FirstOrder:
        """See `CircuitParts.first_order`."""
        cells = [Cell((site,)) for site in self.sites]
        found = attribute(self.model, *on.runs, on.metric, cells, Way(steps), self.budget_bytes, tick)
        return FirstOrder.of(-found.values.double().T, found)

    def behind(self, saturated: Saturated) -> list[int]:
        """The head itself, and those that share its keys."""
        info, name = self.model.info, saturated.head
        if name in self.names:
            return [self.names.index(name)]
        layer, kv = (int(n) for n in name[1:].split("KV"))
        group = info.n_heads // info.n_kv_heads
        return [self.names.index(f"L{layer}H{h}") for h in range(kv * group, (kv + 1) * group)]

    def tests(self, on: Task) -> tuple[SelfTest, ...]:
        """All heads of every layer and all MLPs patched by hand, in one pass with whole sites."""
        few = on.rows(range(min(FEW, on.prompts.n)))
        clean, corrupted = few.runs
        sites = list(dict.fromkeys(s.whole for s in self.sites))
        reads = self.model.run(corrupted, read=sites).reads
        edits = [Edit(site=site, rule="set", value=reads[site]) for site in sites]
        logits = self.model.run(clean, edits=edits, logits_at=clean.last).logits
        assert logits is not None
        empty = self.values(few, [[]], _quietly)[0]
        name = "the circuit of nothing equals all heads and MLPs of the corrupted run written by hand"
        return (*self.checked, _agree(name, empty, few.metric(logits).double().cpu()))


class Edges:
    """Edges between embedding, heads, MLPs and logits, each head's queries, keys and values apart."""

    places = None

    def __init__(self, model: Model, budget_bytes: int) -> None:
        from ..model.sweep_edges import EdgeSweep  # torch, only where a model is

        self.model, self.sweep, self.budget_bytes = model, EdgeSweep(model), budget_bytes
        graph = self.graph = self.sweep.graph
        self.names = tuple(graph.name(i) for i in range(len(graph.edges)))
        self.kinds = tuple(graph.receivers[e.receiver].kind for e in graph.edges)
        self.links = Links(
            tuple((e.sender, e.receiver) for e in graph.edges), tuple(r.senders for r in graph.receivers),
            graph.node_of, tuple(r.kind for r in graph.receivers),
        )  # fmt: skip

    def values(self, on: Task, circuits: Sequence[Sequence[int]], tick: Tick) -> Float[Tensor, "C B"]:
        """See `CircuitParts.values`."""
        return self.sweep.circuits(
            *on.runs, on.metric, circuits, self.budget_bytes, lambda done, of: tick(done, of, "circuits")
        ).double()

    def first_order(self, on: Task, steps: int, tick: Tick) -> FirstOrder:
        """See `CircuitParts.first_order`; saturation is looked for as for nodes."""
        values = self.sweep.scores(
            *on.runs, on.metric, path_of(steps), self.budget_bytes, lambda done, of: tick(done, of, "gradients")
        )
        cells = [Cell((Site("head", layer),)) for layer in range(self.model.info.n_layers)]
        found = attribute(self.model, *on.runs, on.metric, cells, Way(steps), self.budget_bytes, tick)
        return FirstOrder.of(values.double(), found)

    def behind(self, saturated: Saturated) -> list[int]:
        """The edges into the saturated queries or keys."""
        name = f"{saturated.head}.{saturated.through}"
        return [i for i, edge in enumerate(self.graph.edges) if self.graph.receivers[edge.receiver].name == name]

    def tests(self, on: Task) -> tuple[SelfTest, ...]:
        """The circuit of every edge and that of none, beside the model's own passes."""
        few = on.rows(range(min(FEW, on.prompts.n)))
        found = self.values(few, [range(len(self.names)), []], _quietly)
        plain = [few.metric(last_logits(self.model, tokens)).double().cpu() for tokens in few.runs]
        return (
            _agree("the circuit of every edge equals the model's own clean pass", found[0], plain[0]),
            _agree("the circuit of no edge equals the model's own corrupted pass", found[1], plain[1]),
        )


def _quietly(done: float, total: float, what: str) -> None:
    """Progress of a self-test."""


def _agree(name: str, found: Float[Tensor, " B"], expected: Float[Tensor, " B"]) -> SelfTest:
    worst = float((found - expected).abs().max())
    tolerance = max(1e-3, 1e-4 * float(expected.abs().max()))
    return SelfTest(name=name, expected=0.0, found=worst, tolerance=tolerance, passed=worst <= tolerance)
