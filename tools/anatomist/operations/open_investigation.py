"""Begin an investigation: a record in the workspace of question, hypotheses, runs, findings and checks.

Comes back: its id, to be passed as `investigation` to every technique, and what the first phase needs. It survives
restarts; `investigation_status` shows an existing one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..investigation.phases import Step, steps
from ..operation import Outcome
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..technique import Progress

TITLE = "Open an investigation"
WHERE = "server"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    """The question."""

    question: Annotated[str, Field(min_length=1, max_length=500, description="One sentence that has an answer.")]
    model: Annotated[str, Field(min_length=1, description="Model it is about.")]
    task: Annotated[str | None, Field(description="Prompt task, as make_prompts names it.")] = None


class Opened(Outcome):
    """The new record."""

    investigation: str = Field(description="Its id.")
    folder: str = Field(description="Where it is kept: plain files.")
    steps: tuple[Step, ...] = Field(description="What the phases need.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Opened:
    state = desk.ledger.open(arguments.question, arguments.model, arguments.task)
    return Opened(
        summary=(
            f"Investigation {state.id} is open. Pass investigation={state.id!r} to every technique. Next: load_model, "
            "make_prompts, check_prompts, then add_hypothesis with a prediction before the held-out prompts are used."
        ),
        investigation=state.id,
        folder=str(desk.ledger.folder / state.id),
        steps=steps(state),
    )
