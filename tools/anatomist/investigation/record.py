"""What an investigation holds, as data: events that were written, and the state they add up to.

Each event is one line of `events.jsonl`, never changed afterwards. The state is their sum, so that a record cut off at
any moment is the record up to its last whole line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ..result import Frozen

ClaimKind = Literal["necessary", "sufficient", "direct", "mediating", "decodable"]
Label = Literal["exploratory", "confirmatory"]
Outcome = Literal["pass", "fail", "not_applicable"]
VerdictName = Literal["validated", "supported", "refuted", "inconclusive"]
CheckName = Literal["baseline", "causal", "specific", "held_out", "seeds", "effect_size", "alternatives"]
CHECKS: tuple[CheckName, ...] = (
    "baseline", "causal", "specific", "held_out", "seeds", "effect_size", "alternatives",
)  # fmt: skip
REQUIRED: tuple[CheckName, ...] = ("baseline", "causal", "specific", "held_out", "effect_size")


class Event(Frozen):
    """Base of what is written: when, and by whom."""

    at: str = Field(description="UTC time, ISO 8601.")


class Opened(Event):
    """The investigation begins."""

    event: Literal["opened"] = "opened"
    question: str = Field(description="The question, in one sentence.")
    model: str = Field(description="Model handle or name the question is about.")
    task: str | None = Field(default=None, description="Prompt task, as make_prompts names it.")


class Hypothesis(Event):
    """What may be true, what it predicts, and what would show it false."""

    event: Literal["hypothesis"] = "hypothesis"
    id: str = Field(description="h1, h2, ...")
    statement: str
    prediction: str = Field(description="What an intervention on new prompts will do, in words.")
    falsified_by: str = Field(description="What outcome would show it false.")
    rivals: tuple[str, ...] = Field(description="Other explanations of the same observations.")
    components: tuple[str, ...] = Field(default=(), description="Heads (L9H6) or sites (blocks.3.mlp_out) it names.")
    direction: Literal["decrease", "increase"] = Field(
        default="decrease", description="What removing (or for a sufficient claim: restoring) them does to the metric."
    )
    minimum_effect: float | None = Field(
        default=None, gt=0, description="Smallest effect that matters, as a fraction of the clean metric; set before."
    )
    plan: tuple[str, ...] = Field(default=(), description="Techniques that will test it, in order.")

    @property
    def rivals_in_words(self) -> str:
        """The rivals in one line; empty without any."""
        return "; ".join(rival.rstrip(".") for rival in self.rivals)


class Decision(Event):
    """A choice and its reason."""

    event: Literal["decision"] = "decision"
    text: str
    why: str


class NotedRun(Event):
    """A run made for the investigation."""

    event: Literal["run"] = "run"
    run: str
    technique: str
    label: Label
    split: str | None = None
    summary: str
    purpose: str = Field(default="", description="Empty, or the check it was made for.")


class Finding(Event):
    """A claim with the runs it rests on."""

    event: Literal["finding"] = "finding"
    id: str = Field(description="f1, f2, ...")
    claim: str
    hypothesis: str
    runs: tuple[str, ...] = Field(min_length=1)
    kind: ClaimKind
    components: tuple[str, ...] = Field(min_length=1, description="Heads or sites the claim is about.")
    direction: Literal["decrease", "increase"]
    minimum_effect: float = Field(gt=0, description="As a fraction of the clean metric.")
    ablation: Literal["mean", "resample", "zero"] = "resample"
    task_specific: bool = Field(default=False, description="Whether it claims that other text is left alone.")
    searched: int = Field(ge=1, description="How many components were looked at before these were chosen.")

    def claims_as(self, other: Finding) -> bool:
        """Whether both claim the same of the same components, however it is worded."""
        return (self.kind, set(self.components)) == (other.kind, set(other.components))


class Check(Frozen):
    """One check of a finding, run by the tool."""

    name: CheckName
    outcome: Outcome
    reason: str = Field(description="In words, with the figures.")
    figures: Mapping[str, float | None] = Field(default_factory=dict)
    runs: tuple[str, ...] = Field(default=(), description="Runs it made or rests on.")


class Verdict(Event):
    """What the checks add up to."""

    event: Literal["verdict"] = "verdict"
    finding: str
    attempt: int = Field(ge=1, description="Which attempt at this claim; each has a smaller level.")
    verdict: VerdictName
    reasons: tuple[str, ...]
    wording: str = Field(description="The claim as the evidence allows it to be worded.")
    checks: tuple[Check, ...]
    seed: int


AnyEvent = Annotated[
    Opened | Hypothesis | Decision | NotedRun | Finding | Verdict, Field(discriminator="event")
]
EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


class Investigation(Frozen):
    """The sum of the events."""

    id: str
    opened: Opened
    hypotheses: tuple[Hypothesis, ...] = ()
    decisions: tuple[Decision, ...] = ()
    runs: tuple[NotedRun, ...] = ()
    findings: tuple[Finding, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    def hypothesis(self, hypothesis_id: str) -> Hypothesis | None:
        return next((h for h in self.hypotheses if h.id == hypothesis_id), None)

    def finding(self, finding_id: str) -> Finding | None:
        return next((f for f in self.findings if f.id == finding_id), None)

    def last_verdict(self, finding_id: str) -> Verdict | None:
        return next((v for v in reversed(self.verdicts) if v.finding == finding_id), None)

    def attempts(self, finding: Finding) -> int:
        """How often this claim was checked, also where the same was recorded again under another id."""
        same = {f.id for f in self.findings if f.claims_as(finding)}
        return sum(v.finding in same for v in self.verdicts)


def add_up(investigation_id: str, events: list[AnyEvent]) -> Investigation:
    """The state after some events; the first must open the investigation."""
    opened = events[0]
    assert isinstance(opened, Opened)
    return Investigation(
        id=investigation_id,
        opened=opened,
        hypotheses=tuple(e for e in events if isinstance(e, Hypothesis)),
        decisions=tuple(e for e in events if isinstance(e, Decision)),
        runs=tuple(e for e in events if isinstance(e, NotedRun)),
        findings=tuple(e for e in events if isinstance(e, Finding)),
        verdicts=tuple(e for e in events if isinstance(e, Verdict)),
    )
