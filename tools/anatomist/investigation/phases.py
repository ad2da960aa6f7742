"""The five phases: where an investigation stands, what is missing for the next, which call to make."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from ..result import Frozen
from .record import Investigation, Label, NotedRun

SEALED = ("held_out", "kept_back")  # parts of a prompt set that wait for a prediction
CAUSAL = frozenset({
    "patch_activations", "ablate", "path_patching", "attribution_patching", "discover_circuit", "sae_attribution",
    "steer", "edit_weights", "erase_concept", "attention_knockout", "self_repair", "das",
})  # fmt: skip


class Step(Frozen):
    """One thing that a phase needs."""

    phase: int = Field(ge=1, le=5)
    need: str
    done: bool
    next_call: str = Field(description="The call that would do it.")


Need = tuple[int, str, str, Callable[[Investigation], bool]]
NEEDS: tuple[Need, ...] = (
    (1, "the model has been run at all", "load_model, then make_prompts", lambda i: bool(i.runs)),
    (2, "the model was shown to do the task", "check_prompts", lambda i: _ran(i, "check_prompts")),
    (2, "a hypothesis with a prediction and what would falsify it", "add_hypothesis", lambda i: bool(i.hypotheses)),
    (2, "a rival explanation", "add_hypothesis(rivals=[...])", lambda i: any(h.rivals for h in i.hypotheses)),
    (3, "a causal run, not attribution alone", "patch_activations", lambda i: any(map(_is_causal, i.runs))),
    (4, "a finding that rests on runs", "record_finding", lambda i: bool(i.findings)),
    (4, "a decision logged with its reason", "log_decision", lambda i: bool(i.decisions)),
    (5, "every finding checked", "validate_finding", lambda i: _all_checked(i)),
)


def steps(state: Investigation) -> tuple[Step, ...]:
    """Every need of every phase, and whether it is met."""
    return tuple(Step(phase=p, need=need, done=met(state), next_call=call) for p, need, call, met in NEEDS)


def current_phase(found: tuple[Step, ...]) -> int:
    """The first phase that lacks something; 5 when nothing is lacking."""
    return next((s.phase for s in found if not s.done), 5)


def label_of(state: Investigation, split: str | None) -> Label:
    """A run is confirmatory when a prediction was written before it and its prompts are held out."""
    return "confirmatory" if split in SEALED and state.hypotheses else "exploratory"


def _is_causal(run: NotedRun) -> bool:
    return run.technique in CAUSAL


def _ran(state: Investigation, technique: str) -> bool:
    return any(r.technique == technique for r in state.runs)


def _all_checked(state: Investigation) -> bool:
    return bool(state.findings) and all(state.last_verdict(f.id) for f in state.findings)
