"""Show which tokens a neuron or a head reads and which logits it writes, with the shape of the distribution over all.

Idea: a neuron's input weights against the embedding say which tokens excite it directly, its output weights against the
unembedding which logits it moves. For a head the same holds of the singular directions of its OV matrix: what it reads
along one it writes along its partner. Skew and kurtosis over the vocabulary tell a unit that cares for few tokens
from one that shifts everything a little. All neurons of layers can be ranked by them.

Source: Geva et al., arXiv 2203.14680 (MLP outputs promote tokens); Gurnee et al., arXiv 2401.12181, section 4
(variance, skew and kurtosis of W_out against W_U: prediction, suppression and partition neurons); Millidge & Black
2022, https://www.alignmentforum.org/posts/mkbGjzxD8d8XqKHzA (singular directions). Values: read = norm(e_t) . w,
write = w F u_t with F the linear part of the final norm. Baseline: random directions through the same norms.

Does not show: when the unit is active in text, or what later layers make of it. Deep units read little of the token's
own embedding; early ones write for later layers, not for the logits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..causal.circuits_checked import check_written
from ..causal.measured import failed
from ..causal.token_directions import (
    Directions,
    Moments,
    Side,
    head_directions,
    moments,
    neuron_directions,
    random_directions,
    values_of,
)
from ..causal.units import chosen_layers, parse_unit, unit_name
from ..causal.vocabulary import token_labels
from ..errors import BadArguments
from ..figures import Bars, Figure, Scatter
from ..model.protocol import Model, ModelInfo
from ..model.sites import Site
from ..result import Frozen, Result, SelfTest
from ..technique import Arguments as Common
from ..technique import Context, Layers

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Tokens that units read and write"
QUESTIONS = (
    "Which tokens does this neuron promote or suppress?",
    "Which tokens does a neuron or head respond to, by its weights?",
    "Which neurons of a layer write to few tokens only?",
)
RankBy = Literal["kurtosis", "skew", "negative_skew", "spread"]
DRAWS = 100  # random directions
MOST_UNITS = 12
SHOWN_PANELS = 6


class Arguments(Common):
    """Arguments of token_statistics."""

    units: tuple[str, ...] | None = Field(
        default=None, max_length=MOST_UNITS, description="Neurons L3N17 or heads L3H2; absent: the top of `layers`."
    )
    layers: Layers = Field(default=None, description="Layers whose neurons are all ranked by what they write.")
    rank_by: RankBy = Field(
        default="kurtosis", description="Ranking of neurons, by the values they write over the vocabulary."
    )
    top: int = Field(default=5, ge=1, le=50, description="Neurons listed by the ranking.")
    tokens: int = Field(default=10, ge=1, le=50, description="Tokens shown at either end.")
    directions: int = Field(default=2, ge=1, le=8, description="Singular directions of a head.")


class TokenValue(Frozen):
    """One token at an end of the distribution."""

    token: str = Field(description="The token.")
    value: float = Field(description="Read: input on its embedding. Write: logit times the final norm's scale.")


class DirectionStatistics(Frozen):
    """Values of one direction over the vocabulary."""

    side: Side = Field(description="reads (input weights), gate (gate weights) or writes (output weights).")
    direction: int | None = Field(description="Which singular direction of a head, from 0; absent for neurons.")
    size: float = Field(description="Length of the weights; for a head's direction its singular value.")
    mean: float = Field(description="Mean value over the vocabulary.")
    sd: float = Field(description="Standard deviation over the vocabulary.")
    skew: float = Field(description="Skew: positive where the high end is longer.")
    kurtosis: float = Field(description="Excess kurtosis: 0 for a Gaussian, large where few tokens stand out.")
    spread: float = Field(description="Standard deviation over that of random directions of the same length.")
    highest: tuple[TokenValue, ...] = Field(description="Tokens with the highest values, highest first.")
    lowest: tuple[TokenValue, ...] = Field(description="Tokens with the lowest values, lowest first.")


class UnitStatistics(Frozen):
    """A neuron or head."""

    unit: str = Field(description="Its name.")
    sides: tuple[DirectionStatistics, ...] = Field(description="What it reads and what it writes.")


class RandomDirections(Frozen):
    """Random directions in the place of a layer's."""

    layer: int = Field(description="The layer whose norm they pass.")
    of: Literal["neuron", "head"] = Field(description="What they stand for: the two read through different norms.")
    side: Side = Field(description="Where they stand.")
    sd: float = Field(description="Mean standard deviation of a direction of length one.")
    skew_sd: float = Field(description="Standard deviation of skew over the draws.")
    kurtosis_mean: float = Field(description="Mean excess kurtosis.")
    kurtosis_largest: float = Field(description="Largest excess kurtosis.")
    draws: int = Field(description="Directions drawn.")


