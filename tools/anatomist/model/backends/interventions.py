"""The torch maths every backend shares: what an edit does to a tensor, what a read keeps, and the checks around both.

Tensors come in the layout of `sites.py`; a backend converts its own layout before and after. Nothing is changed in
place, so that a graph stays differentiable and a read keeps the value it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import BadArguments, BadPosition, BadSite, EditDidNotFire, NotFinite
from ..edits import Edit, check_edit
from ..sites import Shape, Site, check_site
from ..tokens import Tokens

QUERY_BY_KEY = frozenset({"scores", "pattern"})  # head axis before the query axis: [B, H, T, T]


def pad_ids(tokens: Tokens, pad: int, device: torch.device | None = None) -> Int[Tensor, "B T"]:
    """Ids of all rows, padded on the right where a causal model cannot see them."""
    rows = [row + (pad,) * (tokens.width - len(row)) for row in tokens.ids]
    return torch.tensor(rows, dtype=torch.long, device=device)


def index_axis(site: Site) -> int:
    """The axis that a head or neuron index selects in the site's layout."""
    return 1 if site.kind in QUERY_BY_KEY else 2


def take(site: Site, x: Float[Tensor, "*whole"]) -> Float[Tensor, "*part"]:
    """The part of a whole site's tensor that the site names."""
    return x if site.index is None else x.select(index_axis(site), site.index)


def put(site: Site, x: Float[Tensor, "*whole"], part: Float[Tensor, "*part"]) -> Float[Tensor, "*whole"]:
    """The whole site's tensor with the part that the site names replaced."""
    return part if site.index is None else x.select_scatter(part, index_axis(site), site.index)


def apply_edit(x: Float[Tensor, "*whole"], edit: Edit, tokens: Tokens) -> tuple[Float[Tensor, "*whole"], int]:
    """The tensor after the edit (the table in `edits.py`), and how many (row, position) places were written.

    `x` is the whole site in its layout [B, T, ...] ([B, H, T, T] for scores and pattern); `edit` has passed
    `check_edit`. Positions of padding are never written.

    Raises:
        BadArguments: the value does not broadcast against the selection, or a direction to project out is zero.
    """
    part = take(edit.site, x)
    swapped = edit.site.kind in QUERY_BY_KEY and edit.site.index is None
    by_position = part.transpose(1, 2) if swapped else part  # [B, T, *feature]
    changed, fired = _write(by_position, edit, tokens)
    return put(edit.site, x, changed.transpose(1, 2) if swapped else changed), fired


def _write(x: Float[Tensor, "B T *feature"], edit: Edit, tokens: Tokens) -> tuple[Float[Tensor, "B T *feature"], int]:
    """Edit a tensor whose first two axes are rows and positions."""
    rows, positions, real = _selection(edit, tokens, x.device)
    fired = int(real.sum())
    everything = edit.rows is None and edit.positions is None
    if everything and fired == x.shape[0] * x.shape[1]:
        return _changed(x, edit), fired
    chosen = x if everything else x[rows, positions]
    new = _changed(chosen, edit)
    return x.index_put((rows[real], positions[real]), new[real]), fired


def _selection(
    edit: Edit, tokens: Tokens, device: torch.device
) -> tuple[Int[Tensor, "R P"], Int[Tensor, "R P"], Bool[Tensor, "R P"]]:
    """Rows and positions of the selection as a rectangle, and which of its entries are meant (rows may be ragged)."""
    rows = range(tokens.n_rows) if edit.rows is None else edit.rows
    lists: list[Sequence[int]] = []
    for i, row in enumerate(rows):
        if edit.positions is None:
            lists.append(range(tokens.lengths[row]))
        else:
            lists.append(edit.positions[i] if isinstance(edit.positions[0], tuple) else edit.positions)  # type: ignore[arg-type]
    width = tokens.width if edit.positions is None else max(map(len, lists))
    positions = torch.tensor([[*places, *[0] * (width - len(places))] for places in lists], device=device)
    real = torch.arange(width, device=device) < torch.tensor([[len(places)] for places in lists], device=device)
    return torch.tensor([[row] * width for row in rows], device=device), positions, real


