"""A prompt set as tokens of one model: aligned, with answers as token ids and roles as positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..model.tokens import Tokens


@dataclass(frozen=True)
class EncodedPrompts:
    """Rows of a prompt set for one model; B rows."""

    clean: Tokens
    corrupted: Tokens | None  # same lengths as clean, row by row
    answers: tuple[tuple[int, ...], ...] | None  # per row, the ids of the answer set
    wrongs: tuple[tuple[int, ...], ...] | None
    roles: Mapping[str, tuple[int, ...]]  # role -> position per row (BOS counted); only roles that every row has
    templates: tuple[str, ...]
    clusters: tuple[str, ...]  # one label per row: rows with the same label are resampled together

    @property
    def n(self) -> int:
        return self.clean.n_rows
