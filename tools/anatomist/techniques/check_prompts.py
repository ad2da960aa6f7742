"""Does the model do the task that these prompts pose, and are they fit for causal experiments?

Idea: a circuit for a behaviour that is not there cannot be found. Before anything is explained, the prompts are checked
(clean and corrupted aligned token for token, answers single tokens) and the behaviour is measured on both sides, always
towards the clean answer: with L the log-sum-exp of the logits over a set of tokens, logit_diff = L(answer) - L(wrong)
at the last token; P(answer) is the softmax mass of the answer set. Intervals are cluster bootstraps over names.

Source: the logit difference and the IOI counterfactuals: Wang et al. 2023, arXiv 2211.00593, section 2; why a symmetric
counterfactual and logit difference: Zhang & Nanda 2023, arXiv 2309.16042.

What the result does not show: how the model does it, or that it does it for other templates than these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from einops import pack, rearrange
from pydantic import Field

from ..errors import BadPrompts
from ..figures import Bars, Figure
from ..measures.metrics import log_mass, prob, widened
from ..measures.resampling import estimate, paired_difference
from ..model.protocol import Model
from ..model.tokens import Tokens
from ..prompts.columns import one_line
from ..prompts.encoding import EncodedPrompts, encode
from ..result import Estimate, Frozen, Result
from ..technique import Context, OnPrompts, Progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TITLE = "Check prompts"
QUESTIONS = (
    "Does the model do this task?",
    "Are my clean and corrupted prompts aligned?",
    "Is it worth looking for a circuit with these prompts?",
)
PREFERRED = 0.8  # share of prompts whose answer must beat the wrong answer
MOST_LIKELY = 0.5  # where no wrong answer is given: share of prompts whose answer must be the most likely token
FEW = 32  # prompts below which everything is exploratory
ROWS = 64  # most prompts in one pass
WEAKEST = 5


class Arguments(OnPrompts):
    """Prompts need an `answer`; `wrong` and `corrupted` are checked where they are given."""


class Behaviour(Frozen):
    """How the model answers one group of prompts; always measured towards the clean prompts' answer."""

    logit_diff: Estimate | None = Field(description="Log mass of answer minus wrong, logits; absent without `wrong`.")
    p_answer: Estimate = Field(description="Probability of the answer set.")
    top1: float = Field(description="Share of prompts whose most likely token is in the answer set.")
    top1_wrong: float | None = Field(description="Share of prompts whose most likely token is in the wrong set.")
    beats_wrong: float | None = Field(description="Share of prompts with logit_diff above 0.")


class Group(Frozen):
    """One template, or one variant that several templates have (the part of the name after '/')."""

    name: str
    n: int
    clean: Behaviour
    corrupted: Behaviour | None
    first_difference: str | None = Field(description="Where corrupted first differs: the role, and an example.")
    example: str = Field(description="The first prompt, token by token with positions.")


class Weak(Frozen):
    """A clean prompt that the model answers badly."""

    prompt: str
    answer: str = Field(description="The answer set, exact.")
    logit_diff: float | None = Field(description="Logits; absent without `wrong`.")
    p_answer: float = Field(description="Probability of the answer set.")
    top: str = Field(description="The model's most likely token.")


class PromptCheck(Result):
    """Whether the prompts are fit, and whether the model does the task."""

    worth_going_on: bool = Field(description="Whether the rule stated in `rule` holds.")
    rule: str = Field(description="The rule, with its thresholds.")
    n: int = Field(description="Number of prompts.")
    clusters: int = Field(description="Number of clusters (template and names) resampled for the intervals.")
    bos: bool = Field(description="Whether a BOS token stands at position 0.")
    lengths: tuple[int, int] = Field(description="Shortest and longest prompt, tokens.")
    aligned: bool | None = Field(description="Clean and corrupted have equal lengths; absent without corrupted.")
    answer_tokens: tuple[int, int] = Field(
        description="Smallest and largest answer set; each member is a single token, anything else is refused."
    )
    roles: tuple[str, ...] = Field(description="Roles that every prompt has; use them as positions.")
    clean: Behaviour = Field(description="All clean prompts.")
    corrupted: Behaviour | None = Field(description="All corrupted prompts, towards the clean answer.")
    gap: Estimate | None = Field(
        description="Clean minus corrupted logit_diff (P(answer) without `wrong`), by pairs: what patching can move."
    )
    templates: tuple[Group, ...] = Field(description="The same, template by template.")
    variants: tuple[Group, ...] = Field(description="The same by variant (ABBA and BABA), where templates have them.")
    weakest: tuple[Weak, ...] = Field(description="The clean prompts answered worst.")


