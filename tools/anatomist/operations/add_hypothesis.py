"""Write a hypothesis with its prediction, what would falsify it, and rivals, before it is tested.

Comes back: its id and time. Held-out prompts stay sealed within the investigation until one is written; the sign and
the smallest effect that matters are part of it, so that a check cannot move them afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..investigation.ledger import now
from ..investigation.record import Hypothesis, Investigation
from ..operation import Outcome
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..technique import Progress

TITLE = "Add a hypothesis"
WHERE = "server"
READ_ONLY = False
DESTRUCTIVE = False
Words = Annotated[str, Field(min_length=8, max_length=1000)]


class Arguments(Frozen):
    """The hypothesis."""

    investigation: Annotated[str, Field(description="Id from open_investigation.")]
    statement: Annotated[Words, Field(description="What may be true.")]
    prediction: Annotated[Words, Field(description="What an intervention on new prompts will do.")]
    falsified_by: Annotated[Words, Field(description="What outcome would show it false.")]
    rivals: Annotated[tuple[str, ...], Field(description="Other explanations of the same observations.")] = ()
    components: Annotated[tuple[str, ...], Field(description="Heads (L9H6) or sites it names.")] = ()
    direction: Annotated[
        Literal["decrease", "increase"], Field(description="What removing them does to the metric.")
    ] = "decrease"
    minimum_effect: Annotated[
        float, Field(gt=0, le=2, description="Smallest effect that matters, as a fraction of the clean metric.")
    ] = 0.1
    plan: Annotated[tuple[str, ...], Field(description="Techniques that will test it, in order.")] = ()


class Added(Outcome):
    """The hypothesis as written."""

    hypothesis: Hypothesis = Field(description="The hypothesis with its id and time.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Added:
    desk.ledger.get(arguments.investigation)
    given = arguments.model_dump(exclude={"investigation"})

    def make(state: Investigation | None) -> Hypothesis:
        count = len(state.hypotheses) if state else 0
        return Hypothesis(at=now(), id=f"h{count + 1}", **given)

    written = desk.ledger.append(arguments.investigation, make).hypotheses[-1]
    rival = "" if written.rivals else " It has no rival yet: what else would explain the observations?"
    return Added(
        summary=f"{written.id} is written ({written.at}); held-out runs are confirmatory from now on.{rival}",
        hypothesis=written,
    )
