"""Check a finding: draws fresh prompts, makes the runs of seven checks itself, and writes a verdict.

Comes back: validated, supported, refuted or inconclusive, with each check's figures and runs, and the claim as the
evidence lets it be worded. The thresholds are those written with the hypothesis. Takes minutes on a real model:
as_job=true. It can be repeated; each attempt draws other prompts and tightens the level of its tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..investigation.bench import Setting
from ..investigation.record import CHECKS, Check, CheckName, VerdictName
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Seed

if TYPE_CHECKING:
    from ..host import Host
    from ..technique import Progress

TITLE = "Validate a finding"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    """Which finding, and how thoroughly."""

    investigation: Annotated[str, Field(description="Id from open_investigation.")]
    finding: Annotated[str, Field(description="Id from record_finding, e.g. f1.")]
    n: Annotated[int, Field(ge=32, le=1000, description="Fresh prompts in each part.")] = 64
    controls: Annotated[int, Field(ge=19, le=999, description="Random sets it is held against.")] = 39
    checks: Annotated[
        tuple[CheckName, ...],
        Field(min_length=1, description="Checks to make; without a required one: supported at most."),
    ] = CHECKS
    seed: Seed = 0


class Validated(Outcome):
    """The verdict."""

    finding: str = Field(description="Which finding.")
    verdict: VerdictName = Field(description="validated, supported, refuted or inconclusive.")
    wording: str = Field(description="The claim as the evidence allows it to be worded.")
    reasons: tuple[str, ...] = Field(description="Why this verdict.")
    checks: tuple[Check, ...] = Field(description="Every check with figures and runs.")
    attempt: int = Field(description="How often this finding has been checked.")


def run(host: Host, arguments: Arguments, progress: Progress) -> Validated:
    """Run the checks.

    Raises:
        UnknownName: no such investigation or finding.
        AnatomistError: from the runs; what was written before stays.
    """
    from ..investigation.validate import validate

    setting = Setting(n=arguments.n, controls=arguments.controls, seed=arguments.seed)
    verdict = validate(
        host.ledger, host.bench(arguments.investigation, arguments.finding, progress), arguments.investigation,
        arguments.finding, setting=setting, checks=arguments.checks, progress=progress,
    )  # fmt: skip
    outcomes = ", ".join(f"{c.name} {c.outcome.replace('_', ' ')}" for c in verdict.checks)
    return Validated(
        summary=f"{verdict.finding} is {verdict.verdict}. {verdict.wording} Checks: {outcomes}.",
        finding=verdict.finding,
        verdict=verdict.verdict,
        wording=verdict.wording,
        reasons=verdict.reasons,
        checks=verdict.checks,
        attempt=verdict.attempt,
    )