class RankedNeuron(Frozen):
    """A neuron by what it writes."""

    unit: str = Field(description="The neuron.")
    kurtosis: float = Field(description="Excess kurtosis of the values it writes.")
    skew: float = Field(description="Skew of the values it writes.")
    spread: float = Field(description="Their standard deviation over that of random directions of the same length.")


class TokenStatisticsResult(Result):
    """Tokens that units read and write, by their weights."""

    units: tuple[UnitStatistics, ...] = Field(description="The units named, or the top of the ranking.")
    ranking: tuple[RankedNeuron, ...] = Field(description="Top neurons of the layers; empty where none were ranked.")
    ranked: int = Field(description="Neurons that were ranked.")
    beyond_random: int | None = Field(
        description="Of them, how many have a kurtosis above every random direction's; null where none were ranked."
    )
    random: tuple[RandomDirections, ...] = Field(description="The baseline, per layer and side.")
    self_tests: tuple[SelfTest, ...] = Field(description="What is written, against the model's own logits.")


Baseline = dict[tuple[int, str, Side], RandomDirections]


class Measured(NamedTuple):
    """Neurons of one layer by what they write."""

    layer: int
    moments: Moments
    spread: list[float]
    beyond: int  # with a kurtosis above every random direction's


def run(context: Context, arguments: Arguments) -> TokenStatisticsResult:
    """Describe the units named, or rank all neurons of layers and describe the top.

    Raises:
        BadArguments: neither units nor layers, a unit named twice, or neurons of a model without MLPs.
        BadSite: a unit or layer that does not exist.
        Unsupported: the weights of this architecture are not known.
    """
    model = context.model
    named = _named(model.info, arguments)
    random: Baseline = {}
    ranked = _ranked(context, arguments, random)
    ranking = _ranking(ranked, arguments)
    chosen = named or [parse_unit(r.unit, "neuron", model.info.shape) for r in ranking[:MOST_UNITS]]
    units = tuple(_unit(model, site, arguments, random) for site in chosen)
    test = check_written(model, _first_written(model, chosen[0]))
    return TokenStatisticsResult(
        summary=_summary(units, ranking, ranked, arguments),
        warnings=(*failed([test]), *_warnings(model, chosen)),
        units=units,
        ranking=ranking,
        ranked=sum(len(m.spread) for m in ranked),
        beyond_random=sum(m.beyond for m in ranked) if ranked else None,
        random=tuple(random.values()),
        self_tests=(test,),
    )


def plot(result: TokenStatisticsResult) -> Figure:
    """The ends of each unit's distributions, and the ranked neurons by skew and kurtosis."""
    sides = [(unit.unit, side) for unit in result.units for side in unit.sides][:SHOWN_PANELS]
    panels: list[Bars | Scatter] = [_bars(unit, side) for unit, side in sides]
    if result.ranking:
        r = result.ranking
        panels.append(
            Scatter(
                title="ranked neurons", x_title="skew of what is written", y_title="excess kurtosis",
                x=tuple(n.skew for n in r), y=tuple(n.kurtosis for n in r), labels=tuple(n.unit for n in r),
            )
        )  # fmt: skip
    return Figure(
        title="Tokens read and written",
        caption="Values over the vocabulary by the weights alone: reads on normed token embeddings, writes in logits "
        "times the final norm's scale. Not when a unit is active in text.",
        panels=tuple(panels),
        columns=3 if any(side.side == "gate" for _, side in sides) else 2,
    )


