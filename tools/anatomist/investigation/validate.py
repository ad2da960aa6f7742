"""Checks a finding from end to end: draws fresh prompts, runs every check, writes the verdict into the record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from ..errors import BadArguments, UnknownName
from .bench import Bench, Setting
from .checks import Case, run_check
from .ledger import Ledger, now
from .record import CHECKS, CheckName, Finding, Hypothesis, Investigation, Verdict
from .verdict import verdict_of, wording


def validate(
    ledger: Ledger, bench: Bench, investigation: str, finding_id: str, *, setting: Setting,
    checks: Sequence[CheckName] = CHECKS, progress: Callable[[float, float, str], None],
) -> Verdict:  # fmt: skip
    """Run the checks of a finding and write the verdict.

    Raises:
        UnknownName: no such investigation or finding.
        BadArguments: its hypothesis was written after the runs it rests on would need it, or is missing.
    """
    state = ledger.get(investigation)
    finding, hypothesis = _found(state, finding_id)
    attempt = state.attempts(finding) + 1
    setting = _fresh(setting, investigation, finding_id, attempt)
    task, model = state.opened.task, state.opened.model
    prompts = bench.fresh_prompts(task, model, setting.n, setting.seed) if task else None
    case = Case(bench, state, finding, hypothesis, setting, attempt, prompts, model, task)
    made = []
    for done, name in enumerate(checks):
        progress(done, len(checks), f"{finding_id}: {name}")
        made.append(run_check(name, case))
    outcome, reasons = verdict_of(made)
    verdict = Verdict(
        at=now(), finding=finding_id, attempt=attempt, verdict=outcome, reasons=reasons,
        wording=wording(finding, outcome, made), checks=tuple(made), seed=setting.seed,
    )  # fmt: skip
    ledger.append(investigation, lambda _: verdict)
    return verdict


def _found(state: Investigation, finding_id: str) -> tuple[Finding, Hypothesis]:
    finding = state.finding(finding_id)
    if finding is None:
        raise UnknownName.of("finding", finding_id, [f.id for f in state.findings], "Call record_finding first.")
    hypothesis = state.hypothesis(finding.hypothesis)
    if hypothesis is None:
        raise BadArguments(f"finding {finding_id} answers {finding.hypothesis!r}, which is not in the record.")
    return finding, hypothesis


def _fresh(setting: Setting, investigation: str, finding_id: str, attempt: int) -> Setting:
    """Every attempt draws other prompts: its seed comes from what is attempted and how often it was before."""
    from dataclasses import replace

    key = f"{setting.seed}/{investigation}/{finding_id}/{attempt}"
    return replace(setting, seed=int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1)
