"""Investigations of the hand-set circuit: through a host, and on a bench that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from anatomist.catalog import CATALOG, parse_arguments
from anatomist.desk import Answer
from anatomist.host import Host
from anatomist.investigation.bench import Setting
from anatomist.investigation.checks import Case
from anatomist.investigation.record import ClaimKind, Finding, Hypothesis, Investigation, Opened
from anatomist.model.protocol import Model
from anatomist.model.sites import Shape
from anatomist.operations.validate_finding import Validated
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import Prompt, PromptSet, kept_back
from anatomist.result import Result
from anatomist.technique import Arguments, Context

TRUE_HEADS = ("L0H1", "L1H2")
IDLE_HEADS = ("L0H0", "L0H2", "L0H3", "L1H0", "L1H1", "L1H3")
MODEL = "toy-induction"
AT = "2026-01-01T00:00:00Z"
Spoil = Callable[[Sequence[Prompt], int], tuple[Prompt, ...]]


def opened(host: Host, *, model: str = MODEL, task: str | None = "induction") -> str:
    """A new investigation of the toy."""
    arguments = {"question": "Which heads continue a repeated run?", "model": model, "task": task}
    return str(host.call("open_investigation", arguments).result.model_dump()["investigation"])


def prompts(host: Host, *, model: str = MODEL, n: int = 32, seed: int = 1) -> str:
    made = host.call("make_prompts", {"task": "induction", "model": model, "n": n, "seed": seed})
    return str(made.result.model_dump()["handle"])


def predicted(host: Host, investigation: str, heads: Sequence[str], **more: object) -> str:
    """A hypothesis about some heads: they carry at least half of the logit difference."""
    words = {
        "statement": "These heads copy the token that followed before.",
        "prediction": "Resampling them on new prompts removes at least half of the logit difference.",
        "falsified_by": "The logit difference stays above half of its clean value.",
    }
    arguments = {"investigation": investigation, **words, "components": heads, "minimum_effect": 0.5, **more}
    return str(host.call("add_hypothesis", arguments).result.model_dump()["hypothesis"]["id"])


def ablated(host: Host, investigation: str, handle: object, heads: Sequence[str], **more: object) -> Answer:
    arguments = {"model": MODEL, "prompts": handle, "heads": heads, "together": True, "investigation": investigation}
    return host.call("ablate", {**arguments, **more})


def claimed(
    host: Host, investigation: str, hypothesis: str, run: str | None, heads: Sequence[str],
    kind: ClaimKind = "necessary",
) -> str:  # fmt: skip
    arguments = {
        "investigation": investigation, "claim": "These heads are needed for induction.", "hypothesis": hypothesis,
        "runs": [run], "components": heads, "kind": kind, "searched": 8,
    }  # fmt: skip
    return str(host.call("record_finding", arguments).result.model_dump()["finding"]["id"])


def validated(host: Host, investigation: str, finding: str, **more: object) -> Validated:
    arguments = {"investigation": investigation, "finding": finding, "n": 32, **more}
    result = host.call("validate_finding", arguments).result
    assert isinstance(result, Validated)
    return result


def whole(host: Host, heads: Sequence[str], kind: ClaimKind = "necessary", **prediction: object) -> Validated:
    """From the question to the verdict on some heads."""
    investigation, handle = opened(host), prompts(host)
    hypothesis = predicted(host, investigation, heads, **prediction)
    run = ablated(host, investigation, handle, heads, controls=0).run_id
    return validated(host, investigation, claimed(host, investigation, hypothesis, run, heads, kind))


def finding(heads: Sequence[str] = TRUE_HEADS, **more: object) -> Finding:
    """A claim as the record holds it."""
    given: dict[str, object] = {
        "at": AT, "id": "f1", "claim": "needed", "hypothesis": "h1", "runs": ("r-0001",), "kind": "necessary",
        "components": tuple(heads), "direction": "decrease", "minimum_effect": 0.5, "searched": 8,
    }  # fmt: skip
    return Finding.model_validate(given | more)


def hypothesis(**more: object) -> Hypothesis:
    given: dict[str, object] = {
        "at": AT, "id": "h1", "statement": "s", "prediction": "p", "falsified_by": "f", "rivals": (),
        "minimum_effect": 0.5,
    }  # fmt: skip
    return Hypothesis.model_validate(given | more)


@dataclass
class MemoryBench:
    """Runs techniques on one model and keeps nothing; `spoil` may change the prompts that are drawn."""

    model: Model
    spoil: Spoil = lambda prompts, seed: tuple(prompts)
    sets: dict[str, Mapping[str, PromptSet]] = field(default_factory=dict)
    calls: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)

    def technique(self, name: str, arguments: Mapping[str, object]) -> tuple[Result, str]:
        entry = CATALOG.find(name)
        parsed = parse_arguments(entry, arguments)
        assert isinstance(parsed, Arguments)
        chosen = self.sets[str(arguments["prompts"])][str(arguments["split"])]
        self.calls.append((name, arguments))
        return entry.module.run(Context(self.model, chosen), parsed), f"r-{len(self.calls):04d}"

    def fresh_prompts(self, task: str, model: str, n: int, seed: int) -> str:
        handle = f"{task}-{n}-{seed}"
        if handle not in self.sets:
            parts = make_prompts(task, n, seed, self.model)
            spoilt = [p.model_copy(update={"prompts": self.spoil(p.prompts, seed)}) for p in parts]
            self.sets[handle] = {p.split or "": p for p in spoilt} | {"kept_back": kept_back(*spoilt)}
        return handle

    def shape(self, model: str, /) -> Shape:
        return self.model.info.shape


def case(bench: MemoryBench, claim: Finding, *, setting: Setting | None = None, attempt: int = 1) -> Case:
    """A finding under examination on a bench."""
    chosen = setting or Setting(n=32, controls=39, seeds=2, seed=5)
    state = Investigation(id="i-0001", opened=Opened(at=AT, question="q", model=MODEL, task="induction"))
    handle = bench.fresh_prompts("induction", MODEL, chosen.n, chosen.seed)
    return Case(bench, state, claim, hypothesis(), chosen, attempt, handle, MODEL, "induction")
