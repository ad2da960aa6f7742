"""Write a decision and its reason into an investigation.

Comes back: the time and the count. For choices a reader would ask about: prompts left out, a metric, a lead dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..investigation.ledger import now
from ..investigation.record import Decision
from ..operation import Outcome
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..technique import Progress

TITLE = "Log a decision"
WHERE = "server"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    """The decision."""

    investigation: Annotated[str, Field(description="Id from open_investigation.")]
    text: Annotated[str, Field(min_length=3, max_length=1000, description="What was decided.")]
    why: Annotated[str, Field(min_length=3, max_length=1000, description="The reason.")]


class Logged(Outcome):
    """How many decisions the record holds."""

    decisions: int = Field(description="Decisions in the record.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Logged:
    desk.ledger.get(arguments.investigation)
    decision = Decision(at=now(), text=arguments.text, why=arguments.why)
    state = desk.ledger.append(arguments.investigation, lambda _: decision)
    return Logged(summary=f"Logged at {decision.at} in {state.id}.", decisions=len(state.decisions))
