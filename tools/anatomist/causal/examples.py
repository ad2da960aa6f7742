"""Values of many units on running text, read once and forgotten: moments, a histogram, and examples of every kind.

Memory does not grow with the text: what is kept per unit are running sums, the best windows so far, and one random
sample of windows that all units share. T tokens of a window, U units, V vocabulary.

Source: Bolukbasi et al., arXiv 2104.07143 (top examples alone mislead; look at others and at several corpora). The
random sample is Vitter's algorithm R (doi 10.1145/3147.3165); moments are merged as in Chan et al. 1979.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadPrompts
from ..model.batches import batches
from ..model.protocol import Model, Run
from ..model.sites import Site
from ..prompts.windows import Window

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

BLOCK = 64  # windows tokenised together
SAMPLE = 384  # windows of the random sample
SPARE = 4  # best windows kept, for each that is wanted: some are taken back as repetitions
SAME = 4  # two examples whose last tokens up to the one in question agree are one example
BINS = 40

Measure = Callable[[Run], "Tensor"]  # [B, T, U] from a pass that read the sites


class Example(NamedTuple):
    """A token in its window, with the unit's value on every token of it."""

    value: float
    window: Window
    values: tuple[float, ...]  # one per token of the window
    focus: int  # index of the token in the window

    @property
    def key(self) -> tuple[int, ...]:
        return self.window.ids[max(0, self.focus - SAME + 1) : self.focus + 1]


