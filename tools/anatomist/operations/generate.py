"""Let a loaded model continue a text.

Returns the new text and its tokens. With `chat` the text is put into the model's chat template first. Greedy at
temperature 0. This shows what the model says, not why: check_prompts measures whether it does a task.
"""

from __future__ import annotations

from pydantic import Field

from ..host import Host
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Bos, ModelHandle, Progress, Seed

TITLE = "Generate text"
WHERE: Where = "worker"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    model: ModelHandle
    prompt: str | tuple[int, ...] = Field(min_length=1, description="Text, or token ids for models without text.")
    max_new_tokens: int = Field(default=40, ge=1, le=1000, description="Tokens to add at most.")
    temperature: float = Field(default=0.0, ge=0, le=5, description="0 takes the likeliest token each time.")
    chat: bool = Field(default=False, description="Put the text into the model's chat template.")
    bos: Bos = None
    seed: Seed = 0


class Generated(Outcome):
    """What the model went on with."""

    text: str = Field(description="The new text alone.")
    tokens: tuple[str, ...] = Field(description="The new tokens, exact.")
    prompt_tokens: int = Field(description="Tokens of the prompt, with BOS and template.")
    bos: bool = Field(description="Whether a BOS token was put first.")


def run(host: Host, arguments: Arguments, progress: Progress) -> Generated:
    progress(0, 1, f"preparing {arguments.model}")
    model = host.model(arguments.model, progress)
    prompt = arguments.prompt
    if arguments.chat:
        prompt = model.chat(prompt if isinstance(prompt, str) else "".join(model.token_strings(prompt)))
    tokens = model.tokenize([prompt], bos=arguments.bos)
    progress(0.1, 1, f"generating up to {arguments.max_new_tokens} tokens")
    (ids,) = model.generate(
        tokens, max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed
    )
    strings = model.token_strings(ids)
    text = (" " if model.info.backend == "toy" else "").join(strings)  # the toy's tokens are words without spaces
    return Generated(
        summary=f"{len(ids)} new tokens after {tokens.width}: {text!r}",
        text=text,
        tokens=strings,
        prompt_tokens=tokens.width,
        bos=tokens.bos,
    )