def _bars(unit: str, side: DirectionStatistics) -> Bars:
    shown = (*side.highest, *reversed(side.lowest))
    which = "" if side.direction is None else f" {side.direction}"
    return Bars(
        title=f"{unit} {side.side}{which}", value_title="value", labels=tuple(t.token for t in shown),
        values=tuple(t.value for t in shown),
    )  # fmt: skip


def _named(info: ModelInfo, arguments: Arguments) -> list[Site]:
    if arguments.units is None and arguments.layers is None:
        raise BadArguments("name `units` (L3N17, L3H2), or `layers` whose neurons are to be ranked.")
    if info.d_mlp == 0 and (arguments.layers is not None or any("N" in u for u in arguments.units or ())):
        raise BadArguments(f"{info.name} has no MLPs and so no neurons; name heads (L1H2).")
    found = [
        parse_unit(text, "neuron" if re.fullmatch(r"L\d+N\d+", text) else "head", info.shape)
        for text in arguments.units or ()
    ]
    if len(set(found)) < len(found) or arguments.units == ():
        raise BadArguments(f"units {list(arguments.units or ())}: name at least one, each once.")
    return found


def _ranked(context: Context, arguments: Arguments, random: Baseline) -> list[Measured]:
    """Every neuron of the layers by what it writes; kept with the run."""
    if arguments.layers is None:
        return []
    found: list[Measured] = []
    layers = chosen_layers(arguments.layers, context.model.info.shape)
    for i, layer in enumerate(layers):
        write = neuron_directions(context.model, layer)[-1]
        m = moments(context.model, write)
        base = _random(context.model, Site("neuron", layer), write, arguments.seed, random)
        spread = [_spread(s, n, base) for s, n in zip(m.sd, write.matrix.norm(dim=1).tolist(), strict=True)]
        found.append(Measured(layer, m, spread, int((m.kurtosis > base.kurtosis_largest).sum())))
        kept = write.matrix.new_tensor([list(m.mean), list(m.sd), list(m.skew), list(m.kurtosis)])
        context.keep(f"blocks.{layer}.writes", kept, axes=("mean, sd, skew, kurtosis", "neuron"), unit="over tokens")
        context.progress(i + 1, len(layers), "layers of neurons measured")
    return found


def _ranking(ranked: Sequence[Measured], arguments: Arguments) -> tuple[RankedNeuron, ...]:
    every = [
        RankedNeuron(
            unit=unit_name(Site("neuron", r.layer, n)), kurtosis=float(r.moments.kurtosis[n]),
            skew=float(r.moments.skew[n]), spread=r.spread[n],
        )
        for r in ranked
        for n in range(len(r.spread))
    ]  # fmt: skip
    by = arguments.rank_by
    value = (lambda n: -n.skew) if by == "negative_skew" else (lambda n: getattr(n, by))
    return tuple(sorted(every, key=value, reverse=True)[: arguments.top])


def _random(model: Model, site: Site, like: Directions, seed: int, known: Baseline) -> RandomDirections:
    """The baseline of a layer, kind of unit and side, measured once."""
    assert site.layer is not None
    key = (site.layer, site.kind, like.side)
    if key not in known:
        drawn = random_directions(model, like, DRAWS, seed)
        m = moments(model, drawn)
        known[key] = RandomDirections(
            layer=site.layer, of="neuron" if site.kind == "neuron" else "head", side=like.side,
            sd=float((m.sd / drawn.matrix.norm(dim=1).tolist()).mean()), skew_sd=float(m.skew.std(ddof=1)),
            kurtosis_mean=float(m.kurtosis.mean()), kurtosis_largest=float(m.kurtosis.max()), draws=DRAWS,
        )  # fmt: skip
    return known[key]


def _spread(sd: float, size: float, base: RandomDirections) -> float:
    return float(sd) / (size * base.sd) if size and base.sd else 0.0


