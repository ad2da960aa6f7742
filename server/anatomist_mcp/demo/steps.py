"""The calls of the demonstration, in the order of the five phases, each through the MCP client.

The investigation's record decides what may be said at the end: the demonstration prints the verdict it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from anatomist.operations.add_hypothesis import Added
from anatomist.operations.check_environment import Environment
from anatomist.operations.load_model import Loaded
from anatomist.operations.log_decision import Logged
from anatomist.operations.make_prompts import PromptsMade
from anatomist.operations.open_investigation import Opened
from anatomist.operations.record_finding import Recorded
from anatomist.operations.validate_finding import Validated
from anatomist.operations.write_report import Written
from anatomist.techniques.ablate import AblationResult
from anatomist.techniques.attention_patterns import AttentionPatternsResult
from anatomist.techniques.check_prompts import PromptCheck
from anatomist.techniques.direct_logit_attribution import DirectLogitAttributionResult
from anatomist.techniques.encode_sae import EncodeSaeResult
from anatomist.techniques.logit_lens import LogitLensResult
from anatomist.techniques.patch_activations import PatchingResult

from .console import Caller

MODEL = "smollm2-135m"
TASK = "ioi"
DICTIONARY = "smollm2-135m-l15"  # the sparse autoencoder that ships with the package
QUESTION = "Which attention heads does SmolLM2-135M need to name the indirect object?"
HEADS = 5
CONTROLS = 39  # random sets: the smallest p is 1 / 40
LARGE = 0.25  # share of the logit difference whose loss would matter: written into the prediction
ROLES = ["IO", "S1", "S2", "END"]


@dataclass(frozen=True)
class Demo:
    """What it came to."""

    verdict: Validated
    report: Written


async def investigate(caller: Caller, *, n: int, seed: int, report: Path) -> Demo:
    """Set up, design, look, analyse, validate, report."""
    prompts, on = await _set_up(caller, n, seed)
    heads = await _look(caller, prompts, on)
    alone = await _alone(caller, on, moved(heads))
    chosen = needed(alone, moved(heads))
    hypothesis = await _predict(caller, on, chosen)
    runs = [_run(heads), _run(alone), *await _test(caller, on, chosen)]
    verdict = await _validate(caller, on, hypothesis, chosen, runs, searched=_searched(heads))
    written = await caller.call("write_report", {"investigation": on["investigation"], "path": str(report)}, Written)
    return Demo(verdict, written)


async def _set_up(caller: Caller, n: int, seed: int) -> tuple[PromptsMade, dict[str, object]]:
    """Phases 1 and 2: the model, the question, prompts, and whether the model does the task at all."""
    call = caller.call
    await call("check_environment", {}, Environment)
    await call("load_model", {"name": MODEL}, Loaded)
    opened = await call("open_investigation", {"question": QUESTION, "model": MODEL, "task": TASK}, Opened)
    prompts = await call("make_prompts", {"task": TASK, "model": MODEL, "n": n, "seed": seed}, PromptsMade)
    on: dict[str, object] = {
        "model": MODEL, "prompts": prompts.handle, "seed": seed, "response_format": "detailed",
        "investigation": opened.investigation,
    }  # fmt: skip
    await call("check_prompts", on, PromptCheck)
    return prompts, on


async def _look(caller: Caller, prompts: PromptsMade, on: dict[str, object]) -> PatchingResult:
    """Phase 3: from coarse to fine, on the discovery prompts."""
    call = caller.call
    await call("logit_lens", on, LogitLensResult)
    await call("direct_logit_attribution", on, DirectLogitAttributionResult)
    await call("patch_activations", {**on, "positions": ROLES}, PatchingResult)
    first = cast(dict[str, object], prompts.examples[0].model_dump(mode="json"))
    await call("patch_activations", {**on, "prompts": [first]}, PatchingResult)
    features = {**on, "sae": DICTIONARY, "prompts": [first]}
    del features["response_format"]
    await call("run_technique", {"name": "encode_sae", "arguments": features}, EncodeSaeResult)
    # Where the answer is read: what a head writes elsewhere is another question.
    return await call(
        "patch_activations", {**on, "site": "head", "direction": "noising", "positions": ["END"]}, PatchingResult
    )


async def _alone(caller: Caller, on: dict[str, object], heads: tuple[str, ...]) -> AblationResult:
    """Each of the heads that noising names, ablated alone: one intervention is not enough to call a head needed."""
    arguments = {**on, "heads": heads, "ablation": "resample", "together": False}
    return await caller.call("ablate", arguments, AblationResult)


async def _predict(caller: Caller, on: dict[str, object], chosen: tuple[str, ...]) -> str:
    """Phase 4: what the heads look at, the decision, and a prediction before the held-out prompts are used."""
    named, record = ", ".join(chosen), {"investigation": on["investigation"]}
    await caller.call("attention_patterns", {**on, "heads": chosen}, AttentionPatternsResult)
    decision = {
        "text": f"Test {named}.",
        "why": "Noising them at the last token costs most, and each is missed when ablated alone, after correction.",
    }
    await caller.call("run_technique", {"name": "log_decision", "arguments": {**record, **decision}}, Logged)
    words = {
        "statement": f"{named} write the name that was not repeated.",
        "prediction": f"Resampling them together on unseen names removes at least {LARGE:.0%} of the logit difference.",
        "falsified_by": f"The loss on unseen names stays below {LARGE:.0%}, or random sets of heads lose as much.",
        "rivals": [
            "They keep the sentence grammatical, and the name is chosen elsewhere.",
            "Any late heads would do as much damage.",
        ],
    }
    given = {**record, **words, "components": chosen, "minimum_effect": LARGE, "plan": ["ablate", "validate_finding"]}
    return (await caller.call("add_hypothesis", given, Added)).hypothesis.id


async def _test(caller: Caller, on: dict[str, object], chosen: tuple[str, ...]) -> list[str]:
    """Phase 5, by hand: both ablations on the held-out prompts, against random sets."""
    arguments = {**on, "heads": chosen, "split": "held_out", "controls": CONTROLS}
    both = [await caller.call("ablate", {**arguments, "ablation": k}, AblationResult) for k in ("mean", "resample")]
    return [_run(result) for result in both]


async def _validate(
    caller: Caller, on: dict[str, object], hypothesis: str, chosen: tuple[str, ...], runs: list[str], *, searched: int
) -> Validated:
    """Phase 5: the claim, and the checks that the tool makes itself on prompts of its own."""
    record = {"investigation": on["investigation"]}
    claim = {
        "claim": f"{', '.join(chosen)} together are needed to name the indirect object.", "hypothesis": hypothesis,
        "runs": runs, "components": chosen, "kind": "necessary", "searched": searched,
    }  # fmt: skip
    finding = (await caller.call("record_finding", {**record, **claim}, Recorded)).finding.id
    return await caller.call("validate_finding", {**record, "finding": finding, "n": 32}, Validated)


def moved(heads: PatchingResult) -> tuple[str, ...]:
    """The heads whose noising takes most from the metric and survives the correction."""
    negative = [s.cell for s in heads.stand_out if s.change.mean < 0]
    return tuple(negative[:HEADS])


def needed(alone: AblationResult, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Those of them that are also missed when another sentence's activations replace theirs: what is to be tested."""
    missed = {s.cell for s in alone.stand_out if s.change.mean < 0}
    return tuple(head for head in heads if head in missed)


def _searched(heads: PatchingResult) -> int:
    return sum(value is not None for value in heads.effects[0].change.values or ())


def _run(result: PatchingResult | AblationResult) -> str:
    assert result.about is not None
    return result.about.run
