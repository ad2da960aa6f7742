"""What the checks add up to: a pure function from checks to a verdict, in words.

| verdict | when |
|---|---|
| validated | every required check passed and none failed |
| refuted | the model does the task, and the interval of the effect lies wholly below the smallest that matters |
| supported | nothing failed, the task is done and an effect was shown, but a required check could not be made |
| inconclusive | all else |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .record import REQUIRED, Check, CheckName, Finding, VerdictName

# Of one component, and of several.
MEANS: Mapping[str, tuple[str, str]] = {
    "necessary": ("is needed for the behaviour", "are needed for the behaviour"),
    "sufficient": ("is enough to bring the behaviour back", "are enough to bring the behaviour back"),
    "mediating": ("carries what differs between the prompts", "carry what differs between the prompts"),
    "direct": ("writes the answer directly", "write the answer directly"),
    "decodable": ("holds what can be read there", "hold what can be read there"),
}


def verdict_of(checks: Sequence[Check]) -> tuple[VerdictName, tuple[str, ...]]:
    """The verdict and its reasons."""
    by_name: dict[CheckName, Check] = {c.name: c for c in checks}
    failed = [c for c in checks if c.outcome == "fail"]
    missing: list[CheckName] = [n for n in REQUIRED if n not in by_name or by_name[n].outcome == "not_applicable"]
    reasons = tuple(f"{c.name}: {c.reason}" for c in failed)
    if failed:
        return ("refuted" if _refutes(by_name) else "inconclusive"), reasons
    if missing:
        shown = "baseline" not in missing and not {"causal", "held_out"} <= set(missing)
        return "supported" if shown else "inconclusive", tuple(f"{n}: {_why(by_name, n)}" for n in missing)
    return "validated", tuple(f"{c.name} passed" for c in checks if c.outcome == "pass")


def wording(finding: Finding, verdict: VerdictName, checks: Sequence[Check]) -> str:
    """The claim as the evidence lets it be worded."""
    parts, many = ", ".join(finding.components), len(finding.components) > 1
    means = MEANS[finding.kind][many]
    effect = next((c for c in checks if c.name == "effect_size"), None) or next(
        (c for c in checks if c.name == "held_out"), None
    )
    share = "" if effect is None or effect.figures.get("share") is None else f" (share {effect.figures['share']:.2f})"
    if verdict == "validated":
        return f"On held-out prompts, {parts}{' together' if many else ''} {means}{share}. A circuit, not the circuit."
    if verdict == "supported":
        return f"There is evidence that {parts} {means}{share}; not every required check could be made."
    if verdict == "refuted":
        have = "have" if many else "has"
        return f"The claim does not hold: {parts} {have} too small an effect, or the wrong one{share}."
    return f"The checks do not decide whether {parts} {means}{share}."


def _refutes(checks: Mapping[CheckName, Check]) -> bool:
    """Whether a failed effect is also shown to be too small: its interval ends below the smallest that matters."""
    base = checks.get("baseline")
    if base is None or base.outcome != "pass":
        return False
    effects = [checks[n] for n in ("causal", "held_out") if n in checks and checks[n].outcome == "fail"]
    return any(
        (high := c.figures.get("high")) is not None and high < (c.figures.get("minimum") or 0.0) for c in effects
    )


def _why(checks: Mapping[CheckName, Check], name: CheckName) -> str:
    return checks[name].reason if name in checks else "was not made"
