"""What a dictionary reads of a model, batch by batch, and its features in sparse form.

Activations come as [B, T, D] with heads side by side; positions past a row's end are padding and never counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NotFinite
from ..model.batches import batches
from ..model.protocol import Model, Run
from ..model.sites import Site
from ..model.sweep_cost import item_bytes
from ..model.tokens import Tokens
from .protocol import Dictionary, DictionaryInfo

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

BUDGET = 2 * 1024**3  # bytes, where the caller names none
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows, and what stands at the sites a dictionary reads and explains."""

    rows: tuple[int, ...]
    tokens: Tokens
    x: Float[Tensor, "B T d_in"]
    y: Float[Tensor, "B T d_out"]  # the same tensor as x for an SAE

    def real(self, z: Float[Tensor, "B T *feature"]) -> Float[Tensor, "N *feature"]:
        """Values of the tokens that are there, row after row; padding left out."""
        return z.new_empty((0,)) if not self.rows else _packed(z, self.tokens.lengths)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Active features of many tokens, sorted by token: three arrays of one length, and a few numbers a token."""

    rows: ndarray  # [tokens] row of each token
    positions: ndarray  # [tokens] position of each token in its row
    token: ndarray  # [n] index into the tokens
    feature: ndarray  # [n]
    value: ndarray  # [n] activation
    worth: ndarray  # [tokens] what one unit of any feature is worth: scale(x)
    error: ndarray  # [tokens] squared norm of y - y_hat
    norm: ndarray  # [tokens] squared norm of y
    n_features: int

    @property
    def n_tokens(self) -> int:
        return len(self.rows)

    @property
    def l0(self) -> float:
        return len(self.token) / max(1, self.n_tokens)


def flat(x: Float[Tensor, "B T *feature"]) -> Float[Tensor, "B T D"]:
    """Heads side by side."""
    return x.flatten(2)


def read_of(run: Run, site: Site) -> Float[Tensor, "B T D"]:
    """What was read at a site, heads side by side."""
    return flat(run.reads[site])


def shaped(x: Float[Tensor, "B T D"], site: Site, info_heads: int) -> Tensor:
    """The other way: as the site holds it."""
    return x.unflatten(-1, (info_heads, -1)) if site.kind == "head" else x


def sites_of(info: DictionaryInfo) -> tuple[Site, ...]:
    """The sites that are read, each once."""
    return tuple(dict.fromkeys((info.reads, info.writes)))


def activations(
    model: Model, dictionary: Dictionary, tokens: Tokens, *, budget_bytes: int = BUDGET,
    progress: Progress | None = None, in_order: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """Batches of what stands at the dictionary's sites; the passes stop after the last block that is read.

    Raises:
        WouldNotFit: one row is over the budget. NotFinite: from the model.
    """
    info = dictionary.info
    sites = sites_of(info)
    extra = 3 * tokens.width * (info.d_dict + info.d_out) * item_bytes(model.info)  # features, and what makes them
    done, total = 0, sum(tokens.lengths)
    for rows in batches(model.info, tokens, sites, budget_bytes, extra=extra, in_order=in_order):
        if progress is not None:
            progress(done, total, "reading activations")
        part = tokens.rows(rows)
        run = model.run(part, read=sites)
        yield Batch(rows, part, read_of(run, info.reads), read_of(run, info.writes))
        done += sum(part.lengths)
    if progress is not None:
        progress(total, total, "reading activations")


def encode_tokens(
    model: Model, dictionary: Dictionary, tokens: Tokens, *, budget_bytes: int = BUDGET,
    progress: Progress | None = None,
) -> Encoded:  # fmt: skip
    """Active features of every token, in sparse form, in the order of the rows.

    Raises:
        WouldNotFit, NotFinite: as `activations`, and where a feature is NaN or infinite.
    """
    parts = [
        _encoded(dictionary, batch)
        for batch in activations(model, dictionary, tokens, budget_bytes=budget_bytes, progress=progress, in_order=True)
    ]
    return _joined(parts, dictionary.info.d_dict)


def _encoded(dictionary: Dictionary, batch: Batch) -> Encoded:
    import numpy as np

    x, y = batch.real(batch.x), batch.real(batch.y)
    features = dictionary.encode(x)
    if not features.isfinite().all():
        raise NotFinite(
            f"features of {dictionary.info.name} are NaN or infinite on {int((~features.isfinite()).sum())} values; "
            "load it and the model with dtype='float32'."
        )
    error = (y - dictionary.decode(features, x)).float().square().sum(-1)
    where = features.nonzero()
    values = features[where[:, 0], where[:, 1]].float()
    lengths = batch.tokens.lengths
    rows = np.repeat(np.array(batch.rows), lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    return Encoded(
        rows, positions, where[:, 0].cpu().numpy(), where[:, 1].cpu().numpy(), values.cpu().numpy(),
        dictionary.scale(x)[:, 0].float().cpu().numpy(), error.cpu().numpy(),
        y.float().square().sum(-1).cpu().numpy(), features.shape[1],
    )  # fmt: skip


def _joined(parts: list[Encoded], n_features: int) -> Encoded:
    import numpy as np

    starts = np.cumsum([0, *(part.n_tokens for part in parts)])
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("rows", "positions", "feature", "value", "worth", "error", "norm")
    }
    token = np.concatenate([part.token + start for part, start in zip(parts, starts, strict=False)])
    return Encoded(token=token, n_features=n_features, **joined)


def _packed(z: Float[Tensor, "B T *feature"], lengths: tuple[int, ...]) -> Float[Tensor, "N *feature"]:
    """Rows one after another without their padding."""
    width = z.shape[1]
    if all(n == width for n in lengths):
        return z.flatten(0, 1)
    index = [row * width + t for row, n in enumerate(lengths) for t in range(n)]
    return z.flatten(0, 1)[index]
