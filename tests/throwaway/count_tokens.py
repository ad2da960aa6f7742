"""Count the tokens of every prompt, and read one residual.

Source: none; this technique is a test's own. Does not show: anything about a model.
"""

from __future__ import annotations

from typing import Literal

from anatomist.errors import EditDidNotFire
from anatomist.figures import Bars, Figure
from anatomist.model.sites import Site
from anatomist.result import Result
from anatomist.technique import Context, OnPrompts
from pydantic import Field

TITLE = "Count tokens"
QUESTIONS = ("How many tokens has each prompt?",)


class Arguments(OnPrompts):
    layer: int = Field(default=0, ge=0, le=1, description="Layer that is read.")
    ends: Literal["well", "nan", "error", "no picture", "memory", "interrupt"] = Field(
        default="well", description="How it ends."
    )


class Counted(Result):
    counts: tuple[int, ...] = Field(description="Tokens per prompt.")
    norm: float = Field(description="Largest entry of the residual.")
    ends: str = Field(description="How it ended.")


def run(context: Context, arguments: Arguments) -> Counted:
    assert context.prompts is not None
    tokens = context.model.tokenize([p.clean for p in context.prompts.prompts], bos=arguments.bos)
    read = context.model.run(tokens, read=[Site("resid_post", arguments.layer)])
    residual = read.reads[Site("resid_post", arguments.layer)]
    context.keep("residual", residual, axes=("prompt", "position", "width"), unit="activation")
    if context.stream is not None:
        stream = context.stream(
            "rows", shape=residual.shape, dtype="float32", axes=("prompt", "position", "width"), unit="activation"
        )
        for row in residual:
            stream.append(row[None])
    context.progress(1, 2, "counted")
    if arguments.ends == "error":
        raise EditDidNotFire("the edit did not fire; this is a test.")
    if arguments.ends == "memory":
        raise MemoryError("cannot allocate 10 TB")
    if arguments.ends == "interrupt":
        raise KeyboardInterrupt
    return Counted(
        summary=f"{sum(tokens.lengths)} tokens.",
        counts=tokens.lengths,
        norm=float("nan") if arguments.ends == "nan" else float(residual.abs().max()),
        ends=arguments.ends,
    )


def plot(result: Counted) -> Figure:
    if result.ends == "no picture":
        raise ValueError("nothing to draw")
    labels = tuple(str(i) for i in range(len(result.counts)))
    bars = Bars(title="Tokens", value_title="tokens", labels=labels, values=tuple(map(float, result.counts)))
    return Figure(title="Tokens per prompt", caption="A test.", panels=(bars,))
