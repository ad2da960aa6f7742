"""Features of a dictionary as parts that can be taken away: names, contributions, and sweep cells, error term kept.

Feature i adds c_i = scale(x) f_i d_i at the site that the dictionary explains. Taking it away is adding -c_i to what
the model really has there: everything else, the dictionary's error y - y_hat included, stays as it is. (Putting the
reconstruction in place of the activation would mix the effect of the feature with that of the error.) Other features
are not encoded anew: the edit is that of one direction by a known amount.

Source: Marks et al., arXiv 2403.19647, section 3 (error nodes kept, exact ablation of features).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dictionaries.logits import promoted, residual_directions
from ..dictionaries.protocol import Dictionary
from ..dictionaries.quality import MASSIVE
from ..dictionaries.reading import activations, read_of, shaped
from ..errors import BadArguments, Unsupported, WouldNotFit
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site
from ..model.sweep_plan import Cell
from ..model.tokens import Tokens
from ..result import SelfTest
from .vocabulary import token_labels

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Positions = tuple[tuple[int, ...], ...] | None
TESTED_ROWS = 4
_NAME = re.compile(r"(?:L(\d+))?F(\d+)")


@dataclass(frozen=True, eq=False)
class FeatureValues:
    """Activations of chosen features on some rows, and what one unit is worth."""

    features: tuple[int, ...]
    values: Float[Tensor, "B T n"]  # 0 past a row's end
    worth: Float[Tensor, "B T 1"]
    norms: Float[Tensor, "B T"]  # of what stands at the site that is explained; 0 past a row's end

    def of(self, chosen: Sequence[int]) -> Float[Tensor, "B T m"]:
        """Activations of some of them."""
        place = {feature: i for i, feature in enumerate(self.features)}
        return self.values[..., [place[f] for f in chosen]]


def chosen_dictionary(dictionary: Dictionary | None) -> Dictionary:
    """
    Raises:
        BadArguments: none was named.
    """
    if dictionary is None:
        raise BadArguments("no dictionary was named: give `sae`, a handle of load_sae or a name that list_saes shows.")
    return dictionary


def feature_name(site: Site, feature: int) -> str:
    """'L15F1234'; 'F1234' at a whole-model site."""
    return f"F{feature}" if site.layer is None else f"L{site.layer}F{feature}"


def parse_features(named: Sequence[int | str], dictionary: Dictionary) -> tuple[int, ...]:
    """Features given as numbers or names, each once.

    Raises:
        BadArguments: none, one twice, not a feature's name, another layer's, or a number the dictionary lacks.
    """
    info = dictionary.info
    found = tuple(_number(one, dictionary) for one in named)
    if not found or len(set(found)) < len(found):
        raise BadArguments(f"features {list(named)}: name at least one, each once.")
    for feature in found:
        if not 0 <= feature < info.d_dict:
            raise BadArguments(f"feature {feature} does not exist: {info.name} has features 0 to {info.d_dict - 1}.")
    return found


def _number(named: int | str, dictionary: Dictionary) -> int:
    if isinstance(named, int):
        return named
    site = dictionary.info.writes
    found = _NAME.fullmatch(named)
    if not found or (found[1] is not None and int(found[1]) != site.layer):
        raise BadArguments(
            f"{named!r} is no feature of {dictionary.info.name}, which explains {site}. Write a number, or a name "
            f"like {feature_name(site, 12)!r}."
        )
    return int(found[2])


def said(
    model: Model, dictionary: Dictionary, features: Sequence[int], k: int
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Tokens that each feature raises and lowers most, directly; none where it has no direct effect."""
    try:
        found = promoted(model, residual_directions(model, dictionary, features), k)
    except Unsupported:
        return [((), ()) for _ in features]
    return [
        (token_labels(model, [i for i, v in up if v > 0]), token_labels(model, [i for i, v in down if v < 0]))
        for up, down in found
    ]


def feature_values(
    model: Model, dictionary: Dictionary, tokens: Tokens, features: Sequence[int], budget_bytes: int
) -> FeatureValues:
    """Activations of chosen features on every row."""
    values: Tensor | None = None
    worth: Tensor | None = None
    norms: Tensor | None = None
    for batch in activations(model, dictionary, tokens, budget_bytes=budget_bytes):
        width = batch.tokens.width
        f = dictionary.encode(batch.x)[..., list(features)]
        if values is None or worth is None or norms is None:
            values = f.new_zeros((tokens.n_rows, tokens.width, len(features)))
            worth = f.new_zeros((tokens.n_rows, tokens.width, 1))
            norms = batch.y.new_zeros((tokens.n_rows, tokens.width))
        there = f.new_tensor([[float(t < n) for t in range(width)] for n in batch.tokens.lengths])[..., None]
        values[list(batch.rows), :width] = f * there
        worth[list(batch.rows), :width] = dictionary.scale(batch.x) * there
        norms[list(batch.rows), :width] = batch.y.norm(dim=-1) * there[..., 0].to(batch.y)
    assert values is not None
    assert worth is not None
    assert norms is not None
    return FeatureValues(tuple(features), values, worth, norms)


