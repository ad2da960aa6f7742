"""Directions at one layer, tested on held-out examples: how well each separates, how steady it is, against chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadArguments
from ..measures.labels import split_by_group
from ..measures.linear import auroc_estimate
from ..measures.statistics import Clusters
from ..result import Estimate
from .direction_fits import Direction, Method, Part, Separation, fit_directions, random_aurocs, separations
from .labelled import Labelled

if TYPE_CHECKING:
    from numpy import ndarray

RANDOM = 20  # random directions per layer, for what any direction gives


class AtLayer(NamedTuple):
    """Everything found at one layer."""

    separations: dict[Method, Separation]
    aurocs: Mapping[Method, Estimate]
    accuracies: Mapping[str, Estimate]
    stability: Mapping[Method, float] | None  # cosine between the directions of two halves of the fit part
    random: float  # mean AUROC of random directions
    norm: float  # median norm of the fit part's activations

    def length(self, method: Method) -> float:
        """The direction's length as a share of the median norm."""
        import numpy as np

        return float(np.linalg.norm(self.separations[method].direction.vector)) / max(self.norm, 1e-30)


def part_of(labelled: Labelled, x: ndarray) -> Part:
    """The activations x [n, D] of some examples with their labels and groups."""
    import numpy as np

    labels, groups = labelled.per_example()
    return Part(x, np.array(labels), groups)


def at_layer(
    methods: Sequence[Method], fit: Part, test: Part, *, shuffles: int, seed: int, penalty: float
) -> AtLayer:
    """Directions fitted on one part and tested on the other.

    Raises:
        BadArguments: one label only, the two means are equal, or examples that do not differ.
    """
    import numpy as np

    found = separations(methods, fit, test, shuffles=shuffles, seed=seed, penalty=penalty)
    clusters = Clusters(test.groups, seed=seed)
    correct = {m: ((s.scores > 0) == test.labels).astype(float) for m, s in found.items()}
    return AtLayer(
        found,
        {m: auroc_estimate(s.scores, test.labels, clusters) for m, s in found.items()},
        {m: clusters.means(c).estimate() for m, c in correct.items()},
        _stability(methods, fit, seed, penalty),
        float(random_aurocs(test, RANDOM, seed).mean()),
        float(np.median(np.linalg.norm(fit.x, axis=1))),
    )


def cosine(a: Direction, b: Direction) -> float:
    """Cosine of the angle between two directions."""
    import numpy as np

    return float(a.vector @ b.vector / (np.linalg.norm(a.vector) * np.linalg.norm(b.vector)))


def corrected_p(methods: Sequence[Method], found: Sequence[AtLayer]) -> dict[str, list[float]]:
    """Per method and layer: p against the largest AUROC over the layers under each shuffle."""
    import numpy as np

    out: dict[str, list[float]] = {}
    for m in methods:
        largest = np.stack([f.separations[m].shuffled_auroc for f in found]).max(0)
        out[m] = [float((1 + (largest >= f.aurocs[m].mean).sum()) / (1 + len(largest))) for f in found]
    return out


def _stability(methods: Sequence[Method], fit: Part, seed: int, penalty: float) -> dict[Method, float] | None:
    """None where the fit part cannot be halved."""
    try:
        halves = split_by_group(fit.labels.tolist(), fit.groups, 0.5, seed)
        one, two = (
            fit_directions(methods, fit.x[list(h)], fit.labels[list(h)], [fit.groups[i] for i in h], penalty=penalty)
            for h in halves
        )
    except BadArguments:
        return None
    return {m: cosine(one[m], two[m]) for m in methods}
