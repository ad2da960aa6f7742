"""What an operation is: the housekeeping beside the techniques (models, prompts, runs, references, estimates).

An operation file `operations/<name>.py` has, top to bottom: docstring (first line: what it does; then what comes back,
what it does not do, which sibling to use instead), `TITLE`, `WHERE`, `READ_ONLY`, `DESTRUCTIVE`, `Arguments`, one
subclass of `Outcome`, and `run(desk, arguments, progress)`. Nothing else registers it: the catalog finds it.

`WHERE = "server"` needs no torch and answers at once from the workspace and what the worker last said (a `Desk` is
enough); `WHERE = "worker"` needs models (a `Host`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .result import Frozen

Where = Literal["server", "worker"]


class Outcome(Frozen):
    """Base of every operation's result."""

    summary: str = Field(description="What was done or found, in words, with the next step.")
    warnings: tuple[str, ...] = Field(default=(), description="What a careful reader must know.")