class Histogram:
    """Counts over bins that double in width, and reach further, when a value lies outside; zeros are counted apart."""

    def __init__(self) -> None:
        import numpy as np

        self.counts, self.width, self.low = np.zeros(BINS, dtype=int), 0.0, 0.0

    def add(self, values: ndarray) -> None:
        """Count values, each in exactly one bin."""
        import numpy as np

        if not values.size:
            return
        least, most = float(values.min()), float(values.max())
        if self.width == 0.0:
            self.width = max((most - least) / (BINS // 2), 1e-9 * max(abs(most), abs(least), 1e-30))
            self.low = least - self.width * (BINS // 4)
        while most >= self.low + BINS * self.width:
            self._widen(down=False)
        while least < self.low:
            self._widen(down=True)
        place = ((values - self.low) / self.width).astype(int).clip(0, BINS - 1)
        self.counts += np.bincount(place, minlength=BINS)

    def _widen(self, *, down: bool) -> None:
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts[:] = 0
        if down:
            self.counts[BINS // 2 :] = pairs
            self.low -= BINS * self.width
        else:
            self.counts[: BINS // 2] = pairs
        self.width *= 2

    def trimmed(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Ends of the bins, one more than counts, and counts; without the empty bins at either end."""
        held = [i for i, count in enumerate(self.counts) if count] or [0]
        first, last = held[0], held[-1] + 1
        edges = tuple(self.low + i * self.width for i in range(first, last + 1))
        return edges, tuple(int(count) for count in self.counts[first:last])


@dataclass
class Best:
    """The examples with the highest values: one a stretch of text, `per_document` a document."""

    wanted: int
    per_document: int
    kept: list[Example] = field(default_factory=list)
    repetitions: int = 0

    def floor(self) -> float:
        """Values up to this one cannot come in."""
        return self.kept[-1].value if len(self.kept) >= SPARE * self.wanted else float("-inf")

    def offer(self, example: Example) -> None:
        same = next((e for e in self.kept if e.key == example.key), None)
        if same is not None:
            self.repetitions += 1
            if same.value >= example.value:
                return
            self.kept.remove(same)
        self.kept.append(example)
        self.kept.sort(key=lambda e: -e.value)
        here = [e for e in self.kept if e.window.document == example.window.document]
        for spare in here[self.per_document :]:
            self.kept.remove(spare)
        del self.kept[SPARE * self.wanted :]

    def best(self) -> list[Example]:
        return self.kept[: self.wanted]


@dataclass
class Scanned:
    """What the text gave, per unit (arrays of length U)."""

    tokens: int
    documents: int
    mean: ndarray
    variance: ndarray
    active: ndarray  # share of tokens above the threshold
    by_token: ndarray  # share of the variance that the token's identity explains, corrected for the number of tokens
    highest: list[Best]
    lowest: list[Best]
    histograms: list[Histogram]
    sample: list[tuple[Window, ndarray]]  # windows drawn at random with their values [T, U]
    skip: int

    def at(self, unit: int, window: int, focus: int) -> Example:
        """A token of a window of the sample."""
        return _example(unit, *self.sample[window], focus)

    def sampled(self, unit: int) -> tuple[ndarray, ndarray]:
        """Values of a unit on the random sample, and (window, token) of each."""
        import numpy as np

        places = [(i, t) for i, (w, _) in enumerate(self.sample) for t in range(self.skip, len(w.ids))]
        return np.array([self.sample[i][1][t, unit] for i, t in places]), np.array(places)


class _Sums:
    """Running count, mean and sum of squared differences; per token id count and sum."""

    def __init__(self, units: int, vocabulary: int, threshold: float) -> None:
        import numpy as np

        self.n, self.mean, self.squares = 0, np.zeros(units), np.zeros(units)
        self.active, self.threshold = np.zeros(units, dtype=int), threshold
        self.seen, self.totals = np.zeros(vocabulary, dtype=int), np.zeros((vocabulary, units))

    def add(self, values: ndarray, ids: ndarray) -> None:
        """values [n, U] of tokens ids [n]."""
        import numpy as np

        n = len(values)
        mean = values.mean(0)
        gap, total = mean - self.mean, self.n + n
        self.squares += ((values - mean) ** 2).sum(0) + gap**2 * self.n * n / total
        self.mean += gap * n / total
        self.n = total
        self.active += (values > self.threshold).sum(0)
        np.add.at(self.seen, ids, 1)
        np.add.at(self.totals, ids, values)

    def by_token(self) -> ndarray:
        """1 - (within-token mean square) / (total mean square): 0 for values that do not depend on the token."""
        import numpy as np

        held = self.seen > 0
        kinds, n = int(held.sum()), self.n
        between = (self.totals[held] ** 2 / self.seen[held, None]).sum(0) - n * self.mean**2
        if n <= kinds or n < 2:
            return np.full_like(self.mean, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 1 - ((self.squares - between) / (n - kinds)) / (self.squares / (n - 1))
        return np.where(self.squares > 0, share, np.nan)


def scan(
    model: Model,
    text: Iterable[Window],
    sites: Sequence[Site],
    measure: Measure,
    *,
    units: int,
    examples: int,
    per_document: int,
    threshold: float,
    skip: int,
    bos: bool | None,
    seed: int,
    budget_bytes: int,
    told: Callable[[int], None],
) -> Scanned:
    """Read the text once. `skip`: first tokens of every window that are not counted (BOS is never counted).

    `told` is called with the number of tokens read, after every pass; it may raise to stop.

    Raises:
        WouldNotFit: one window is over the budget.
        BadPrompts: nothing is left after `skip`.
    """
    sums = _Sums(units, model.info.d_vocab, threshold)
    highest, lowest = ([Best(examples, per_document) for _ in range(units)] for _ in range(2))
    histograms = [Histogram() for _ in range(units)]
    draw = _Reservoir(random.Random(seed))
    read, documents = 0, set[int]()
    for block in _blocks(text):
        for window, values in _read(model, block, sites, measure, bos, budget_bytes):
            read += len(window.ids)
            if len(window.ids) <= skip:
                continue
            documents.add(window.document)
            _take(window, values, skip, sums, highest, lowest, histograms)
            draw.offer(window, values)
        told(read)
    if sums.n == 0:
        raise BadPrompts(f"no token is left when the first {skip} of each window are not counted; give longer texts.")
    return Scanned(
        sums.n, len(documents), sums.mean, sums.squares / sums.n, sums.active / sums.n, sums.by_token(), highest,
        lowest, histograms, draw.kept, skip,
    )  # fmt: skip


def _blocks(text: Iterable[Window]) -> Iterable[list[Window]]:
    block: list[Window] = []
    for window in text:
        block.append(window)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _read(
    model: Model, block: Sequence[Window], sites: Sequence[Site], measure: Measure, bos: bool | None, budget: int
) -> Iterable[tuple[Window, ndarray]]:
    """Each window with its values [T, U], BOS left out."""
    tokens = model.tokenize([w.ids for w in block], bos=bos)
    for rows in batches(model.info, tokens, sites, budget):
        part = tokens.rows(rows)
        values = measure(model.run(part, read=sites)).float().cpu().numpy()
        for row, i in enumerate(rows):
            first = part.lengths[row] - len(block[i].ids)
            yield block[i], values[row, first : part.lengths[row]].astype(float)


def _take(
    window: Window, values: ndarray, skip: int, sums: _Sums, highest: list[Best], lowest: list[Best],
    histograms: list[Histogram],
) -> None:  # fmt: skip
    import numpy as np

    counted = values[skip:]
    sums.add(counted, np.array(window.ids[skip:]))
    top, bottom = counted.argmax(0) + skip, counted.argmin(0) + skip
    for u, (high, low, histogram) in enumerate(zip(highest, lowest, histograms, strict=True)):
        histogram.add(counted[:, u])
        if values[top[u], u] > high.floor():
            high.offer(_example(u, window, values, int(top[u])))
        if -values[bottom[u], u] > low.floor():
            low.offer(_example(u, window, -values, int(bottom[u])))


def _example(unit: int, window: Window, values: ndarray, focus: int) -> Example:
    return Example(float(values[focus, unit]), window, tuple(map(float, values[:, unit])), focus)


class _Reservoir:
    """A random sample of windows, each equally likely to be in it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.seen = rng, 0
        self.kept: list[tuple[Window, ndarray]] = []

    def offer(self, window: Window, values: ndarray) -> None:
        self.seen += 1
        if len(self.kept) < SAMPLE:
            self.kept.append((window, values))
        elif (place := self.rng.randrange(self.seen)) < SAMPLE:
            self.kept[place] = (window, values)
