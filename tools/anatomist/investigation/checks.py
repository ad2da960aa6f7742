"""The seven checks of a finding: each makes its own runs, on prompts drawn for it; pass, fail or not applicable.

No check takes a number from the caller. Thresholds were written with the hypothesis, before the runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from ..causal.each_part import PartTest
from ..errors import BadPrompts
from ..techniques.check_prompts import PromptCheck
from .bench import Bench, NoBehaviour, NotApplicable, Setting
from .intervention import Effect, Where, measure
from .record import Check, CheckName, Finding, Hypothesis, Investigation

SECOND: Mapping[str, str] = {"mean": "resample", "resample": "mean", "zero": "resample"}
MIRROR: Mapping[str, str] = {"necessary": "sufficient", "sufficient": "necessary", "mediating": "sufficient"}
MOST_CONTROLS = 999
LEAST_DRAWN = 32  # prompts in a draw of its own: fewer leave templates with a single prompt, and nothing to take from
LEAST_PART = 0.05  # of the set's effect: what a part must add to it that does nothing detectable alone


@dataclass(frozen=True)
class Case:
    """A finding under examination, with the prompts drawn for it."""

    bench: Bench
    state: Investigation
    finding: Finding
    hypothesis: Hypothesis
    setting: Setting
    attempt: int
    prompts: str | None  # handle of the fresh set; None when the task cannot be drawn again
    model: str
    task: str | None

    def where(self, split: str) -> Where:
        if self.prompts is None:
            raise NotApplicable(
                "the investigation names no task that prompts can be drawn for; open it with a task of make_prompts."
            )
        return Where(self.model, self.prompts, split)

    @property
    def alpha(self) -> float:
        """Level of this attempt: level / (k (k + 1)) at the k-th, which over all attempts ever made add up to level.

        How many attempts will follow is not known at the first, so that Holm's steps cannot be taken; this cannot fall
        short of them.
        """
        return self.setting.level / (self.attempt * (self.attempt + 1))

    @property
    def controls(self) -> int:
        """Random sets to draw: as many as asked for, and enough that p can reach the level."""
        return min(MOST_CONTROLS, max(self.setting.controls, math.ceil(1 / self.alpha - 1e-9) - 1))


def baseline(case: Case) -> Check:
    """The model does the task on the held-out prompts."""
    where = case.where("held_out")
    arguments = {"model": where.model, "prompts": where.prompts, "split": where.split, "seed": case.setting.seed}
    result, run = case.bench.technique("check_prompts", arguments)
    checked = cast(PromptCheck, result)
    return _check("baseline", checked.worth_going_on, checked.summary, {}, run)


def causal(case: Case) -> Check:
    """The intervention that the kind of claim asks for moves the metric as predicted: sign and size."""
    effect = measure(case.bench, case.finding, case.where("discovery"), case.setting)
    return _as_predicted("causal", case, effect, "on fresh prompts of the discovery templates")


def specific(case: Case) -> Check:
    """The set does more than equal-size random sets of the same layers, and every part of it earns its place."""
    where = case.where("held_out")
    effect = measure(case.bench, case.finding, where, case.setting, controls=case.controls)
    if effect.p is None:
        raise NotApplicable(f"no random sets could be drawn: {effect.drawn}.")
    strongest = max(effect.controls)
    all_there_are = _all_there_are(case, len(effect.controls))
    beats = effect.share > strongest if all_there_are else effect.p <= case.alpha * (1 + 1e-9)
    how = "all alternatives weaker" if all_there_are else f"p = {effect.p:.3g}, level {case.alpha:.3g}"
    idle, runs = _idle(case, where, effect) if beats else ((), ())
    passengers = [part for part in effect.each_part if not _rare(case, part)]
    reason = (
        f"share {effect.share:.2f} against {len(effect.controls)} random sets of {len(case.finding.components)} "
        f"({effect.drawn}): at most {strongest:.2f}; {how}: {'met' if beats else 'not met'}."
    )
    figures = {"share": effect.share, "p": effect.p, "strongest_control": strongest, "controls": len(effect.controls)}
    if effect.each_part:
        reason += f" {_in_its_place(case, effect.each_part, passengers)}"
        figures["p_each_part"] = max(part.p for part in effect.each_part)
    if idle:
        reason += f" {', '.join(idle)} do nothing alone and add nothing to the rest: claim the set without them."
    return _check("specific", beats and not idle and not passengers, reason, figures, effect.run, *runs)


def _all_there_are(case: Case, sets: int) -> bool:
    """Whether there are too few other sets in the model for p to reach the level."""
    return sets < case.controls and 1 / (1 + sets) > case.alpha


def _rare(case: Case, part: PartTest) -> bool:
    """Whether other parts in its place carry as much no more often than the level, or never where few there are."""
    return part.as_strong == 0 if _all_there_are(case, part.others) else part.p <= case.alpha * (1 + 1e-9)


def _in_its_place(case: Case, parts: Sequence[PartTest], passengers: Sequence[PartTest]) -> str:
    worst = max(passengers or parts, key=lambda part: part.p)
    found = f"so do {worst.as_strong} of {worst.others} (p = {worst.p:.3g}, level {case.alpha:.3g})"
    if _all_there_are(case, worst.others):
        found = f"so do {worst.as_strong or 'none'} of the {worst.others} there are near by"
    return (
        f"Each part against others in its place, the rest kept: {worst.part} carries {worst.carries:.3g}, {found}: "
        f"{'not met' if passengers else 'met'}."
    )


def _idle(case: Case, where: Where, effect: Effect) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parts whose own effect is not above 0 and without which the rest do as much; and the runs that show it.

    Serial parts show alone, redundant ones only when the others are gone too: a part may earn its place either way.
    """
    idle, runs = [], []
    for part in effect.nothing_alone:
        rest = tuple(c for c in case.finding.components if c != part)
        without = measure(case.bench, case.finding.model_copy(update={"components": rest}), where, case.setting)
        runs.append(without.run)
        if effect.share - without.share < LEAST_PART * abs(effect.share):
            idle.append(part)
    return tuple(idle), tuple(runs)