def _unit(model: Model, site: Site, arguments: Arguments, random: Baseline) -> UnitStatistics:
    sides: list[DirectionStatistics] = []
    for d, sizes, numbered in _directions(model, site, arguments.directions):
        base = _random(model, site, d, arguments.seed, random)
        values, m = values_of(model, d), moments(model, d)
        for i, size in enumerate(sizes):
            high, low = (_ends(model, values[:, i], arguments.tokens, largest=end) for end in (True, False))
            length = float(d.matrix[i].norm())
            sides.append(
                DirectionStatistics(
                    side=d.side, direction=i if numbered else None, size=size, mean=float(m.mean[i]),
                    sd=float(m.sd[i]), skew=float(m.skew[i]), kurtosis=float(m.kurtosis[i]),
                    spread=_spread(m.sd[i], length, base), highest=high, lowest=low,
                )
            )  # fmt: skip
    return UnitStatistics(unit=unit_name(site), sides=tuple(sorted(sides, key=lambda s: s.direction or 0)))


def _directions(model: Model, site: Site, k: int) -> list[tuple[Directions, list[float], bool]]:
    """A unit's directions with their sizes; a head's are turned so that the longer end written is positive."""
    assert site.layer is not None
    assert site.index is not None
    if site.kind == "neuron":
        found = [d._replace(matrix=d.matrix[[site.index]]) for d in neuron_directions(model, site.layer)]
        return [(d, [float(d.matrix.norm())], False) for d in found]
    singular, read, write = head_directions(model, site.layer, site.index, k)
    values = values_of(model, write)
    turn = (values.amax(0) >= -values.amin(0)).to(values.dtype)[:, None] * 2 - 1
    sizes = list(map(float, singular[: len(turn)]))
    return [(d._replace(matrix=d.matrix * turn), sizes, True) for d in (read, write)]


def _ends(model: Model, values: Tensor, k: int, *, largest: bool) -> tuple[TokenValue, ...]:
    best = values.topk(max(1, min(k, values.shape[0] // 2)), largest=largest)  # a token stands at one end only
    labels = token_labels(model, best.indices.tolist())
    return tuple(TokenValue(token=t, value=v) for t, v in zip(labels, best.values.tolist(), strict=True))


def _first_written(model: Model, site: Site) -> Tensor:
    return _directions(model, site, 1)[-1][0].matrix


def _summary(
    units: Sequence[UnitStatistics], ranking: Sequence[RankedNeuron], ranked: Sequence[Measured], arguments: Arguments
) -> str:
    parts = []
    if ranking:
        best, n = ranking[0], sum(len(m.spread) for m in ranked)
        value = best.skew if "skew" in arguments.rank_by else getattr(best, arguments.rank_by)
        parts.append(
            f"Of {n} neurons {best.unit} has the first place by {arguments.rank_by} ({value:.1f}); "
            f"{sum(m.beyond for m in ranked)} write with a kurtosis above that of all {DRAWS} random directions "
            f"(about {n / (DRAWS + 1):.0f} of {n} random ones would)"
        )
    for unit in units[:3]:
        sides = {s.side: s for s in reversed(unit.sides)}  # of a head's directions the first
        write, read = sides["writes"], sides["reads"]
        parts.append(
            f"{unit.unit} raises {_named_tokens(write.highest)} and lowers {_named_tokens(write.lowest, -1)} (kurtosis "
            f"{write.kurtosis:.1f}, skew {write.skew:.1f}); it reads most from {_named_tokens(read.highest)}"
            + (f", its gate opens for {_named_tokens(sides['gate'].highest)}" if "gate" in sides else "")
        )
    return ". ".join(parts) + ". By the weights alone: not when the unit is active, and only its direct path."


def _named_tokens(end: Sequence[TokenValue], sign: int = 1) -> str:
    """The first three of an end that lie on its side of 0."""
    return ", ".join(repr(t.token) for t in end[:3] if sign * t.value > 0) or "nothing"


def _warnings(model: Model, chosen: Sequence[Site]) -> tuple[str, ...]:
    found = []
    if model.info.norm != "none":
        found.append(
            "Norms are applied, not folded: embeddings are normed as if they were the whole residual, writes leave out "
            "the final norm's scale. Biases are left out."
        )
    if any(s.kind == "neuron" and model.weights.mlp_gate(s.layer or 0) is not None for s in chosen):
        found.append(
            "These neurons are gated: a neuron's value is what it reads times its activated gate, so it can be "
            "negative, and then raises what is listed as lowered."
        )
    if any(s.kind == "head" for s in chosen):
        found.append(
            "The sign of a head's singular direction is arbitrary: what it reads low it writes low, and the reverse."
        )
    return tuple(found)
