"""Record a claim with the runs it rests on; only runs made in this investigation count.

Comes back: the finding's id. It is a claim, not yet a result: validate_finding checks it. A claim without a causal run
can be recorded only as direct or decodable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..errors import BadArguments, UnknownName
from ..investigation.ledger import now
from ..investigation.phases import CAUSAL
from ..investigation.record import ClaimKind, Finding, Investigation
from ..operation import Outcome
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..technique import Progress

TITLE = "Record a finding"
WHERE = "server"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    """The claim."""

    investigation: Annotated[str, Field(description="Id from open_investigation.")]
    claim: Annotated[str, Field(min_length=8, max_length=1000, description="One sentence.")]
    hypothesis: Annotated[str, Field(description="The hypothesis it answers, e.g. h1.")]
    runs: Annotated[tuple[str, ...], Field(min_length=1, description="Ids of the runs it rests on.")]
    components: Annotated[tuple[str, ...], Field(min_length=1, description="Heads (L9H6) or sites it is about.")]
    kind: Annotated[ClaimKind, Field(description="What is claimed of them; decides which intervention tests it.")]
    ablation: Annotated[
        Literal["mean", "resample", "zero"], Field(description="The counterfactual the claim is about.")
    ] = "resample"
    task_specific: Annotated[bool, Field(description="Whether it claims that other text is left alone.")] = False
    searched: Annotated[int, Field(ge=1, description="Components looked at before these were chosen.")]


class Recorded(Outcome):
    """The finding as written."""

    finding: Finding = Field(description="The finding with its id and time.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Recorded:
    _check(desk.ledger.get(arguments.investigation), arguments)

    def make(state: Investigation | None) -> Finding:
        assert state is not None
        hypothesis = state.hypothesis(arguments.hypothesis)
        assert hypothesis is not None
        return Finding(
            at=now(),
            id=f"f{len(state.findings) + 1}",
            direction=hypothesis.direction,
            minimum_effect=hypothesis.minimum_effect or 0.1,
            **arguments.model_dump(exclude={"investigation"}),
        )

    written = desk.ledger.append(arguments.investigation, make).findings[-1]
    return Recorded(
        summary=f"{written.id} is recorded as a claim. Next: validate_finding(finding={written.id!r}).", finding=written
    )


def _check(state: Investigation, arguments: Arguments) -> None:
    made = {r.run: r for r in state.runs}
    for run_id in arguments.runs:
        if run_id not in made:
            raise UnknownName.of(
                f"run in investigation {state.id}", run_id, made,
                "Evidence is a run made in this investigation: pass investigation= to the technique.",
            )  # fmt: skip
    hypothesis = state.hypothesis(arguments.hypothesis)
    if hypothesis is None:
        written = [h.id for h in state.hypotheses]
        raise UnknownName.of("hypothesis", arguments.hypothesis, written, "Call add_hypothesis.")
    if hypothesis.components and set(hypothesis.components) != set(arguments.components):
        raise BadArguments(
            f"{hypothesis.id} predicts what {', '.join(hypothesis.components)} do, the claim is about "
            f"{', '.join(arguments.components)}: write the prediction for these with add_hypothesis first."
        )
    if arguments.kind in ("necessary", "sufficient", "mediating") and not any(
        made[r].technique in CAUSAL for r in arguments.runs
    ):
        raise BadArguments(
            f"a claim that components are {arguments.kind} needs a run that intervenes; {', '.join(arguments.runs)} "
            "only read. Run patch_activations or ablate within the investigation, or claim 'direct' or 'decodable'."
        )
