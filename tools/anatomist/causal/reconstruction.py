"""How much of an activation a dictionary leaves over, and the proof that nothing else was changed."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from ..dictionaries.protocol import Dictionary
from ..dictionaries.reading import activations, shaped
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.tokens import Tokens
from ..result import SelfTest

SPLICED_ROWS = 4  # prompts of the proof


def explained_over(
    model: Model, dictionary: Dictionary, tokens: Tokens, places: AbstractSet[tuple[int, int]], error: float,
    budget_bytes: int,
) -> float | None:  # fmt: skip
    """1 - error / sum |y - mean y|^2 over some (row, position) places; None for fewer than two or where y is constant.

    error: sum of |y - y_hat|^2 over the same places.
    """
    if len(places) < 2:
        return None
    total, square = None, 0.0
    for batch in activations(model, dictionary, tokens, budget_bytes=budget_bytes):
        at = [(i, p) for i, r in enumerate(batch.rows) for p in range(batch.tokens.lengths[i]) if (r, p) in places]
        if at:
            y = batch.y[[i for i, _ in at], [p for _, p in at]].double()
            total = y.sum(0) if total is None else total + y.sum(0)
            square += float(y.square().sum())
    assert total is not None
    variance = square - float(total.square().sum()) / len(places)
    return 1 - error / variance if variance > 0 else None


def spliced(model: Model, dictionary: Dictionary, tokens: Tokens) -> SelfTest:
    """Reconstruction plus error in place of the activation, on a few rows: the model's own logits come out.

    It would pass for any dictionary; it shows that the site is written where it is read, and that nothing else is.
    """
    some = tokens.rows(range(min(SPLICED_ROWS, tokens.n_rows)))
    site = dictionary.info.writes
    own = model.run(some, logits_at=some.last).logits
    (batch,) = activations(model, dictionary, some, in_order=True)
    rebuilt = dictionary.decode(dictionary.encode(batch.x), batch.x)
    whole = shaped(rebuilt + (batch.y - rebuilt), site, model.info.n_heads).to(batch.y)
    edits = [
        Edit(site=site, rule="set", rows=(row,), positions=tuple(range(n)), value=whole[row : row + 1, :n])
        for row, n in enumerate(some.lengths)
    ]
    with_error = model.run(some, edits=edits, logits_at=some.last).logits
    assert own is not None
    assert with_error is not None
    difference = float((own.float() - with_error.float()).abs().max())
    tolerance = 1e-4 if model.info.dtype == "float32" else 0.5
    name = "reconstruction plus error in place of the activation gives the model's logits"
    return SelfTest(name=name, expected=0, found=difference, tolerance=tolerance, passed=difference <= tolerance)