def massive_tokens(found: FeatureValues, positions: Positions) -> tuple[str, ...]:
    """A warning where features are taken away at tokens whose norm is over five times the median."""
    norms = found.norms
    heavy = (norms > MASSIVE * norms[norms > 0].median()).nonzero().tolist()
    taken = [(row, at) for row, at in heavy if positions is None or at in positions[row]]
    if not taken:
        return ()
    first = " (the first of a row)" if all(at == 0 for _, at in taken) else ""
    return (
        f"Features are taken away at {len(taken)} massive-norm tokens too{first}: there the activations, and with them "
        "those of features, are tens of times as large, most dictionaries were not trained on such tokens, and the "
        "effects may be those of breaking the model. Leave them out with `positions`.",
    )


def contribution(
    dictionary: Dictionary, found: FeatureValues, chosen: Sequence[int], factor: float = 1.0
) -> Float[Tensor, "B T D"]:
    """What some features add together at the site that is explained, times a factor."""
    return factor * found.worth * (found.of(chosen) @ dictionary.directions[list(chosen)])


def ablation_cells(
    model: Model, dictionary: Dictionary, found: FeatureValues, sets: Sequence[Sequence[int]], positions: Positions,
    budget_bytes: int,
) -> tuple[tuple[Cell, ...], Mapping[Site, Tensor]]:  # fmt: skip
    """One cell a set of features, with the values of rule 'add' that take the set away.

    Raises:
        WouldNotFit: the values of all sets together are over half of the budget.
    """
    site = dictionary.info.writes
    rows, width, _ = found.values.shape
    need = len(sets) * rows * width * dictionary.info.d_out * found.values.element_size()
    if need > budget_bytes / 2:
        raise WouldNotFit(
            f"taking {len(sets)} sets of features away on {rows} prompts needs {need / 2**20:.0f} MiB and may use "
            f"{budget_bytes / 2**21:.0f} MiB, half of the budget. Choose fewer features, prompts or controls."
        )
    values = found.values.new_zeros((len(sets) * rows, width, dictionary.info.d_out))
    cells = []
    for i, chosen in enumerate(sets):
        own = range(i * rows, (i + 1) * rows)
        values[own.start : own.stop] = contribution(dictionary, found, chosen, -1.0)
        cells.append(Cell((site,), positions, tuple(own)))
    return tuple(cells), {site: shaped(values, site, model.info.n_heads)}


def error_cell(
    model: Model, dictionary: Dictionary, tokens: Tokens, cells: tuple[Cell, ...], values: Mapping[Site, Tensor],
    positions: Positions, budget_bytes: int,
) -> tuple[tuple[Cell, ...], Mapping[Site, Tensor]]:  # fmt: skip
    """The cells with one more, last, that takes the dictionary's error away: y becomes its reconstruction."""
    site = dictionary.info.writes
    written = values[site]
    rows, first = tokens.n_rows, len(written)
    grown = written.new_zeros((first + rows, *written.shape[1:]))
    grown[:first] = written
    for batch in activations(model, dictionary, tokens, budget_bytes=budget_bytes):
        left = dictionary.decode(dictionary.encode(batch.x), batch.x) - batch.y
        there = left.new_tensor([[float(t < n) for t in range(left.shape[1])] for n in batch.tokens.lengths])[..., None]
        grown[[first + row for row in batch.rows], : left.shape[1]] = shaped(left * there, site, model.info.n_heads)
    return (*cells, Cell((site,), positions, tuple(range(first, first + rows)))), {site: grown}


def removal_test(
    model: Model, dictionary: Dictionary, tokens: Tokens, found: FeatureValues, feature: int
) -> SelfTest:
    """Taking a feature away on a few rows: the activation changes by exactly -scale(x) f_i d_i."""
    rows = list(range(min(TESTED_ROWS, tokens.n_rows)))
    some, site = tokens.rows(rows), dictionary.info.writes
    wanted = contribution(dictionary, found, [feature], -1.0)[rows][:, : some.width]
    edit = Edit(site=site, rule="add", value=shaped(wanted, site, model.info.n_heads))
    with_it, without = (read_of(model.run(some, read=[site], edits=e), site) for e in ((), (edit,)))
    size = max(1.0, float(with_it.abs().max()))
    off = float(((without - with_it) - wanted).abs().max()) / size
    tolerance = 1e-5 if model.info.dtype == "float32" else 2e-2
    name = f"taking {feature_name(site, feature)} away changes the activation by exactly -f d (relative)"
    return SelfTest(name=name, expected=0, found=off, tolerance=tolerance, passed=off <= tolerance)