class Answers(NamedTuple):
    """What one side gave, a number per prompt."""

    logit_diff: Float[Tensor, " B"] | None
    p_answer: Float[Tensor, " B"]
    top: tuple[int, ...]  # the most likely token


def answered(logits: Float[Tensor, "B V"], encoded: EncodedPrompts) -> Answers:
    """Logit difference, probability of the answer and most likely token of each prompt."""
    assert encoded.answers is not None
    contrast = None
    if encoded.wrongs is not None:
        contrast = log_mass(logits, encoded.answers) - log_mass(logits, encoded.wrongs)
    return Answers(contrast, prob(logits, encoded.answers), tuple(widened(logits).argmax(-1).tolist()))


def behaviour(answers: Answers, encoded: EncodedPrompts, rows: Sequence[int], seed: int) -> Behaviour:
    """Means over some prompts, with intervals."""
    assert encoded.answers is not None
    clusters = [encoded.clusters[r] for r in rows]
    mean: Callable[[Tensor], Estimate] = lambda x: estimate(x[list(rows)].tolist(), clusters, seed=seed)  # noqa: E731
    contrast = answers.logit_diff
    return Behaviour(
        logit_diff=None if contrast is None else mean(contrast),
        p_answer=mean(answers.p_answer),
        top1=_share(answers.top[r] in encoded.answers[r] for r in rows),
        top1_wrong=None if encoded.wrongs is None else _share(answers.top[r] in encoded.wrongs[r] for r in rows),
        beats_wrong=None if contrast is None else _share(x > 0 for x in contrast[list(rows)].tolist()),
    )


def run(context: Context, arguments: Arguments) -> PromptCheck:
    """Measure both sides and judge.

    Raises:
        BadPrompts: no answers, misaligned sides, or an answer that is not one token.
    """
    if context.prompts is None:
        raise BadPrompts("check_prompts needs prompts; pass a handle from make_prompts, or a list.")
    encoded = encode(context.prompts, context.model, bos=arguments.bos, need=("answer",))
    sides = [tokens for tokens in (encoded.clean, encoded.corrupted) if tokens is not None]
    progress = _Steps(context.progress, encoded.n * len(sides))
    clean, *rest = (_side(context, tokens, encoded, progress) for tokens in sides)
    corrupted = rest[0] if rest else None
    _keep(context, clean, corrupted)
    return _judged(context.model, encoded, clean, corrupted, arguments.seed)


class _Steps:
    """Counts prompts over both sides."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self, rows: int) -> None:
        self.done += rows
        self.progress(self.done, self.total, "prompts answered")


def _side(context: Context, tokens: Tokens, encoded: EncodedPrompts, steps: _Steps) -> Answers:
    """Answers of one side, rows of like length together so that little is padded."""
    info = context.model.info
    per_row = 4 * (tokens.width * (8 * info.d_model + 3 * info.d_mlp) + 4 * info.d_vocab)  # bytes, float32
    size = max(1, min(ROWS, context.budget_bytes // per_row))
    order = sorted(range(encoded.n), key=lambda row: tokens.lengths[row])
    parts: list[Answers] = []
    for start in range(0, encoded.n, size):
        rows = order[start : start + size]
        some = tokens.rows(rows)
        logits = context.model.run(some, logits_at=some.last).logits
        assert logits is not None
        parts.append(answered(logits, encoded.rows(rows)))
        steps.step(len(rows))
    return _in_order(parts, order)


def _in_order(parts: Sequence[Answers], order: Sequence[int]) -> Answers:
    """The parts joined, and put back into the prompts' order."""
    back = sorted(range(len(order)), key=order.__getitem__)
    top = [t for part in parts for t in part.top]
    contrasts = [part.logit_diff for part in parts if part.logit_diff is not None]
    return Answers(
        pack(contrasts, "*")[0][back] if contrasts else None,
        pack([part.p_answer for part in parts], "*")[0][back],
        tuple(top[i] for i in back),
    )


def _keep(context: Context, clean: Answers, corrupted: Answers | None) -> None:
    """Keep a number per prompt, sides in the order clean, corrupted."""
    sides = [clean, *([corrupted] if corrupted else [])]
    context.keep("p_answer", rearrange([s.p_answer for s in sides], "side b -> side b"),
                 axes=("side (clean, corrupted)", "prompt"), unit="probability")  # fmt: skip
    contrasts = [s.logit_diff for s in sides if s.logit_diff is not None]
    if contrasts:
        context.keep("logit_diff", rearrange(contrasts, "side b -> side b"),
                     axes=("side (clean, corrupted)", "prompt"), unit="logits")  # fmt: skip


