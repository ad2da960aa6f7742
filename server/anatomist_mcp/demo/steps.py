"""The calls of the demonstration, in the order of the five phases, each through the MCP client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from anatomist.operations.check_environment import Environment
from anatomist.operations.load_model import Loaded
from anatomist.operations.make_prompts import PromptsMade
from anatomist.techniques.ablate import AblationResult
from anatomist.techniques.attention_patterns import AttentionPatternsResult
from anatomist.techniques.check_prompts import PromptCheck
from anatomist.techniques.direct_logit_attribution import DirectLogitAttributionResult
from anatomist.techniques.logit_lens import LogitLensResult
from anatomist.techniques.patch_activations import PatchingResult

from .console import Caller

MODEL = "smollm2-135m"
TASK = "ioi"
HEADS = 5
CONTROLS = 39  # random sets: the smallest p is 1 / 40
ROLES = ["IO", "S1", "S2", "END"]


@dataclass(frozen=True)
class Demo:
    """All that came back."""

    environment: Environment
    model: Loaded
    prompts: PromptsMade
    check: PromptCheck
    lens: LogitLensResult
    direct: DirectLogitAttributionResult
    residual: PatchingResult
    one_prompt: PatchingResult
    heads: PatchingResult
    chosen: tuple[str, ...]
    attention: AttentionPatternsResult
    removed: tuple[AblationResult, ...]  # mean, then resample, on the held-out part


async def investigate(caller: Caller, *, n: int, seed: int) -> Demo:
    """Set up, design, look, analyse, validate."""
    call = caller.call
    environment = await call("check_environment", {}, Environment)
    model = await call("load_model", {"name": MODEL}, Loaded)
    prompts = await call("make_prompts", {"task": TASK, "model": MODEL, "n": n, "seed": seed}, PromptsMade)
    on = {"model": MODEL, "prompts": prompts.handle, "seed": seed, "response_format": "detailed"}
    at = {"positions": ["END"]}  # where the answer is read: what a head writes elsewhere is another question
    check = await call("check_prompts", on, PromptCheck)
    lens = await call("logit_lens", on, LogitLensResult)
    direct = await call("direct_logit_attribution", on, DirectLogitAttributionResult)
    residual = await call("patch_activations", {**on, "positions": ROLES}, PatchingResult)
    one_prompt = await call("patch_activations", {**on, "prompts": _first(prompts)}, PatchingResult)
    heads = await call("patch_activations", {**on, "site": "head", "direction": "noising", **at}, PatchingResult)
    chosen = necessary_heads(heads)
    attention = await call("attention_patterns", {**on, "heads": chosen}, AttentionPatternsResult)
    removed = tuple(
        [
            await call(
                "ablate",
                {**on, **at, "heads": chosen, "split": "held_out", "ablation": kind, "controls": CONTROLS},
                AblationResult,
            )
            for kind in ("mean", "resample")
        ]
    )
    return Demo(
        environment, model, prompts, check, lens, direct, residual, one_prompt, heads, chosen, attention, removed
    )


def necessary_heads(heads: PatchingResult) -> tuple[str, ...]:
    """The heads whose noising takes most from the metric and survives the correction: the discovery to be tested."""
    negative = [s.cell for s in heads.stand_out if s.change.mean < 0]
    return tuple(negative[:HEADS])


def _first(prompts: PromptsMade) -> list[dict[str, object]]:
    return [cast(dict[str, object], prompts.examples[0].model_dump(mode="json"))]
