"""Where an investigation stands: its phase, what is missing for the next, findings, verdicts; without an id, a list.

Comes back: the steps of the five phases, each with the call that would do it. It changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..investigation.phases import Step, current_phase, steps
from ..investigation.record import Investigation
from ..operation import Outcome
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..technique import Progress

TITLE = "Investigation status"
WHERE = "server"
READ_ONLY = True
DESTRUCTIVE = False
PHASES = ("set-up", "experiment design", "implementation", "analysis", "validation")


class Arguments(Frozen):
    """Which one."""

    investigation: Annotated[str | None, Field(description="Id; absent lists all.")] = None


class Status(Outcome):
    """One investigation, or the list."""

    investigations: tuple[str, ...] = Field(description="Ids in the workspace, with their questions.")
    phase: int | None = Field(default=None, description="1 to 5; absent in a list.")
    steps: tuple[Step, ...] = Field(default=(), description="What the phases need, and whether it is there.")
    record: Investigation | None = Field(default=None, description="Everything written so far.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Status:
    ids = desk.ledger.ids()
    listed = tuple(f"{i}: {desk.ledger.get(i).opened.question}" for i in ids)
    if arguments.investigation is None:
        said = "; ".join(listed) or "No investigation yet. Next: open_investigation."
        return Status(summary=said, investigations=listed)
    state = desk.ledger.get(arguments.investigation)
    found = steps(state)
    return Status(
        summary=_in_words(state, found), investigations=listed, phase=current_phase(found), steps=found, record=state
    )


def _in_words(state: Investigation, found: tuple[Step, ...]) -> str:
    phase = current_phase(found)
    missing = [f"{s.need} ({s.next_call})" for s in found if not s.done]
    verdicts = [f"{f.id} {v.verdict}" for f in state.findings if (v := state.last_verdict(f.id))]
    return (
        f"{state.id}, phase {phase} ({PHASES[phase - 1]}): {len(state.runs)} runs, {len(state.hypotheses)} hypotheses, "
        f"{len(state.findings)} findings{': ' + ', '.join(verdicts) if verdicts else ''}. "
        + (f"Missing: {'; '.join(missing)}." if missing else "Every phase has what it needs. Next: write_report.")
    )
