"""Labelled texts: what probes are trained and tested on, each read at one position or over all of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from ..errors import BadArguments
from ..model.protocol import Model
from ..model.tokens import PositionSpec, Tokens
from ..result import Frozen
from .prompt_set import Text

MEAN = "mean"


class Example(Frozen):
    """One text with its label."""

    text: Text = Field(description="Text, or token ids.")
    label: str | float = Field(description="Class as text, or a number to predict.")
    group: str = Field(default="", description="What stays on one side of the split (template, topic); empty: itself.")
    position: PositionSpec | None = Field(default=None, description="Where this one is read; absent: `position`.")


@dataclass(frozen=True)
class Examples:
    """Examples for one model; n rows."""

    tokens: Tokens
    positions: tuple[tuple[int, ...], ...]  # per row those read, BOS counted; several are averaged
    labels: tuple[str | float, ...]
    groups: tuple[str, ...]
    types: tuple[str, ...]  # what could be learnt by heart: the token that is read; the whole text for means

    @property
    def n(self) -> int:
        return self.tokens.n_rows

    def seen(self, row: int) -> tuple[int, ...]:
        """The ids that what is read can know of: up to the last position read."""
        return self.tokens.ids[row][: self.positions[row][-1] + 1]


def encode_examples(
    examples: Sequence[Example], model: Model, *, position: PositionSpec, bos: bool | None = None
) -> Examples:
    """Tokenise examples and find where each is read: an integer, 'last', a token's text, or 'mean'.

    Raises:
        BadArguments: texts and numbers among the labels.
        BadPosition: a position that an example does not have, or a token text that is ambiguous.
        BadPrompts: no examples, or a text that cannot be tokenised.
    """
    if len({isinstance(e.label, str) for e in examples}) > 1:
        raise BadArguments("some labels are texts and some are numbers; give all as text (classes) or all as numbers.")
    tokens = model.tokenize([e.text for e in examples], bos=bos)
    specs = [position if e.position is None else e.position for e in examples]
    positions = tuple(_positions(tokens, row, spec) for row, spec in enumerate(specs))
    return Examples(
        tokens=tokens,
        positions=positions,
        labels=tuple(e.label for e in examples),
        groups=tuple(e.group or f"example {row}" for row, e in enumerate(examples)),
        types=tuple(" ".join(str(tokens.ids[row][p]) for p in places) for row, places in enumerate(positions)),
    )


def _positions(tokens: Tokens, row: int, spec: PositionSpec) -> tuple[int, ...]:
    return tuple(range(tokens.bos, tokens.lengths[row])) if spec == MEAN else (tokens.find(row, spec),)
