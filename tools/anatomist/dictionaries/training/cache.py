"""Activations of one place on many tokens, on disk: written once, row after row, and read memory-mapped.

The file is safetensors from its first byte on (the header says the final shape), so it opens anywhere. How many rows
are written stands beside it and is renewed after every batch: a writing that was killed goes on where it was. The file
is named by what its numbers depend on (weights, place, tokens), so the same text is never read twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...arrays import StoredArray, as_floats, create, read, stored
from ...errors import CorruptFile, WouldNotFit
from ...model.batches import batches
from ...model.protocol import Model
from ...model.sites import Site
from ...model.sweep_cost import item_bytes
from ...model.tokens import Tokens
from ..fit import width_of
from ..reading import read_of

if TYPE_CHECKING:
    import numpy
    from numpy import ndarray
    from torch import Tensor

NAME = "activations"
_PLAN, _DONE = "plan.json", "rows.json"
Progress = Callable[[float, float, str], None]


class Cached(NamedTuple):
    """Activations that are on disk."""

    folder: Path
    array: StoredArray  # [rows, width, d]
    norms: ndarray  # [rows * width] norm of every token

    @property
    def tokens(self) -> int:
        return self.array.shape[0] * self.array.shape[1]

    @property
    def d(self) -> int:
        return self.array.shape[2]

    def open(self) -> ndarray:
        """All tokens one after another, [n, d], memory-mapped."""
        return read(self.folder, self.array).reshape(self.tokens, self.d)

    def some(self, mapped: ndarray, index: ndarray) -> Tensor:
        """Some tokens as float32 in memory."""
        import torch

        part = as_floats(self.array, mapped[index])
        return torch.from_numpy(part.astype("float32", copy=False))


def fingerprint(model: Model, site: Site, tokens: Tokens) -> str:
    """Of all that the activations depend on."""
    told = (model.info.weights_hash, model.info.dtype, str(site), tokens.bos, tokens.ids)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def cached(
    model: Model, site: Site, tokens: Tokens, folder: Path, *, budget: int, progress: Progress | None = None
) -> Cached:
    """The activations at a place on rows of one width, from disk where they are, else read and written now.

    Raises:
        WouldNotFit: the disk has no room. CorruptFile: the folder holds something else. NotFinite: from the model.
    """
    import numpy as np

    place = folder / fingerprint(model, site, tokens)
    dtype = model.info.dtype
    array = stored(NAME, (tokens.n_rows, tokens.width, width_of(site, model.info)), dtype, ("row", "token", "d"), "")
    norms = stored("norms", (tokens.n_rows * tokens.width,), "float32", ("token",), "")
    done = _started(place, array, norms)
    x, n = read(place, array, writable=True), read(place, norms, writable=True)
    left = tokens.rows(range(done, tokens.n_rows)) if done < tokens.n_rows else None
    for part in batches(model.info, left, [site], budget, in_order=True) if left else []:
        rows = [done + i for i in range(len(part))]
        found = read_of(model.run(tokens.rows(rows), read=[site]), site)
        x[rows[0] : rows[-1] + 1] = _numbers(found)
        n[rows[0] * tokens.width : (rows[-1] + 1) * tokens.width] = found.float().norm(dim=-1).flatten().cpu().numpy()
        x.flush()  # type: ignore[attr-defined]  # the numbers are on disk before the count says so
        n.flush()  # type: ignore[attr-defined]
        done += len(part)
        _write(place / _DONE, {"rows": done})
        if progress:
            progress(done, tokens.n_rows, f"activations at {site}")
    return Cached(place, array, np.asarray(read(place, norms)))


def cache_bytes(model: Model, site: Site, n_tokens: int) -> int:
    """What a cache takes on disk."""
    return n_tokens * (width_of(site, model.info) * item_bytes(model.info) + 4)


def _started(place: Path, array: StoredArray, norms: StoredArray) -> int:
    """Make the empty files, or say how many rows the ones that are there hold."""
    plan = [array.model_dump(mode="json"), norms.model_dump(mode="json")]
    if (place / _DONE).is_file():
        try:
            if json.loads((place / _PLAN).read_text()) != plan:
                raise ValueError("it was made for another shape")
            return int(json.loads((place / _DONE).read_text())["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"the activations in {place} cannot be used ({error}); delete that folder.") from error
    need, free = array.bytes + norms.bytes, shutil.disk_usage(_existing(place)).free
    if need > free:
        raise WouldNotFit(
            f"the activations need {need / 2**20:,.0f} MiB on disk; {free / 2**20:,.0f} MiB are free at "
            f"{place.parent}. Use fewer tokens, or free some space."
        )
    place.mkdir(parents=True, exist_ok=True)
    for one in (array, norms):
        create(place, one)
    _write(place / _PLAN, plan)
    _write(place / _DONE, {"rows": 0})
    return 0


def _numbers(x: Tensor) -> numpy.ndarray:
    """As the file holds them: bfloat16 as its two bytes."""
    import torch

    x = x.detach().cpu()
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def _existing(place: Path) -> Path:
    return place if place.exists() else _existing(place.parent)


def _write(path: Path, content: object) -> None:
    """Whole or not at all."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(content))
    os.replace(half, path)