def _judged(model: Model, encoded: EncodedPrompts, clean: Answers, corrupted: Answers | None, seed: int) -> PromptCheck:
    everything = range(encoded.n)
    whole = behaviour(clean, encoded, everything, seed)
    broken = behaviour(corrupted, encoded, everything, seed) if corrupted else None
    gap = _gap(clean, corrupted, encoded, seed) if corrupted else None
    worth, rule, reasons = verdict(whole, gap)
    templates = _groups(encoded, encoded.templates, clean, corrupted, seed)
    return PromptCheck(
        summary=_summary(worth, reasons, whole, broken, encoded),
        warnings=(*encoded.warnings, *_warnings(encoded, whole, templates)),
        worth_going_on=worth,
        rule=rule,
        n=encoded.n,
        clusters=len(set(encoded.clusters)),
        bos=encoded.clean.bos,
        lengths=(min(encoded.clean.lengths), max(encoded.clean.lengths)),
        aligned=None if encoded.corrupted is None else encoded.corrupted.lengths == encoded.clean.lengths,
        answer_tokens=_sizes(encoded.answers),
        roles=tuple(encoded.roles),
        clean=whole,
        corrupted=broken,
        gap=gap,
        templates=templates,
        variants=_variants(encoded, clean, corrupted, seed),
        weakest=_weakest(model, encoded, clean),
    )


def _sizes(sets: Sequence[Sequence[int]] | None) -> tuple[int, int]:
    return (min(map(len, sets)), max(map(len, sets))) if sets else (0, 0)


def _gap(clean: Answers, corrupted: Answers, encoded: EncodedPrompts, seed: int) -> Estimate:
    a, b = clean.logit_diff, corrupted.logit_diff
    if a is None or b is None:
        a, b = clean.p_answer, corrupted.p_answer
    return paired_difference(a.tolist(), b.tolist(), encoded.clusters, seed=seed)


def verdict(clean: Behaviour, gap: Estimate | None) -> tuple[bool, str, list[str]]:
    """Whether to go on, by which rule, and what speaks against it."""
    against: list[str] = []
    if clean.logit_diff is not None and clean.beats_wrong is not None:
        rule = f"the logit difference is above 0 on {PREFERRED:.0%} of prompts or more, and in its mean's interval"
        if _low(clean.logit_diff) <= 0:
            against.append(f"the mean logit difference {clean.logit_diff} is not clearly above 0")
        if clean.beats_wrong < PREFERRED:
            against.append(f"the answer beats the wrong one on {clean.beats_wrong:.0%} of prompts only")
    else:
        rule = f"the answer is the most likely token on {MOST_LIKELY:.0%} of prompts or more"
        if clean.top1 < MOST_LIKELY:
            against.append(f"the answer is the most likely token on {clean.top1:.0%} of prompts only")
    if gap is not None:
        rule += ", and corrupting the prompts lowers it (the interval of the difference lies above 0)"
        if _low(gap) <= 0:
            against.append(f"corrupting the prompts does not clearly lower the metric (clean minus corrupted {gap})")
    return not against, f"Worth going on when {rule}.", against


def _low(e: Estimate) -> float:
    return e.mean if e.low is None else e.low


def _summary(
    worth: bool, against: list[str], clean: Behaviour, corrupted: Behaviour | None, encoded: EncodedPrompts
) -> str:
    if worth:
        first = "Worth going on: the model does the task on these prompts."
    else:
        first = f"Not worth going on: {'; '.join(against)}."
    sides = [f"clean: {_words(clean)}"] + ([f"corrupted: {_words(corrupted)}"] if corrupted else [])
    return (
        f"{first} {encoded.n} prompts, {'with' if encoded.clean.bos else 'without'} BOS; {'; '.join(sides)}. "
        "This says that the behaviour is there, not how the model does it."
    )


def _words(b: Behaviour) -> str:
    contrast = ""
    if b.logit_diff is not None and b.beats_wrong is not None:
        contrast = f"logit difference {b.logit_diff}, above 0 on {b.beats_wrong:.1%}, "
    return f"{contrast}answer most likely on {b.top1:.1%}, P(answer) {b.p_answer.mean:.3f}"


