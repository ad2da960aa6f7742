"""What a steered model says: continuations with a vector added, without it, and when asked in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..errors import BadPrompts
from ..model.protocol import Model
from ..model.tokens import Tokens
from ..prompts.prompt_set import PromptSet
from ..result import Frozen
from .steering import Lever, everywhere

if TYPE_CHECKING:
    from torch import Tensor


class Sample(Frozen):
    """A continuation."""

    where: str = Field(description="The place; 'nowhere' for unsteered text and the instruction.")
    how: str = Field(description="unsteered, +strength, -strength, random +strength, or instruction.")
    prompt: int = Field(description="Number of the prompt.")
    text: str = Field(description="The new text.")
    keywords: int = Field(description="How many of the keywords it holds.")
    loss: float | None = Field(description="Its mean loss under the unsteered model, nats a token: how fluent it is.")
    repeated: float = Field(description="Share of its bigrams that occurred in it before.")


class Continuation(NamedTuple):
    """What a model went on with."""

    ids: tuple[int, ...]
    text: str
    loss: float | None  # under the unsteered model, nats a token; None where nothing was said


class Push(NamedTuple):
    """One way of steering."""

    how: str
    lever: Lever
    vector: Tensor | None


def samples(
    model: Model, pushes: Sequence[Push], new_tokens: int, keywords: Sequence[str], *, seed: int
) -> tuple[Sample, ...]:
    """Every push's continuations of its prompts, which are numbered from 0."""
    return tuple(
        _sample(push, row, made, keywords)
        for push in pushes
        for row, made in enumerate(continuations(model, push.lever, push.vector, new_tokens, seed=seed))
    )


def _sample(push: Push, row: int, made: Continuation, keywords: Sequence[str]) -> Sample:
    pairs = list(zip(made.ids, made.ids[1:], strict=False))
    held = sum(word.lower() in made.text.lower() for word in keywords)
    where = "nowhere" if push.vector is None else push.lever.where
    return Sample(
        where=where, how=push.how, prompt=row, text=made.text, keywords=held, loss=made.loss,
        repeated=1 - len(set(pairs)) / len(pairs) if pairs else 0.0,
    )  # fmt: skip


def with_instruction(given: PromptSet, instruction: str | tuple[int, ...]) -> PromptSet:
    """The same prompts behind the instruction; counterfactuals and roles are of no use there.

    Raises:
        BadPrompts: text before ids, or ids before text.
    """
    if any(isinstance(p.clean, str) != isinstance(instruction, str) for p in given.prompts):
        raise BadPrompts("the instruction and the prompts must both be text, or both token ids.")
    changed = tuple(
        p.model_copy(update={"clean": instruction + p.clean, "corrupted": None, "roles": {}})  # type: ignore[operator]
        for p in given.prompts
    )
    return given.model_copy(update={"prompts": changed})


def continuations(
    model: Model, lever: Lever, vector: Tensor | None, new_tokens: int, *, seed: int
) -> list[Continuation]:
    """Greedy continuations of the lever's prompts; without positions the vector is added at every new token too."""
    edits = () if vector is None else tuple(replace(e, positions=lever.positions) for e in everywhere(lever, vector))
    made = model.generate(lever.tokens, max_new_tokens=new_tokens, seed=seed, edits=edits)
    glue = " " if model.info.backend == "toy" else ""  # the toy's tokens are words without spaces
    return [
        Continuation(ids, glue.join(model.token_strings(ids)), _loss_after(model, lever.tokens.ids[row], ids))
        for row, ids in enumerate(made)
    ]


def _loss_after(model: Model, prompt: Sequence[int], ids: Sequence[int]) -> float | None:
    """Mean loss of the new tokens by the model as it is."""
    if not ids:
        return None
    whole = Tokens(((*prompt, *ids),), (("",) * (len(prompt) + len(ids)),), False)
    logits = model.run(whole, logits_at="all").logits
    assert logits is not None
    logprobs = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return -float(logprobs[list(range(len(ids))), list(ids)].mean())
