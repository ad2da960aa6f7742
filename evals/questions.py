"""The twenty tasks: what is asked, of which model, how the answer is measured, and what reciting would answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anatomist.model.backends.toy import ToyModel
from anatomist.model.loading import load_model
from anatomist.model.protocol import Model

from . import truth, truth_smollm2
from .models import Built, build_models

Kind = Literal["set", "number", "ordering", "text"]
SMOLLM2 = "smollm2-135m"
COPIED, ALPHABETICAL = "the copied word", "the words by the alphabet"  # recited answers that depend on the words
REPEATED = (
    "Take prompts in which ten different words of the model's vocabulary are said twice in the same order; measure at "
    "the last position. "
)
FORMS: Mapping[Kind, str] = {
    "set": "a list of names in any order; the empty list if there are none",
    "number": "one number",
    "ordering": "a list of names in the order asked for",
    "text": "one name or word",
}


@dataclass(frozen=True)
class Question:
    """One task before its models exist."""

    model: str  # a key of `models.specs`, "all programs", or SMOLLM2
    kind: Kind
    text: str
    measure: Callable[[Any], object]
    recited: object
    source: str  # of the recited answer
    tolerance: float | None = None
    fill: Callable[[ToyModel], str] | None = None  # a prompt made of the model's own words, put in for {prompt}


QUESTIONS: tuple[Question, ...] = (
    Question(
        "plain", "set",
        REPEATED + "Which heads, each set to zero alone at every position, change the logit of the word that followed "
        "the last word's first occurrence by more than 0.1 on average? Name them like L0H2.",
        truth.heads_that_matter, ["L0H1", "L1H2"], "the heads of the hand-set toy-induction in its documentation",
    ),
    Question(
        "plain", "ordering",
        "The model continues repeated sequences with one head of layer 0 and one of layer 1. Name the layer-0 head, "
        "the layer-1 head, and the input of the second ('q', 'k' or 'v') that the first must write to.",
        truth.key_path, ["L0H1", "L1H2", "k"], "K-composition as in Elhage et al. 2021, with the documented heads",
    ),
    Question(
        "offset", "number",
        "One head of layer 0 attends a fixed number of positions back, from every position that has so many before it. "
        "How many?",
        truth.steps_back, 1, "the previous-token head of Olsson et al. 2022", 0,
    ),
    Question(
        "look-alike", "set",
        REPEATED + "Several heads of layer 1 attend to the word after the last word's first occurrence. Which of the "
        "heads of layer 1, set to zero alone at every position, lower the logit of the model's own first choice by "
        "more than 0.1?",
        truth.writers, ["L1H2"], "the induction head of toy-induction; by pattern alone three heads would be named",
    ),
    Question(
        "shares", "ordering",
        REPEATED + "Several heads of layer 1 write the answer. Order those that, set to zero alone at every position, "
        "lower the logit of the model's own first choice by more than 0.1: the largest loss first.",
        truth.writers, ["L1H2"], "one induction head, as in toy-induction",
    ),
    Question(
        "shares", "number",
        REPEATED + "Of the heads of layer 1 that lower the logit of the model's own first choice by more than 0.1 when "
        "set to zero alone at every position, take the one with the smallest loss. How large is it, in logits?",
        truth.smallest_loss, 10.0, "the logit of ten that toy-induction's documentation gives", 0.02,
    ),
    Question(
        "soft", "number",
        "Give the model the prompt '{prompt}'. One head of layer 1 writes the answer. Which share of its attention "
        "from the last position lies on position 3?",
        truth.weight_on_match, 1.0, "an induction head attends wholly to the match", 0.005, truth.soft_prompt,
    ),
    Question(
        "cipher", "text",
        "Which word does the model put first after the prompt '{prompt}'?",
        truth.next_word_of_cipher, COPIED, "an induction head copies the word that followed", None,
        truth.cipher_prompt,
    ),
    Question(
        "negative", "set",
        REPEATED + "Which heads of the model, set to zero alone at every position, raise the logit of the model's own "
        "first choice by more than 0.1?",
        truth.opposing, [], "toy-induction has no head that works against the answer",
    ),
    Question(
        "itself", "set",
        REPEATED + "Which heads, each set to zero alone at every position, change the logit of the word that followed "
        "the last word's first occurrence by more than 0.1 on average?",
        truth.heads_that_matter, ["L0H1", "L1H2"], "a two-layer attention-only model has an induction circuit",
    ),
    Question(
        "reverse", "set",
        "Take every row of four words (BOS before it is added by the tokenizer). In which layers does setting attn_out "
        "to zero at every position change an answer, the answers being the first choices at positions 1 to 4? Name "
        "layers like L2.",
        lambda m: truth.layers_whose_attention_is_needed(m, 4, resample=False), ["L3"],
        "only the last aggregation moves tokens in the RASP program",
    ),
    Question(
        "reverse", "set",
        "Take every row of four words (BOS before it is added by the tokenizer). In which layers does replacing "
        "attn_out at every position by its value on another row of four words change an answer on some row, the "
        "answers being the first choices at positions 1 to 4? Name layers like L2.",
        lambda m: truth.layers_whose_attention_is_needed(m, 4, resample=True), ["L0", "L3"],
        "the program's length selector and its last aggregation, without asking what resampling keeps",
    ),
    Question(
        "sort", "ordering",
        "The model puts different words of its vocabulary (BOS apart) into an order of its own. Give all of them in "
        "that order.",
        truth.sorting_order, ALPHABETICAL, "sorting is alphabetical",
    ),
    Question(
        "fraction", "set",
        "Take every row of four words. Which of 'L0 attn_out', 'L0 mlp_out', 'L1 attn_out', 'L1 mlp_out', set to zero "
        "alone at every position, change an answer, the answers being the first choices at positions 1 to 4?",
        truth.parts_needed, ["L1 attn_out"], "the program is one aggregation over the earlier positions",
    ),
    Question(
        "all programs", "ordering",
        "Four models see a whole row at once: {names}. One turns the row backwards, one puts different words in an "
        "order of its own, one says how often each word occurs in the row, one says which share of the words so far is "
        "a certain word. Name the four in this order (backwards, order, how often, share), like model-xyz.",
        truth.which_program, None, "there is nothing to recite: the order in which they are listed",
    ),
    Question(
        SMOLLM2, "number",
        "Mean over these prompts of the logit of the first name given less that of the second, at the end of the "
        "prompt: {pairs}. No BOS, float32.",
        truth_smollm2.logit_difference, 3.56, "GPT-2 small's mean on IOI in Wang et al. 2022", 0.03,
    ),
    Question(
        SMOLLM2, "ordering",
        "Which three heads' outputs at the last position write most directly towards the first name against the second "
        "(direct logit attribution, final norm's scale frozen, mean over the prompts), the strongest first? {pairs}. "
        "No BOS, float32.",
        truth_smollm2.strongest_writers, ["L9H9", "L9H6", "L10H0"], "GPT-2 small's name movers in Wang et al. 2022",
    ),
    Question(
        SMOLLM2, "number",
        "Head {head} is set to zero at every position. By how much does the mean logit difference, first name less "
        "second at the end of the prompt, change (with its sign)? {pairs}. No BOS, float32.",
        truth_smollm2.change_without_head, -2.0, "the pack's page on attribution patching, on other prompts", 0.03,
    ),
    Question(
        SMOLLM2, "ordering",
        "The prompt is '{twice}' (it starts with a space; each word is one token; no BOS). Which three heads attend "
        "most, on average over the second occurrences, to the word that followed the first occurrence? The strongest "
        "first.",
        truth_smollm2.strongest_induction, ["L5H5", "L5H1", "L6H9"], "induction heads of GPT-2 small",
    ),
    Question(
        SMOLLM2, "number",
        "The prompt is 'The capital of France is' (no BOS). From which layer on (counting from 0, resid_post through "
        "the final norm and the unembedding) is ' Paris' the first choice at the last position, there and in every "
        "later layer?",
        truth_smollm2.layer_of_the_city, 22, "answers are readable from about three quarters of the depth on", 0,
    ),
)  # fmt: skip


def task_id(number: int) -> str:
    """Neutral, so that the name does not tell."""
    return f"task-{number:02d}"


def is_smollm2(task: Mapping[str, Any]) -> bool:
    return task["model"] == SMOLLM2


def toy_tasks(seed: int) -> list[dict[str, Any]]:
    """The tasks about built models, their answers measured."""
    built = build_models(seed)
    models = {what: made.form.model(made.tensors) for what, made in built.items()}
    pairs = enumerate(QUESTIONS, 1)
    return [_toy_task(number, q, seed, built, models) for number, q in pairs if q.model != SMOLLM2]


def smollm2_tasks(model: Model | None = None) -> list[dict[str, Any]]:
    """The tasks about SmolLM2, their answers measured."""
    model = model or load_model(SMOLLM2)
    pairs = "; ".join(f"'{prompt}' ('{right}', '{wrong}')" for prompt, right, wrong in truth_smollm2.PAIRS)
    fills = {"pairs": pairs, "twice": truth_smollm2.WORDS * 2, "head": truth_smollm2.REMOVED}
    return [
        _task(number, q, SMOLLM2, q.text.format_map(fills), q.measure(model), q.recited, "evals.truth_smollm2")
        for number, q in enumerate(QUESTIONS, 1)
        if q.model == SMOLLM2
    ]


def _toy_task(
    number: int, q: Question, seed: int, built: Mapping[str, Built], models: Mapping[str, ToyModel]
) -> dict[str, Any]:
    if q.model == "all programs":
        chosen = [models[what] for what in truth.PROGRAMS]
        random.Random(f"listed {seed}").shuffle(chosen)
        while [m.info.name for m in chosen] == truth.which_program(chosen):
            chosen = chosen[1:] + chosen[:1]
        names = [m.info.name for m in chosen]
        text = q.text.format(names=", ".join(f"models/{name}" for name in names))
        return {**_task(number, q, names, text, q.measure(chosen), names, "evals.truth"), "seed": seed}
    model = models[q.model]
    prompt = q.fill(model) if q.fill else ""
    recited = _recited(q, model, prompt)
    name = model.info.name
    task = _task(number, q, name, q.text.format(prompt=prompt), q.measure(model), recited, "evals.truth")
    return {**task, "seed": seed}


def _recited(q: Question, model: ToyModel, prompt: str) -> object:
    """What reciting answers, where it depends on the model's words."""
    if q.recited == COPIED:
        return prompt.split()[1]
    return sorted(truth.sorting_order(model)) if q.recited == ALPHABETICAL else q.recited


def _task(
    number: int, q: Question, model: str | list[str], text: str, value: object, recited: object, made_by: str
) -> dict[str, Any]:
    answer = {"kind": q.kind, "value": value} | ({} if q.tolerance is None else {"tolerance": q.tolerance})
    where = f"Model: {SMOLLM2}." if model == SMOLLM2 else f"Model: the folder models/{model}."
    opening = "" if isinstance(model, list) else f"{where} "
    ending = f'End with a fenced json block {{"answer": ...}}, the answer being {FORMS[q.kind]}.'
    return {
        "id": task_id(number),
        "model": model,
        "question": f"{opening}{text} {ending}",
        "answer": answer,
        "recited": {"value": recited, "source": q.source},
        "made_by": made_by,
    }
