"""Make prompts for a task, filtered to single tokens of a model's tokenizer, and keep them under a handle.

Returns the handle (pass it as `prompts`), the sizes of the discovery and the held-out part (other names, and a template
of its own) and examples. Prompts of your own need no handle: give techniques a list, or a .jsonl file in the workspace.
Next: check_prompts measures whether the model does the task.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..host import Host
from ..operation import Outcome, Where
from ..prompts.prompt_set import Prompt
from ..result import Frozen
from ..technique import ModelHandle, Progress, Seed

TITLE = "Make prompts"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False
EXAMPLES = 2


class Arguments(Frozen):
    task: str = Field(
        min_length=1, description="ioi, greater_than, induction, gender_bias, capitals or docstring."
    )
    model: ModelHandle
    n: int = Field(default=64, ge=1, le=10_000, description="Prompts in the discovery part; under 32 is exploratory.")
    seed: Seed = 0
    corruption: str | None = Field(default=None, description="Kind of counterfactual; the task's first when absent.")
    held_out: int | None = Field(default=None, ge=1, le=10_000, description="Held-out prompts; n when absent.")


class PromptsMade(Outcome):
    """A stored prompt set."""

    handle: str = Field(description="Pass it as `prompts`.")
    task: str
    discovery: int = Field(description="Prompts in the discovery part.")
    held_out: int = Field(description="Prompts in the held-out part (split='held_out').")
    templates: tuple[str, ...] = Field(description="Templates of the discovery part.")
    held_out_templates: tuple[str, ...] = Field(description="Templates of the held-out part.")
    examples: tuple[Prompt, ...] = Field(description="First prompts of the discovery part.")


def run(host: Host, arguments: Arguments, progress: Progress) -> PromptsMade:
    from ..prompts.make import make_prompts  # the word lists, when they are needed

    progress(0, 1, f"making {arguments.task} prompts")
    model = host.model(arguments.model, progress)
    discovery, held_out = make_prompts(
        arguments.task, arguments.n, arguments.seed, model, corruption=arguments.corruption, held_out=arguments.held_out
    )
    pair = host.shelf.put(discovery, held_out, task=arguments.task, seed=arguments.seed, model=arguments.model)
    first = pair.discovery.prompts[0]
    return PromptsMade(
        summary=(
            f"{pair.handle}: {len(pair.discovery.prompts)} discovery and {len(pair.held_out.prompts)} held-out "
            f"{arguments.task} prompts, e.g. {first.clean!r} -> {first.answer!r}, not {first.wrong!r}. "
            f"Next: check_prompts(model={arguments.model!r}, prompts={pair.handle!r})."
        ),
        handle=pair.handle,
        task=arguments.task,
        discovery=len(pair.discovery.prompts),
        held_out=len(pair.held_out.prompts),
        templates=_templates(pair.discovery.prompts),
        held_out_templates=_templates(pair.held_out.prompts),
        examples=pair.discovery.prompts[:EXAMPLES],
    )


def _templates(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    return tuple(sorted({p.template for p in prompts}))
