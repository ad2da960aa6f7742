"""Estimate which SAE features a metric depends on, and check by taking them away exactly; the error term stays.

Idea: every active feature adds a known vector to the activation. The gradient of the metric at that activation, times
the vector, says to first order what taking the feature away would do; one backward pass scores all of them. The
largest and a random sample are then really taken away (-f_i d_i is added, everything else stays, the dictionary's error
too), one by one and together, beside random sets of other active features. The error is scored like a feature: what a
metric owes to it no feature explains.

Source: Marks et al., arXiv 2403.19647, section 3.1 (features and errors as nodes, attribution re-checked by ablation);
Nanda 2023, https://www.neelnanda.io/mechanistic-interpretability/attribution-patching. With g = dM/dy at the site:
estimate_i = - sum over positions of scale(x) f_i (g . d_i); exact_i = M(y - scale(x) f_i d_i) - M(y).

Does not show: what a feature means; that features are the model's own parts (another dictionary gives others); effects
of features that are silent here; and features that back each other up look small one by one (see the joint effect).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..causal.effects import StandOut, in_words, stand_out, too_few
from ..causal.feature_gradients import Scores, scores
from ..causal.features import (
    ablation_cells,
    chosen_dictionary,
    error_cell,
    feature_name,
    feature_values,
    massive_tokens,
    removal_test,
    said,
)
from ..causal.grids import together
from ..causal.joint import JointEffect, beside_controls, few_controls, joint_effect, joint_in_words
from ..causal.measured import SweepCost, bound_metrics, cost_of, encoded, failed
from ..causal.recheck import Recheck, beside_exact, compared, doubts, to_recheck
from ..causal.recheck import in_words as recheck_in_words
from ..causal.reconstruction import spliced
from ..dictionaries.protocol import Dictionary
from ..errors import BadArguments
from ..figures import Bars, Figure
from ..measures.metrics import UNITS
from ..measures.statistics import Clusters
from ..prompts.encoding import EncodedPrompts
from ..result import Estimate, Frozen, Result, SelfTest
from ..technique import Context, Metric, OnPrompts, Positions, SaeArgument

if TYPE_CHECKING:
    from ..model.sweep import SweepPlan, SweepResult

TITLE = "SAE feature attribution"
QUESTIONS = (
    "Which SAE features matter for this behaviour?",
    "Does taking this feature away change the answer?",
    "How much of the behaviour goes through the SAE's error term?",
    "Which features are needed together, and do they beat random ones?",
)


class Arguments(OnPrompts):
    """Arguments of sae_attribution."""

    sae: SaeArgument
    metric: Metric = "logit_diff"
    positions: Positions = Field(default="all", description="Where features are scored and taken away, together.")
    top: int = Field(default=10, ge=1, le=200, description="Largest estimates that are taken away exactly.")
    sample: int = Field(default=10, ge=0, le=200, description="Others, drawn at random, taken away as well.")
    controls: int = Field(default=20, ge=0, le=200, description="Random sets of active features beside the joint one.")


class FeatureEffect(Frozen):
    """What one feature does to the metric."""

    feature: str = Field(description="Its name: L15F123.")
    index: int = Field(description="Its number in the dictionary.")
    estimate: float = Field(description="First-order estimate of the change when it is taken away, mean over prompts.")
    exact: Estimate | None = Field(description="Exact change when it is taken away; absent where not re-checked.")
    active_share: float = Field(description="Share of the prompts on which it is active at these positions.")
    promotes: tuple[str, ...] = Field(description="Tokens its direction raises most, directly.")


class ErrorEffect(Frozen):
    """What the metric owes to the part that the dictionary does not explain."""

    estimate: float = Field(description="First-order estimate of the change when the error is taken away.")
    exact: Estimate = Field(description="Exact change when the error is taken away (the reconstruction stays).")


class SaeAttributionResult(Result):
    """Which features a metric depends on."""

    sae: str = Field(description="Handle of the dictionary.")
    site: str = Field(description="Site that it explains.")
    metric: str = Field(description="Name of the metric.")
    unit: str = Field(description="Its unit.")
    base: Estimate = Field(description="Metric of the untouched model.")
    features: tuple[FeatureEffect, ...] = Field(description="The largest by estimate, at most 50.")
    active: int = Field(description="Features active on at least one prompt at these positions: all were scored.")
    stand_out: tuple[StandOut, ...] = Field(
        description="Features re-checked whose exact effect survives Holm at .05, largest first; at most ten."
    )
    joint: tuple[JointEffect, ...] = Field(description="The largest estimates taken away together; random sets beside.")
    error: ErrorEffect = Field(description="The same for the dictionary's error.")
    recheck: Recheck = Field(description="Estimates against exact values.")
    positions: str = Field(description="Positions at which features were scored and taken away.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this model and these prompts.")
    cost: SweepCost = Field(description="Cost of the exact re-check.")


class Chosen(NamedTuple):
    """Sets of features that are taken away: singles, then the joint set, then its controls."""

    singles: tuple[int, ...]
    joint: tuple[int, ...]
    controls: tuple[tuple[int, ...], ...]

    @property
    def sets(self) -> list[tuple[int, ...]]:
        return [*((i,) for i in self.singles), self.joint, *self.controls]


def run(context: Context, arguments: Arguments) -> SaeAttributionResult:
    """Score every active feature, take the largest and a sample away.

    Raises:
        BadArguments: no dictionary, the metric kl (its gradient at its own reference is 0), or nothing is active.
        BadPrompts, BadPosition, WouldNotFit: from the prompts and the budget.
    """
    from ..model.sweep import SweepPlan, sweep  # torch, only where a model is

    model, dictionary = context.model, chosen_dictionary(context.dictionary)
    if arguments.metric == "kl":
        raise BadArguments("kl has no gradient at its own reference; choose logit_diff, logprob, prob or loss.")
    prompts = encoded(context.prompts, model, arguments.bos, (arguments.metric,), corrupted=False)
    positions = None if arguments.positions == "all" else together(prompts.columns(arguments.positions))
    (metric,) = bound_metrics((arguments.metric,), prompts, model, prompts.clean)
    found = scores(model, dictionary, prompts.clean, metric, positions, context.budget_bytes, context.progress)
    reasons, chosen = _chosen(found, arguments)
    every = sorted({i for one in chosen.sets for i in one})
    values = feature_values(model, dictionary, prompts.clean, every, context.budget_bytes)
    cells, written = ablation_cells(model, dictionary, values, chosen.sets, positions, context.budget_bytes)
    cells, written = error_cell(model, dictionary, prompts.clean, cells, written, positions, context.budget_bytes)
    plan = SweepPlan(
        base=prompts.clean, values=written, cells=cells, metrics=(metric,), read_at=prompts.clean.last, rule="add",
        seed=arguments.seed,
    )  # fmt: skip
    result = sweep(model, plan, context.progress, context.budget_bytes)
    tests = (
        removal_test(model, dictionary, prompts.clean, values, chosen.singles[0]),
        spliced(model, dictionary, prompts.clean), *result.self_tests,
    )  # fmt: skip
    context.keep("estimates", found.estimates, axes=("feature", "prompt"), unit=UNITS[arguments.metric])
    context.keep("values", result.values[0], axes=("cell", "prompt"), unit=UNITS[arguments.metric])
    heavy = massive_tokens(values, positions)
    return _result(arguments, dictionary, prompts, found, chosen, reasons, plan, result, tests, heavy, context)


def _chosen(found: Scores, arguments: Arguments) -> tuple[dict[int, str], Chosen]:
    """Which features are taken away: index among the active -> why; and the sets."""
    import random

    reasons = to_recheck(found.means, top=arguments.top, sample=arguments.sample, seed=arguments.seed)
    singles = tuple(found.active[i] for i in reasons)
    top = tuple(found.active[i] for i, why in reasons.items() if why == "top")
    others = [f for f in found.active if f not in set(top)]
    chosen = random.Random(f"{arguments.seed} controls")
    enough = len(others) >= len(top)
    controls = {tuple(sorted(chosen.sample(others, len(top)))) for _ in range(arguments.controls) if enough}
    return reasons, Chosen(singles, top, tuple(sorted(controls)))


def _result(
    arguments: Arguments, dictionary: Dictionary, prompts: EncodedPrompts, found: Scores, chosen: Chosen,
    reasons: dict[int, str], plan: SweepPlan, result: SweepResult, tests: Sequence[SelfTest], heavy: tuple[str, ...],
    context: Context,
) -> SaeAttributionResult:  # fmt: skip
    values, base = result.values[0].double().numpy(), result.base_values[0].double().numpy()
    changes = values - base
    n, clusters = len(chosen.singles), Clusters(prompts.clusters, seed=arguments.seed)
    site, unit = dictionary.info.writes, UNITS[arguments.metric]
    names = [feature_name(site, f) for f in found.active]
    recheck = compared(names, reasons, found.means, changes[:n], clusters)
    standing = stand_out(
        [feature_name(site, f) for f in chosen.singles], changes[:n].T, prompts.clusters, None, range(n),
        seed=arguments.seed,
    )  # fmt: skip
    joint = (
        joint_effect(
            [feature_name(site, f) for f in chosen.joint], arguments.metric, unit, changes[n:-1],
            changes[[chosen.singles.index(f) for f in chosen.joint]], base, base * 0, clusters,
            f"{len(chosen.controls)} random sets of other features active on these prompts",
        ),
    )  # fmt: skip
    error = ErrorEffect(estimate=float(found.error.mean()), exact=clusters.means(changes[-1]).estimate())
    exact = {f: clusters.means(changes[k]).estimate() for k, f in enumerate(chosen.singles)}
    base_estimate = clusters.means(base).estimate()
    return SaeAttributionResult(
        summary=_summary(
            dictionary, base_estimate, standing, joint[0], error, recheck, len(found.active), n, clusters, unit
        ),
        warnings=(
            *failed(tests), *heavy, *dictionary.info.cautions, *doubts(recheck), *_error_warning(error, base_estimate),
            *too_few(clusters.count, n), *few_controls(joint), *prompts.warnings,
        ),
        sae=dictionary.info.name,
        site=dictionary.info.site_out,
        metric=arguments.metric,
        unit=unit,
        base=base_estimate,
        features=_features(context, dictionary, found, exact),
        active=len(found.active),
        stand_out=standing,
        joint=joint,
        error=error,
        recheck=recheck,
        positions="every position" if arguments.positions == "all" else ", ".join(map(str, arguments.positions)),
        self_tests=tuple(tests),
        cost=cost_of(context.model, plan, result),
    )  # fmt: skip


def _features(
    context: Context, dictionary: Dictionary, found: Scores, exact: dict[int, Estimate]
) -> tuple[FeatureEffect, ...]:
    order = sorted(range(len(found.active)), key=lambda i: -abs(found.means[i]))[:50]
    words = said(context.model, dictionary, [found.active[i] for i in order], 5)
    return tuple(
        FeatureEffect(
            feature=feature_name(dictionary.info.writes, found.active[i]),
            index=found.active[i],
            estimate=found.means[i],
            exact=exact.get(found.active[i]),
            active_share=found.share[i],
            promotes=words[k][0],
        )
        for k, i in enumerate(order)
    )


def _error_warning(error: ErrorEffect, base: Estimate) -> tuple[str, ...]:
    if abs(error.exact.mean) < 0.1 * abs(base.mean):
        return ()
    return (
        f"Taking the dictionary's error away changes the metric by {error.exact.mean:+.3g} (untouched "
        f"{base.mean:.3g}): part of the behaviour goes through what no feature here explains.",
    )


def _summary(
    dictionary: Dictionary, base: Estimate, standing: Sequence[StandOut], joint: JointEffect, error: ErrorEffect,
    recheck: Recheck, active: int, checked: int, clusters: Clusters, unit: str,
) -> str:  # fmt: skip
    return (
        f"{active} features of {dictionary.info.name} are active; untouched {joint.metric} {base}. Taken away one by "
        f"one: {in_words(standing, checked, unit, clusters.count)} "
        f"{joint_in_words(joint, 'the baseline lost')} Without the error: {error.exact.mean:+.3g}. "
        f"{recheck_in_words(recheck)} Needed on these prompts is shown, not what a feature means."
    )


def plot(result: SaeAttributionResult) -> Figure:
    """Exact effects, the joint set beside random ones, estimates against exact values."""
    checked = [f for f in result.features if f.exact is not None][:20]
    named = [f.feature + (f" {f.promotes[0]}" if f.promotes else "") for f in checked]
    singles = Bars(
        title="taken away one by one, and the error",
        value_title=f"change of {result.metric} ({result.unit})",
        labels=(*named, "error"),
        values=(*(f.exact.mean for f in checked if f.exact), result.error.exact.mean),
        low=(*(f.exact.low for f in checked if f.exact), result.error.exact.low),
        high=(*(f.exact.high for f in checked if f.exact), result.error.exact.high),
        groups=(*("feature" for _ in checked), "error"),
    )
    return Figure(
        title=f"{result.sae}: features that {result.metric} depends on",
        caption=f"At {result.site}, {result.positions}; error term kept; untouched {result.base}.",
        panels=(singles, *beside_controls(result.joint[0]), beside_exact(result.recheck, result.unit)),
        columns=1,
    )
