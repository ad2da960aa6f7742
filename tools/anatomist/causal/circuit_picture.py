"""Pictures of circuits: faithfulness over sizes; edges as a graph, nodes by layer; the circuit beside its rivals."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..figures import Bars, Graph, Heatmap, Lines, Series
from ..result import grid
from .circuit_evaluation import Verdict
from .faithfulness import Curve

DRAWN = 60  # edges of a graph, the largest
TOP = 10_000  # level of the logits


def curve_panel(curves: Sequence[Curve]) -> Lines:
    """Faithfulness over the share of parts kept."""
    first = curves[0].points
    series = tuple(
        Series(
            name=curve.name,
            values=tuple(p.faithfulness.mean for p in curve.points),
            low=tuple(p.faithfulness.low for p in curve.points),
            high=tuple(p.faithfulness.high for p in curve.points),
        )
        for curve in curves
    )
    return Lines(
        title="faithfulness over sizes, held-out prompts",
        x_title="share of all parts kept (number)",
        x=tuple(f"{p.fraction:g} ({p.size})" for p in first),
        y_title="faithfulness f",
        series=series,
        reference=1.0,
    )


def circuit_panel(members: Sequence[tuple[str, float]], of: int, unit: str) -> Graph | Heatmap:
    """The circuit's parts with their contributions: edges as a graph, nodes in a layer by head grid."""
    if any("->" in name for name, _ in members):
        return _graph(members[:DRAWN], of, unit)
    return _nodes(members, unit)


def _graph(members: Sequence[tuple[str, float]], of: int, unit: str) -> Graph:
    ends = [name.split(" -> ") for name, _ in members]
    joined = [(sender, re.sub(r"\.[qkv]$", "", receiver)) for sender, receiver in ends]
    names = sorted({name for pair in joined for name in pair}, key=lambda n: (_level(n), n))
    number = {name: i for i, name in enumerate(names)}
    shown = "" if len(members) == of else f", the largest {len(members)} of {of}"
    shared = "; a KV feeds the heads of its group" if any("KV" in receiver for _, receiver in ends) else ""
    return Graph(
        title=f"the circuit's edges{shown}{shared}",
        value_title=f"contribution ({unit})",
        nodes=tuple(names),
        levels=tuple(_level(name) for name in names),
        edges=tuple((number[a], number[b]) for a, b in joined),
        values=tuple(value for _, value in members),
        labels=tuple(name for name, _ in members),
        marks=tuple(receiver.partition(".")[2] for _, receiver in ends),
    )


def _level(name: str) -> int:
    """Embedding, then heads and MLP of every layer, then the logits."""
    if name in ("embed", "logits"):
        return -1 if name == "embed" else TOP
    layer = int(name[1:].split("H")[0].split("K")[0].split("M")[0])
    return 2 * layer + name.endswith("MLP")


def _nodes(members: Sequence[tuple[str, float]], unit: str) -> Heatmap:
    layers = sorted({_level(name) // 2 for name, _ in members})
    heads = sorted({int(name.split("H")[1]) for name, _ in members if "H" in name})
    columns = [f"H{h}" for h in heads] + (["MLP"] if any(name.endswith("MLP") for name, _ in members) else [])
    values = dict(members)
    cells = [values.get(f"L{layer}{column}") for layer in layers for column in columns]
    axes = [("layer", [str(n) for n in layers]), ("part", columns)]
    return Heatmap(title=f"the circuit's parts: contribution ({unit})", grid=grid("contribution", unit, axes, cells))


def rivals_panel(v: Verdict) -> Bars:
    """The circuit, what is left without it and its inverse with their intervals; random circuits with their range."""
    single = {"circuit": v.faithfulness, "all the rest": v.complement, "inverted": v.inverted}
    bars = [(name, "interval over prompts", one.mean, one.low, one.high) for name, one in single.items()]
    for name, rivals in {"random": v.random, "other heads, same layers": v.same_layers}.items():
        if rivals and rivals.mean is not None:
            label, values = f"{name} ({len(rivals.values)})", rivals.values
            bars.append((label, "range of random circuits", rivals.mean, min(values), max(values)))
    labels, groups, means, low, high = zip(*bars, strict=True)
    return Bars(
        title="held-out faithfulness of the circuit and its rivals", value_title="faithfulness f", labels=labels,
        groups=groups, values=means, low=low, high=high, reference=1.0,
    )  # fmt: skip
