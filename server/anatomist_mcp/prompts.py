"""The five phases of an investigation as prompts: set-up, experiment design, implementation, analysis, validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mcp_types as types
from anatomist.errors import UnknownName
from mcp import MCPError


class PhaseArgument(NamedTuple):
    """One argument of a phase prompt."""

    name: str
    description: str
    default: str | None = None  # required when there is none


class Phase(NamedTuple):
    """One phase: what it is for, and the instructions with {argument} in place of what the user says."""

    title: str
    description: str
    arguments: tuple[PhaseArgument, ...]
    text: str


_MODEL = PhaseArgument("model", "Model name, folder or handle.", "smollm2-135m")
_QUESTION = PhaseArgument("question", "What you want to know about the model's behaviour.")
_PROMPTS = PhaseArgument("prompts", "Handle of the prompt set.")

PHASES: Mapping[str, Phase] = {
    "set_up": Phase(
        "Phase 1: set-up",
        "Get a model that is known to be the model it claims to be, and know what the machine can take.",
        (_MODEL,),
        """Set up an interpretability investigation on {model}.
1. check_environment: note the device, free memory and any known-bad version pair; stop if it reports one that matters.
2. load_model(name='{model}'): read the parity with the plain reference, the dtype, the attention implementation and the
   BOS policy. A parity failure is a stop, not a footnote.
3. run_technique(name="estimate_compute") for the most expensive thing you intend to run. If it would take over a
minute, plan as_job=true.
4. Tell the user in three sentences: what is loaded, what it can do here (which sites), and what would be too expensive.
Do not compute anything about the behaviour yet.""",
    ),
    "design_experiment": Phase(
        "Phase 2: experiment design",
        "Turn a question into prompts with a contrast, a metric, rival hypotheses and a stopping rule.",
        (_QUESTION, _MODEL),
        """Design an experiment on {model} for this question: {question}
1. Write the behaviour as one contrast: a clean prompt, a corrupted prompt of the same token length that differs only in
   what matters, the right next token and the wrong one (exact strings, leading space included).
2. make_prompts for a generated task, or give your own prompts; use at least 32, over several templates. Keep the
   held-out part untouched until validation.
3. check_prompts: are they aligned, are the answers single tokens, and does the model do the task on clean prompts and
   not on corrupted ones? If it does not do the task, there is no circuit to find: change the question and say so.
4. Write down, before any technique is run: the main hypothesis, at least one rival, what result would refute each, the
   metric, the direction (denoising tests sufficiency, noising necessity) and the ablation.
5. list_techniques with the question in plain words; open_reference for each method you choose, its limits above all.
Do not rely on what was published about this behaviour in other models: it is a hypothesis here, not evidence.""",
    ),
    "implement": Phase(
        "Phase 3: implementation",
        "Run the planned techniques from coarse to fine, with self-tests and costs looked at each time.",
        (_QUESTION, _PROMPTS, _MODEL),
        """Run the experiment on {model} with prompts {prompts}, for: {question}
1. Coarse first: logit_lens (where does the answer become readable?), direct_logit_attribution (which parts write it?),
   patch_activations on resid_pre by layer and position (where does the information flow?).
2. Then fine: patch_activations on head at the layers and positions that mattered; attention_patterns of the few heads
   that stand out (a pattern is a description, not a cause).
3. After each call read the self-tests and warnings before the numbers. After a failed self-test a run is no evidence.
4. Use the discovery part only. Note every run id; do not repeat a run with other settings until it looks better: if you
   must change a setting, say why and report both.
5. Long calls: as_job=true, then get_job.""",
    ),
    "analyse": Phase(
        "Phase 4: analysis",
        "Read stored runs for effect sizes, intervals and what they cannot show.",
        (_QUESTION, PhaseArgument("runs", "Run ids to read, separated by commas.")),
        """Analyse the stored runs {runs} for: {question}
1. get_run for each; open_reference for its technique: what does this number mean, and what does it not show?
2. Report effects in the metric's unit with interval and n, signed; normalised effects only where they are given. Under
   32 prompts call it exploratory. Among many heads, count how many comparisons were made.
3. Look for what speaks against the hypothesis: templates that differ, heads with the opposite sign, redundancy (single
   ablations underestimate when others take over), effects smaller than the dtype's noise.
4. Keep decodable (lens, probe), attended (pattern), attributed (direct effect) and causal (patching, ablation) apart.
5. State the claim in one sentence with its runs, the rival that is left, and the one experiment that would decide.""",
    ),
    "validate": Phase(
        "Phase 5: validation",
        "Try to refute a claim: causal evidence, controls, held-out prompts, several seeds.",
        (PhaseArgument("claim", "The claim, naming the heads, layers or features."), _PROMPTS, _MODEL),
        """Try to refute this claim on {model} with prompts {prompts}: {claim}
1. Held-out prompts (split='held_out'): check_prompts first, then the decisive runs.
2. Causal in both directions: noising or ablate for necessity, denoising for sufficiency. Ablate the named parts jointly
   and compare with the equal-size random controls that ablate reports.
3. At least mean and resample ablation; a result that holds under one only is a result about that ablation.
4. Several seeds where anything is random; another template or corruption.
5. Verdict, one of: supported (says what was run, effect, interval, n, controls), refuted, or undecided. 'Validated'
   needs causal evidence, controls, held-out data, more than one seed and an effect size, each with a run id; if one is
   lacking, say which. Write "a circuit", not "the circuit", and name the rivals not excluded.""",
    ),
}


async def on_list(ctx: object, params: object) -> types.ListPromptsResult:
    """All phases."""
    return types.ListPromptsResult(prompts=[_listed(name, phase) for name, phase in PHASES.items()])


async def on_get(ctx: object, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    """One phase with the user's words in it.

    Raises:
        MCPError: no such prompt, or a required argument is missing.
    """
    if params.name not in PHASES:
        raise MCPError(types.INVALID_PARAMS, str(UnknownName.of("prompt", params.name, PHASES)))
    phase, given = PHASES[params.name], params.arguments or {}
    values = {a.name: given.get(a.name, a.default) for a in phase.arguments}
    unknown = [name for name in given if name not in values]
    if unknown:
        raise MCPError(types.INVALID_PARAMS, str(UnknownName.of("argument", unknown[0], values)))
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise MCPError(types.INVALID_PARAMS, f"prompt {params.name!r} needs {', '.join(missing)}.")
    text = types.TextContent(type="text", text=phase.text.format_map({k: v or "" for k, v in values.items()}))
    return types.GetPromptResult(
        description=phase.description, messages=[types.PromptMessage(role="user", content=text)]
    )


def _listed(name: str, phase: Phase) -> types.Prompt:
    arguments = [
        types.PromptArgument(name=a.name, description=a.description, required=a.default is None)
        for a in phase.arguments
    ]
    return types.Prompt(name=name, title=phase.title, description=phase.description, arguments=arguments)
