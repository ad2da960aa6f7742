"""Probes of every place with their controls: what is fitted, and how each is scored on its test part.

Columns of a place, all on test examples: the score (accuracy, R2); the AUROC of two classes; the control task and the
selectivity (score minus control, on examples whose type was trained on); labels shuffled by group; types that were not
trained on; untrained models; the range over further random splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments
from ..measures.decoding import Statistic, accuracy, intervals, joined, permutation_p, permuted, r_squared
from ..measures.linear import auroc_estimate
from ..measures.statistics import Clusters, Intervals
from ..prompts.examples import Examples
from .probing import Fitter, Method, Parts, Probe, control_labels, split

if TYPE_CHECKING:
    from numpy import ndarray

FEW_SEEN = 10  # test examples of known types under which a control task says nothing


class Data(NamedTuple):
    """What is probed."""

    examples: Examples
    y: ndarray  # class numbers, or numbers
    classes: tuple[str, ...]  # empty for numbers
    method: Method
    seed: int

    @property
    def n_classes(self) -> int | None:
        return len(self.classes) or None


class Plan(NamedTuple):
    """Splits and label sets, the same at every place."""

    parts: Parts  # by group
    others: tuple[Parts, ...]  # further random splits by group
    by_type: Parts | None  # None: types cannot be split, or the split by group parts them already
    shuffled: ndarray
    control: ndarray | None  # None: too few test examples of types that were trained on
    seen: ndarray  # test rows whose type is in the training part
    notes: tuple[str, ...]


class Fits(NamedTuple):
    """Probes, one a place."""

    real: list[Probe]
    shuffled: list[Probe]
    control: list[Probe]
    by_type: list[Probe]
    others: list[list[Probe]]  # per further split
    untrained: list[list[Probe]]  # per untrained model


class Test(NamedTuple):
    """Test rows with their clusters."""

    data: Data
    rows: ndarray
    clusters: Clusters

    @classmethod
    def of(cls, data: Data, rows: ndarray, units: Sequence[str]) -> Test:
        return cls(data, rows, Clusters([units[int(row)] for row in rows], seed=data.seed))

    def score(self, probes: Sequence[Probe], y: ndarray | None = None) -> Statistic:
        """Accuracy or R2 of each probe on these rows; `y` where other labels than the real ones are the truth."""
        truth, predicted = (self.data.y if y is None else y)[self.rows], self.predicted(probes)
        if self.data.n_classes is None:
            return r_squared(predicted, truth, self.clusters)
        return accuracy(predicted == truth[:, None], self.clusters)

    def predicted(self, probes: Sequence[Probe]) -> ndarray:
        """[rows, C]: class numbers, or numbers."""
        import numpy as np

        scores = np.stack([p.scores[self.rows] for p in probes], axis=1)
        return scores[..., 0] if self.data.n_classes is None else scores.argmax(-1)

    def intervals(self, statistic: Statistic) -> Intervals:
        return intervals(statistic, self.clusters)

    def value(self, probes: Sequence[Probe]) -> ndarray:
        """The score alone, [C]."""
        import numpy as np

        return self.score(probes)(np.ones((1, self.clusters.count)))[0]


def plan_of(data: Data, splits: int) -> Plan:
    """
    Raises:
        BadArguments: no split by group has every class in every part.
    """
    examples, y = data.examples, data.y
    seeds = range(data.seed, data.seed + splits)
    parts, *others = (split(examples.groups, y, data.n_classes, seed, "groups") for seed in seeds)
    known = {examples.types[row] for row in parts.train}
    seen = parts.test[[examples.types[row] in known for row in parts.test]]
    by_type, notes = _by_type(data, len(seen))
    control = control_labels(examples.types, y, data.seed) if len(seen) >= FEW_SEEN else None
    if control is None:
        notes += (
            f"No control task: {len(seen)} of {len(parts.test)} test examples have a token type that was trained on, "
            "so that nothing can be learnt by heart there; the unseen types carry that check.",
        )
    return Plan(parts, tuple(others), by_type, permuted(y, examples.groups, data.seed), control, seen, notes)


def _by_type(data: Data, seen: int) -> tuple[Parts | None, tuple[str, ...]]:
    """A split by type, and what to say where there is none."""
    if not seen:
        return None, ()
    try:
        return split(data.examples.types, data.y, data.n_classes, data.seed, "token types"), ()
    except BadArguments as error:
        return None, (f"No test on unseen token types, so a probe may know words by heart: {error}",)


def fit_all(
    data: Data, plan: Plan, features: ndarray, untrained: Sequence[ndarray], progress: Callable[[int], None]
) -> Fits:
    """Every probe at every place; features [S, n, d] of the model, and of untrained ones."""
    fits = Fits([], [], [], [], [[] for _ in plan.others], [[] for _ in untrained])
    for level, x in enumerate(features):
        fitter = Fitter(x, plan.parts, data.method, data.n_classes)
        fits.real.append(fitter.fit(data.y))
        fits.shuffled.append(fitter.fit(plan.shuffled))
        if plan.control is not None:
            fits.control.append(fitter.fit(plan.control))
        if plan.by_type is not None:
            fits.by_type.append(Fitter(x, plan.by_type, data.method, data.n_classes).fit(data.y))
        for found, parts in zip(fits.others, plan.others, strict=True):
            found.append(Fitter(x, parts, data.method, data.n_classes).fit(data.y))
        for found, other in zip(fits.untrained, untrained, strict=True):
            found.append(Fitter(other[level], plan.parts, data.method, data.n_classes).fit(data.y))
        progress(level + 1)
    return fits


def columns(data: Data, plan: Plan, fits: Fits) -> dict[str, Intervals]:
    """Every quantity of every place."""
    import numpy as np

    examples = data.examples
    test = Test.of(data, plan.parts.test, examples.groups)
    found = {"score": test.intervals(test.score(fits.real))}
    if data.n_classes == 2:
        margins = [p.scores[test.rows, 1] - p.scores[test.rows, 0] for p in fits.real]
        found["auroc"] = joined([auroc_estimate(m, data.y[test.rows], test.clusters) for m in margins])
    if plan.control is not None:
        known = Test.of(data, plan.seen, examples.groups)
        real, control = known.score(fits.real), known.score(fits.control, plan.control)
        found["control"] = known.intervals(control)
        found["selectivity"] = known.intervals(lambda weights: real(weights) - control(weights))
    found["shuffled"] = test.intervals(test.score(fits.shuffled, plan.shuffled))
    if plan.by_type is not None:
        unseen = Test.of(data, plan.by_type.test, examples.types)
        found["unseen types"] = unseen.intervals(unseen.score(fits.by_type))
    if fits.untrained:
        each = [test.score(probes) for probes in fits.untrained]
        found["untrained"] = test.intervals(lambda weights: np.mean([s(weights) for s in each], axis=0))
    return found | _range(data, plan, fits, test)


def _range(data: Data, plan: Plan, fits: Fits, test: Test) -> dict[str, Intervals]:
    """Lowest and highest score over the random splits, without intervals."""
    import numpy as np

    if not plan.others:
        return {}
    every = [test.value(fits.real)]
    for probes, parts in zip(fits.others, plan.others, strict=True):
        every.append(Test.of(data, parts.test, data.examples.groups).value(probes))
    ends = {"lowest split": np.min(every, axis=0), "highest split": np.max(every, axis=0)}
    return {name: Intervals(v, None, None, test.clusters.n, test.clusters.count, 0.95) for name, v in ends.items()}


def chance_p(test: Test, probes: Sequence[Probe]) -> ndarray:
    """Per place, how often test labels dealt anew by group score as high anywhere."""
    predicted = test.predicted(probes).T
    groups = [test.data.examples.groups[row] for row in test.rows]

    def right(y: ndarray) -> ndarray:
        return (predicted == y).mean(1)

    def explained(y: ndarray) -> ndarray:
        return 1 - ((predicted - y) ** 2).mean(1) / y.var()

    return permutation_p(
        explained if test.data.n_classes is None else right, test.data.y[test.rows], groups, seed=test.data.seed
    )
