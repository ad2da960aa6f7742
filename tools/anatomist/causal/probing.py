"""Probes at many places at once: activations in one reading pass, splits that keep groups apart, fits, baselines.

S places, n examples, d width, K classes. The penalty of each fit is the one whose validation loss is lowest; test
examples are looked at once, by the finished probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import BadArguments, WouldNotFit
from ..measures.linear_models import Axes, Scorer, constant, logistic, nearest_mean, ridge
from ..model.protocol import Model
from ..model.sites import Site
from ..prompts.examples import Examples
from .labelled import Labelled, activations

if TYPE_CHECKING:
    from numpy import ndarray

Method = Literal["logistic", "difference_of_means", "ridge"]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TEST, VALIDATION = 0.3, 0.2  # shares of the examples
TRIES = 200  # random splits looked at for one with every class in every part


class Parts(NamedTuple):
    """Which examples train, choose the penalty, and test."""

    train: ndarray
    validation: ndarray
    test: ndarray


class Probe(NamedTuple):
    """A fitted probe, and what it says of every example."""

    linear: Scorer
    scores: ndarray  # [n, K], or [n, 1] for numbers
    penalty: float | None  # None for the difference of means
    loss: float  # on the validation part


def read_features(
    model: Model, examples: Examples, sites: Sequence[Site], budget_bytes: int, progress: Callable[[int, int], None]
) -> ndarray:
    """Activations of places at each example's position, or their mean over its tokens: [S, n, d], float32.

    Raises:
        WouldNotFit: what is kept, or one example's reads, are over the budget.
    """
    import numpy as np

    info, n = model.info, examples.n
    kept = 4 * len(sites) * n * info.d_model
    if kept > budget_bytes // 2:
        raise WouldNotFit(
            f"{len(sites)} places of {n} examples come to {kept / 2**20:,.0f} MiB; half of the budget, "
            f"{budget_bytes / 2**21:,.0f} MiB, may be used. Probe fewer layers or fewer examples."
        )
    rows = Labelled(examples.tokens, (0,) * n, examples.groups, examples.positions, averaged=True)
    found = activations(model, rows, sites, budget_bytes // 2, progress=progress)
    return np.stack([found[site] for site in sites])


def counts(examples: Examples) -> ndarray:
    """Bag of words: how often each token stands in what the read position can see. [n, distinct tokens]."""
    import numpy as np

    seen = [examples.seen(row) for row in range(examples.n)]
    column = {token: i for i, token in enumerate(sorted({t for ids in seen for t in ids}))}
    out = np.zeros((examples.n, len(column)))
    for row, ids in enumerate(seen):
        np.add.at(out[row], [column[t] for t in ids], 1.0)
    return out


def split(units: Sequence[str], y: ndarray, classes: int | None, seed: int, what: str) -> Parts:
    """A random split in which no unit (group or type) is in two parts, with every class in every part.

    Raises:
        BadArguments: too few units, or none of many random splits has every class (or different numbers) in each part.
    """
    import numpy as np

    own: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        own.setdefault(unit, []).append(row)
    for attempt in range(TRIES):
        order = np.random.default_rng((seed, attempt)).permutation(len(own))
        parts = _dealt([list(own.values())[i] for i in order], len(units))
        if all(_usable(y[part], classes) for part in parts):
            return parts
    kinds = f"each of the {classes} classes" if classes else "different numbers"
    raise BadArguments(
        f"no split of {len(own)} {what} over {len(units)} examples gives training, validation and test part {kinds}. "
        f"Give more {what} for every label, smaller ones, or fewer classes."
    )


def _dealt(units: Sequence[Sequence[int]], n: int) -> Parts:
    """Units to the test part until it is full, then to the validation part, the rest to training."""
    import numpy as np

    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    wanted = (TEST * n, VALIDATION * n)
    for rows in units:
        place = next((i for i, most in enumerate(wanted) if not parts[i] or len(parts[i]) + len(rows) <= most), 2)
        parts[place].extend(rows)
    test, validation, train = (np.array(sorted(part), dtype=int) for part in parts)
    return Parts(train, validation, test)


def _usable(y: ndarray, classes: int | None) -> bool:
    import numpy as np

    return len(np.unique(y)) == classes if classes else len(y) > 1 and float(np.ptp(y)) > 0


class Fitter:
    """Fits probes on one place's activations and one split; labels may differ from fit to fit."""

    def __init__(self, x: ndarray, parts: Parts, method: Method, classes: int | None) -> None:
        self.x, self.parts, self.method, self.classes = x.astype(float), parts, method, classes
        train = self.x[parts.train]
        self.blind = bool((train == train[0]).all())  # the same everywhere: the embedding of a token that all share
        regular = method != "difference_of_means" and not self.blind
        self.axes = Axes.of(train) if regular else None

    def fit(self, y: ndarray) -> Probe:
        """The probe with the best penalty on the validation part; a tie goes to the larger penalty."""
        penalties: Sequence[float | None] = PENALTIES if self.axes else (None,)
        return min((self._probe(y, penalty) for penalty in reversed(penalties)), key=lambda p: p.loss)

    def _probe(self, y: ndarray, penalty: float | None) -> Probe:
        linear = self._linear(y[self.parts.train], penalty)
        scores = linear.scores(self.x)
        chosen = self.parts.validation
        return Probe(linear, scores, penalty, self._loss(scores[chosen], y[chosen]))

    def _linear(self, y: ndarray, penalty: float | None) -> Scorer:
        if self.blind:
            return constant(y, self.classes, self.x.shape[1])
        if self.axes is None or penalty is None:
            return nearest_mean(self.x[self.parts.train], y, self.classes or 0)
        if self.classes is None:
            return ridge(self.axes, y, penalty)
        return logistic(self.axes, y, self.classes, penalty)

    def _loss(self, scores: ndarray, y: ndarray) -> float:
        """Mean squared error of numbers; cross-entropy of classes, or their error where scores are no logits."""
        from scipy.special import log_softmax

        if self.classes is None:
            return float(((scores[:, 0] - y) ** 2).mean())
        if self.method == "difference_of_means":
            return float((scores.argmax(1) != y).mean())
        return float(-log_softmax(scores, axis=1)[range(len(y)), y].mean())


def blind_probe(y: ndarray, parts: Parts, classes: int | None) -> Probe:
    """The majority of the training part (the mean, for numbers)."""
    import numpy as np

    linear = constant(y[parts.train], classes, 1)
    return Probe(linear, linear.scores(np.zeros((len(y), 1))), None, 0.0)


def control_labels(types: Sequence[str], y: ndarray, seed: int) -> ndarray:
    """Hewitt and Liang's control task: each type gets one label at random, drawn as often as the labels occur."""
    import numpy as np

    generator = np.random.default_rng((seed, 1))
    given = {kind: generator.choice(y) for kind in dict.fromkeys(types)}
    return np.array([given[kind] for kind in types], dtype=y.dtype)
