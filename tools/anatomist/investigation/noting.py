"""How a run gets into an investigation: admitted before it is made, noted when it is stored."""

from __future__ import annotations

from ..errors import BadArguments
from ..result import Result
from .ledger import Ledger, now
from .phases import SEALED, label_of
from .record import Label, NotedRun


def admit(ledger: Ledger, investigation: str, split: str | None) -> Label:
    """Whether the run may be made, and how it will be labelled.

    Raises:
        UnknownName: no such investigation.
        BadArguments: held-out prompts, and no prediction has been written yet.
    """
    state = ledger.get(investigation)
    if split in SEALED and not state.hypotheses:
        raise BadArguments(
            f"the held-out prompts of {investigation} are sealed until a prediction is written: call add_hypothesis "
            "first, or look at the discovery part (split='discovery')."
        )
    return label_of(state, split)


def note(
    ledger: Ledger, investigation: str, result: Result, *, label: Label, split: str | None, purpose: str = ""
) -> None:
    """Write a stored run into the record."""
    assert result.about is not None
    noted = NotedRun(
        at=now(), run=result.about.run, technique=result.about.technique, label=label, split=split,
        summary=result.summary, purpose=purpose,
    )  # fmt: skip
    ledger.append(investigation, lambda _: noted)