def _changed(x: Float[Tensor, "R P *feature"], edit: Edit) -> Float[Tensor, "R P *feature"]:
    """The rule of the edit on the selected places."""
    if edit.rule == "zero":
        return torch.zeros_like(x)
    if edit.rule == "scale":
        return edit.factor * x
    value = _value(x, edit)
    if edit.rule == "add":
        return x + edit.factor * value
    if edit.rule == "multiply":
        return x * value
    if edit.rule == "interpolate":
        return torch.lerp(x, value.expand_as(x), edit.factor)
    if edit.rule == "erase":
        return _erased(x, value)
    if edit.rule == "project_out":
        return _without_direction(x, value, edit)
    return value.expand_as(x)  # set, mean, resample


def _value(x: Float[Tensor, "R P *feature"], edit: Edit) -> Float[Tensor, "*value"]:
    """The edit's value on the device and in the dtype of the tensor, if it fits."""
    assert edit.value is not None, "check_edit has seen to it"
    value = edit.value.to(device=x.device, dtype=x.dtype)
    if edit.rule == "erase":
        return _affine(x, value, edit)
    wanted = tuple(x.shape[2:]) if edit.rule == "project_out" else tuple(x.shape)
    fits = tuple(value.shape) == wanted if edit.rule == "project_out" else _broadcasts(tuple(value.shape), wanted)
    if not fits:
        rule = "exactly that of the feature" if edit.rule == "project_out" else "one that broadcasts to the selection"
        raise BadArguments(
            f"the value of the edit '{edit}' has shape {list(edit.value.shape)}; the shape must be {rule}, "
            f"{list(wanted)}. Give one value per row and position, or leave those axes out."
        )
    return value


def _affine(
    x: Float[Tensor, "R P *feature"], value: Float[Tensor, "*value"], edit: Edit
) -> Float[Tensor, "k2 *feature"]:
    """The value of an erasing edit, if it is an offset and as many reading as writing vectors."""
    if tuple(value.shape[1:]) != tuple(x.shape[2:]) or value.shape[0] < 3 or value.shape[0] % 2 == 0:
        raise BadArguments(
            f"the value of the edit '{edit}' has shape {list(value.shape)}; the shape must be [1 + 2 k, "
            f"{', '.join(map(str, x.shape[2:]))}]: an offset, k reading and k writing vectors."
        )
    return value


def _erased(x: Float[Tensor, "R P *feature"], value: Float[Tensor, "k2 *feature"]) -> Float[Tensor, "R P *feature"]:
    """x - sum over i of ((x - c) . r_i) w_i."""
    k = (value.shape[0] - 1) // 2
    offset, reads, writes = (part.flatten(1) for part in value.split([1, k, k]))
    flat = x.flatten(2)
    return (flat - ((flat - offset[0]) @ reads.T) @ writes).reshape(x.shape)


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) > len(wanted):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(wanted), strict=False))


def _without_direction(
    x: Float[Tensor, "R P *feature"], value: Float[Tensor, "*feature"], edit: Edit
) -> Float[Tensor, "R P *feature"]:
    """x - (x . u) u with u the unit vector along the value."""
    size = value.norm()
    if not size > 0:
        raise BadArguments(f"the edit '{edit}' projects out a direction of length {float(size)}; give a non-zero one.")
    unit = (value / size).flatten()
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1)
    return (flat - (flat @ unit).unsqueeze(-1) * unit).reshape(x.shape)


def restrict(edit: Edit, rows: Sequence[int]) -> Edit | None:
    """The edit for a pass over some of the rows only, renumbered from 0; None if it touches none of them."""
    kept = [(i, row) for i, row in enumerate(rows if edit.rows is None else edit.rows) if row in rows]
    if not kept:
        return None
    # Without `rows` an edit's axes count all rows; with them, the rows it names.
    entries = [row if edit.rows is None else i for i, row in kept]
    positions, value = edit.positions, edit.value
    if positions and isinstance(positions[0], tuple):
        positions = tuple(positions[i] for i in entries)  # type: ignore[misc]
    if value is not None and value.dim() == 2 + _feature_rank(edit.site) and value.shape[0] > 1:
        value = value[entries]
    numbers = None if edit.rows is None else tuple(list(rows).index(row) for _, row in kept)
    return replace(edit, rows=numbers, positions=positions, value=value)


def _feature_rank(site: Site) -> int:
    """How many axes a site has besides rows and positions."""
    whole = 2 if site.kind in QUERY_BY_KEY or site.kind in {"head", "q", "k", "v"} else 1
    return whole if site.index is None else whole - 1