def _warnings(encoded: EncodedPrompts, clean: Behaviour, templates: Sequence[Group]) -> list[str]:
    found: list[str] = []
    if encoded.n < FEW:
        found.append(f"{encoded.n} prompts: exploratory; make {FEW} or more for a claim.")
    if encoded.corrupted is not None and (same := encoded.first_differences.count(None)):
        found.append(f"{same} prompts are the same clean and corrupted: patching between them does nothing.")
    if clean.top1 < MOST_LIKELY:
        found.append(
            f"The answer is the most likely token on {clean.top1:.0%} of prompts only: mostly the model goes on in "
            "another way, however much it prefers the answer to the wrong one."
        )
    failing = [g.name for g in templates if g.clean.logit_diff is not None and g.clean.logit_diff.mean <= 0]
    if failing:
        found.append(f"Templates on which the wrong answer wins: {', '.join(failing)}; leave them out or say so.")
    return found


def _groups(
    encoded: EncodedPrompts, names: Sequence[str], clean: Answers, corrupted: Answers | None, seed: int
) -> tuple[Group, ...]:
    members = {name: [r for r in range(encoded.n) if names[r] == name] for name in dict.fromkeys(names)}
    return tuple(
        Group(
            name=name,
            n=len(rows),
            clean=behaviour(clean, encoded, rows, seed),
            corrupted=behaviour(corrupted, encoded, rows, seed) if corrupted else None,
            first_difference=_difference(encoded, rows),
            example=" ".join(one_line(encoded.clean.label(rows[0], p)) for p in range(encoded.clean.lengths[rows[0]])),
        )
        for name, rows in members.items()
    )


def _variants(encoded: EncodedPrompts, clean: Answers, corrupted: Answers | None, seed: int) -> tuple[Group, ...]:
    names = [template.partition("/")[2] for template in encoded.templates]
    several = len(set(names)) > 1 and len(set(encoded.templates)) > len(set(names))
    return _groups(encoded, names, clean, corrupted, seed) if all(names) and several else ()


def _difference(encoded: EncodedPrompts, rows: Sequence[int]) -> str | None:
    """The role at which the rows first differ, or their positions, and the first row's tokens."""
    differing = {r: d for r in rows if (d := encoded.first_differences[r]) is not None}
    if encoded.corrupted is None or not differing:
        return None
    first, at = next(iter(differing.items()))
    role = next((n for n, p in encoded.roles.items() if all(p[r] == d for r, d in differing.items())), None)
    places = sorted(set(differing.values()))
    where = role or (f"position {places[0]}" if len(places) == 1 else f"positions {places[0]} to {places[-1]}")
    return f"{where} ({encoded.clean.label(first, at)} -> {encoded.corrupted.strings[first][at]})"


def _weakest(model: Model, encoded: EncodedPrompts, clean: Answers) -> tuple[Weak, ...]:
    assert encoded.answers is not None
    scores = (clean.p_answer if clean.logit_diff is None else clean.logit_diff).tolist()
    probabilities = clean.p_answer.tolist()
    return tuple(
        Weak(
            prompt="".join(encoded.clean.strings[row]),
            answer=" / ".join(map(repr, model.token_strings(encoded.answers[row]))),
            logit_diff=None if clean.logit_diff is None else scores[row],
            p_answer=probabilities[row],
            top=model.token_strings([clean.top[row]])[0],
        )
        for row in sorted(range(encoded.n), key=scores.__getitem__)[:WEAKEST]
    )


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return sum(counted) / len(counted)


def plot(result: PromptCheck) -> Figure:
    """Bars per template with intervals, clean and corrupted side by side."""
    groups = [*result.templates, *result.variants]
    sides = [("Clean", [g.clean for g in groups])]
    if result.corrupted is not None:
        sides.append(("Corrupted, towards the clean answer", [g.corrupted for g in groups if g.corrupted is not None]))
    names = tuple(f"{g.name} (all templates)" if g in result.variants else g.name for g in groups)
    interval = "95% cluster-bootstrap intervals" if result.clusters > 1 else "no interval: one cluster"
    return Figure(
        title="Does the model do the task?",
        caption=f"At the last token; n={result.n}, {interval}. {result.summary.split('. ')[0]}.",
        panels=tuple(_bars(title, names, behaviours) for title, behaviours in sides),
        columns=len(sides),
    )


def _bars(title: str, names: tuple[str, ...], behaviours: Sequence[Behaviour]) -> Bars:
    contrasts = [b.logit_diff for b in behaviours if b.logit_diff is not None]
    estimates = contrasts or [b.p_answer for b in behaviours]
    return Bars(
        title=title,
        value_title="logit difference, answer - wrong (logits)" if contrasts else "P(answer)",
        labels=names,
        values=tuple(e.mean for e in estimates),
        low=tuple(e.low for e in estimates),
        high=tuple(e.high for e in estimates),
    )
