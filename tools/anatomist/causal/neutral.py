"""What an ablation costs on text that it should not touch: the mean next-token loss with and without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field

from ..errors import BadPrompts
from ..model.edits import Edit
from ..model.protocol import Model, Run
from ..model.sites import Site
from ..model.tokens import Tokens
from ..result import Frozen

if TYPE_CHECKING:
    from torch import Tensor


class Runs(Protocol):
    """What can be run on tokens: a model, or weights that are being changed."""

    def run(
        self, tokens: Tokens, *, edits: Sequence[Edit] = (), logits_at: Sequence[int] | Literal["all"] | None = None
    ) -> Run: ...


class NeutralLoss(Frozen):
    """Cost of an ablation on neutral text."""

    tokens: int = Field(description="Predicted tokens.")
    before: float = Field(description="Mean loss per token without the ablation, in nats.")
    after: float = Field(description="Mean loss per token with it, in nats.")
    written: str = Field(description="What replaced the activations.")


def neutral_loss(
    model: Model, texts: Sequence[str | Sequence[int]], sites: Sequence[Site], values: Mapping[Site, Tensor] | None,
    *, bos: bool | None,
) -> NeutralLoss:  # fmt: skip
    """Loss with every site zeroed (`values` None) or set to its value [1, 1, *feature], at all positions.

    Raises:
        BadPrompts: a text of a single token has nothing to predict.
    """
    tokens = neutral_tokens(model, texts, bos=bos)
    edits = [_edit(site, values) for site in sites]
    counted = sum(tokens.lengths) - tokens.n_rows
    before, after = (total_loss(model, tokens, e) / counted for e in ([], edits))
    written = "zeros" if values is None else "mean activation over the prompts and their positions"
    return NeutralLoss(tokens=counted, before=before, after=after, written=written)


def neutral_tokens(model: Model, texts: Sequence[str | Sequence[int]], *, bos: bool | None) -> Tokens:
    """Neutral texts as tokens.

    Raises:
        BadPrompts: a text of a single token has nothing to predict.
    """
    tokens = model.tokenize(texts, bos=bos)
    for row, length in enumerate(tokens.lengths):
        if length < 2:
            raise BadPrompts(f"neutral text {row} is one token: there is nothing to predict. Give a longer text.")
    return tokens


def _edit(site: Site, values: Mapping[Site, Tensor] | None) -> Edit:
    if values is None:
        return Edit(site=site, rule="zero")
    whole = values[site.whole]
    return Edit(site=site, rule="mean", value=whole if site.index is None else whole[:, :, site.index])


def total_loss(model: Runs, tokens: Tokens, edits: Sequence[Edit] = ()) -> float:
    """Summed next-token loss in nats, one text a pass: logits of every position are the largest tensor there is."""
    return sum(text_losses(model, tokens.rows([row]), edits)[0] for row in range(tokens.n_rows))


def text_losses(model: Runs, tokens: Tokens, edits: Sequence[Edit] = ()) -> list[float]:
    """Summed next-token loss of every row in nats, in one pass; the rows are of one length."""
    logits = model.run(tokens, edits=edits, logits_at="all").logits
    assert logits is not None
    logprobs, places = logits[:, :-1].float().log_softmax(-1), list(range(tokens.width - 1))
    return [-float(row[places, list(ids[1:])].sum()) for row, ids in zip(logprobs, tokens.ids, strict=True)]