def logits_positions(tokens: Tokens, logits_at: Sequence[int]) -> tuple[int, ...]:
    """One position a row, checked.

    Raises:
        BadPosition: a position outside its row, or not one position for every row.
    """
    if len(logits_at) != tokens.n_rows:
        raise BadPosition(f"logits_at gives {len(logits_at)} positions for {tokens.n_rows} prompts; give one for each.")
    for row, position in enumerate(logits_at):
        if not 0 <= position < tokens.lengths[row]:
            raise BadPosition(tokens.outside(row, position))
    return tuple(logits_at)


def at_positions(x: Float[Tensor, "B T D"], positions: Sequence[int]) -> Float[Tensor, "B D"]:
    """One position of every row."""
    return x[torch.arange(len(positions), device=x.device), torch.tensor(positions, device=x.device)]


def finite_or_raise(what: str, x: Tensor, *, masked: bool = False) -> None:
    """Refuse NaN and infinity; with `masked`, negative infinity stands for a masked entry and is accepted.

    Raises:
        NotFinite: says where the first one is.
    """
    if x.sum().isfinite():  # one cheap pass: a finite sum has no other terms
        return
    bad = x.isnan() | x.isposinf() if masked else ~x.isfinite()
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise NotFinite(
            f"{what} holds {int(bad.sum())} values that are NaN or infinite of {x.numel()} (first at index "
            f"{list(first)}: {float(x[first])}); every number must be finite. Check the weights and the edit values, "
            f"or load the model in a wider dtype."
        )


class Visits:
    """The reads and edits of one pass: a backend calls `at` wherever a wanted place is computed.

    Raises (at construction):
        BadSite, BadPosition, BadArguments: from the checks of `sites.py` and `edits.py`.
    """

    def __init__(
        self, tokens: Tokens, read: Sequence[Site], edits: Sequence[Edit], shape: Shape, *, gradients: bool = False
    ) -> None:
        self.tokens = tokens
        self.gradients = gradients
        self._asked = list(dict.fromkeys(check_site(site, shape) for site in read))
        # The whole place first: the parts are then cut from it, and a gradient reaches both.
        self._reads = sorted(self._asked, key=lambda site: site.index is not None)
        self._edits = [check_edit(edit, shape, tokens) for edit in edits]
        self._values: dict[Site, Tensor] = {}
        self._fired = [0] * len(self._edits)
        self.sites = frozenset(site.whole for site in [*self._reads, *(edit.site for edit in self._edits)])
        self._pending = set(self.sites)

    @property
    def done(self) -> bool:
        """Whether every wanted place has been visited: the pass may stop unless its logits are wanted."""
        return not self._pending

    def at(self, site: Site, x: Float[Tensor, "*whole"]) -> Float[Tensor, "*whole"]:
        """Make the edits of a whole place, in the order given, then keep its reads; what flows on is returned."""
        if site not in self.sites:
            return x
        self._pending.discard(site)
        for i, edit in enumerate(self._edits):
            if edit.site.whole == site:
                x, count = apply_edit(x, edit, self.tokens)
                self._fired[i] += count
        for wanted in self._reads:
            if wanted.whole == site:
                x = self._keep(wanted, x)
        return x

    def _keep(self, site: Site, x: Float[Tensor, "*whole"]) -> Float[Tensor, "*whole"]:
        if self.gradients and not x.requires_grad:
            x = x.detach().requires_grad_()  # weights are frozen: the graph starts at the first read or edit value
        part = take(site, x)
        self._values[site] = part
        return put(site, x, part) if self.gradients else x

    def result(self) -> tuple[dict[Site, Tensor], tuple[int, ...]]:
        """What was read, and per edit how many places it wrote.

        Raises:
            EditDidNotFire: an edit's place was not computed.
            BadSite: a read's place was not computed.
            NotFinite: a read holds NaN or infinity.
        """
        for edit, count in zip(self._edits, self._fired, strict=True):
            if not count:
                raise EditDidNotFire(
                    f"the edit '{edit}' wrote nothing: its place was never computed in this pass. Ask for a place "
                    f"that the pass reaches, or report the site and the architecture."
                )
        for site, value in self._values.items():  # in the order computed: the first one named is where it began
            finite_or_raise(str(site), value.detach(), masked=site.kind == "scores")
        for site in self._asked:
            if site not in self._values:
                raise BadSite(f"{site} was never computed in this pass; read a place that the model computes.")
        return {site: self._values[site] for site in self._asked}, tuple(self._fired)