def held_out(case: Case) -> Check:
    """It replicates on unseen names, and by itself on the template that discovery never used."""
    effect = measure(case.bench, case.finding, case.where("held_out"), case.setting)
    made = _as_predicted("held_out", case, effect, "on unseen names, a kept-back template among them")
    try:
        alone = measure(case.bench, case.finding, case.where("kept_back"), case.setting)
    except BadPrompts as error:
        return made.model_copy(update={"reason": f"{made.reason} No template by itself: {error}"})
    except NotApplicable as error:
        reason = f"{made.reason} On the kept-back template alone it does not replicate: {error}"
        return made.model_copy(update={"outcome": "fail", "reason": reason})
    replicates = alone.there and alone.share >= case.finding.minimum_effect
    verdict = "replicates" if replicates else "does not replicate"
    if not alone.there:
        verdict += " (the model does not show the behaviour there)"
    return made.model_copy(
        update={
            "outcome": "pass" if made.outcome == "pass" and replicates else "fail",
            "reason": f"{made.reason} On the kept-back template alone it {verdict}: share {alone}.",
            "figures": {**made.figures, "kept_back": alone.share},
            "runs": (*made.runs, alone.run),
        }
    )


def seeds(case: Case) -> Check:
    """It holds on several independent draws of prompts; on a draw that does not show the behaviour it does not hold."""
    if case.task is None:
        raise NotApplicable("prompts of this investigation cannot be drawn again.")
    least, n = case.finding.minimum_effect, max(LEAST_DRAWN, case.setting.n // 2)
    effects, absent = [], 0
    for step in range(1, case.setting.seeds + 1):
        setting = replace(case.setting, seed=case.setting.seed + step)
        handle = case.bench.fresh_prompts(case.task, case.model, n, setting.seed)
        try:
            effect = measure(case.bench, case.finding, Where(case.model, handle, "held_out"), setting)
        except NoBehaviour:
            absent += 1
            continue
        effects.append(effect)
        absent += not effect.there
    passed = not absent and min(e.share for e in effects) >= least
    missing = f" On {absent} the model does not show the behaviour." if absent else ""
    reason = (
        f"shares {', '.join(f'{e.share:.2f}' for e in effects) or 'none'} on {case.setting.seeds} draws of {n} "
        f"prompts; each must reach {least:.2f}.{missing}"
    )
    figures = {f"draw {i + 1}": e.share for i, e in enumerate(effects)}
    return _check("seeds", passed, reason, figures, *(e.run for e in effects))


def effect_size(case: Case) -> Check:
    """The whole interval lies beyond the smallest effect that matters."""
    effect = measure(case.bench, case.finding, case.where("held_out"), case.setting)
    if effect.low is None:
        raise NotApplicable("there is one cluster of prompts only: no interval.")
    passed = effect.low >= case.finding.minimum_effect
    reason = (
        f"held-out share {effect}; its lower end must reach {case.finding.minimum_effect:.2f}, written beforehand. "
        f"{case.finding.searched} components were searched on other prompts: selection and test share none, so the "
        "interval needs no further correction."
    )
    figures = {"share": effect.share, "low": effect.low, "high": effect.high, "minimum": case.finding.minimum_effect}
    return _check("effect_size", passed, reason, figures, effect.run)


def alternatives(case: Case) -> Check:
    """A second ablation type or metric says the same; the mirror intervention limits the wording only."""
    finding, where = case.finding, case.where("held_out")
    tried: list[tuple[str, Effect]] = []
    if finding.kind == "necessary":
        second = SECOND[finding.ablation]
        tried.append((f"{second} ablation", measure(case.bench, finding, where, case.setting, ablation=second)))
    if finding.kind != "direct":
        tried.append(("probability", measure(case.bench, finding, where, case.setting, metric="prob")))
    if not tried:
        raise NotApplicable("a direct claim has one measurement; its rivals are on the ledger.")
    passed = all(effect.share > 0 and (effect.low is None or effect.low > 0) for _, effect in tried)
    mirror = _mirror(case)
    rivals = f" Rivals on the ledger: {case.hypothesis.rivals_in_words}." if case.hypothesis.rivals else ""
    reason = "; ".join(f"{name}: {effect}" for name, effect in tried) + f". {mirror[0]}{rivals}"
    figures = {name: effect.share for name, effect in tried} | mirror[1]
    return _check("alternatives", passed, reason, figures, *(e.run for _, e in tried), *mirror[2])


def _mirror(case: Case) -> tuple[str, dict[str, float | None], tuple[str, ...]]:
    """Noising against denoising: where they disagree, the wording is limited to the side that was shown."""
    other = MIRROR.get(case.finding.kind)
    if other is None:
        return "", {}, ()
    effect = measure(case.bench, case.finding, case.where("held_out"), case.setting, kind=other)  # type: ignore[arg-type]
    agrees = effect.share >= case.finding.minimum_effect
    said = "agrees" if agrees else "does not agree, so the claim is limited to what its own intervention shows"
    return f"Tested as {other}: {effect}, which {said}.", {f"as {other}": effect.share}, (effect.run,)


RUN: Mapping[CheckName, Callable[[Case], Check]] = {
    "baseline": baseline, "causal": causal, "specific": specific, "held_out": held_out, "seeds": seeds,
    "effect_size": effect_size, "alternatives": alternatives,
}  # fmt: skip


def run_check(name: CheckName, case: Case) -> Check:
    """One check; what cannot be checked says why."""
    try:
        return RUN[name](case)
    except NotApplicable as error:
        return Check(name=name, outcome="not_applicable", reason=str(error))


def _as_predicted(name: CheckName, case: Case, effect: Effect, on: str) -> Check:
    """Sign and size: the mean reaches the smallest effect that matters, and the interval excludes none at all."""
    least = case.finding.minimum_effect
    passed = effect.share >= least and (effect.low is None or effect.low > 0)
    reason = f"share {effect} {on}; predicted: at least {least:.2f}, in the claimed direction."
    figures = {"share": effect.share, "low": effect.low, "high": effect.high, "minimum": least}
    return _check(name, passed, reason, figures, effect.run)


def _check(
    name: CheckName, passed: bool, reason: str, figures: Mapping[str, float | None], *runs: str
) -> Check:
    return Check(name=name, outcome="pass" if passed else "fail", reason=reason, figures=figures, runs=runs)
