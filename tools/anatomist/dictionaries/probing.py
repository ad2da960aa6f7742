"""Whether single features say what can be said of a token, and whether they stop saying it where another takes over.

Sparse probing: a property of tokens that any text gives for free (a number, a capital, the start of a word, the inside
of brackets) is read from one feature alone, chosen and cut on one half of the rows and judged on the other, beside a
linear probe of the whole activation, the best single coordinate of the activation, and shuffled labels.

Absorption-like check: words that begin with a letter. Where a linear probe sees the letter, the feature that stands
for it should be active. If it is silent and one other feature (of that very word, say) carries the letter's direction,
it was absorbed: the feature looks clean and has holes.

Source: Gurnee et al., arXiv 2305.01610 (sparse probing); Chanin et al., arXiv 2409.14507, section 4 (absorption);
Karvonen et al., SAEBench, arXiv 2503.09532, sections 3.2 and 3.4. The check of absorption is a short form of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..result import Frozen

if TYPE_CHECKING:
    from numpy import ndarray

FEW = 20  # tokens of either kind in either half: fewer give no figure
SEEN = 0.8  # balanced accuracy from which a probe is said to see a letter
CARRIES = 0.4  # share of the letter's direction that one feature must carry to have absorbed it
_RIDGE = 1e-2  # of the mean variance of a coordinate


class ProbeRow(Frozen):
    """One property, by balanced accuracy on rows that chose nothing (0.5 is chance)."""

    property: str
    positives: int = Field(description="Tokens that have it, in the half that judges.")
    one_feature: float = Field(description="The best single feature.")
    feature: int = Field(description="Which one.")
    one_coordinate: float = Field(description="The best single coordinate of the activation.")
    whole: float = Field(description="A linear probe of the whole activation.")
    shuffled: float = Field(description="The best single feature with shuffled labels: chance, as it comes out here.")


class Absorption(Frozen):
    """First letters whose feature is silent while another carries the letter."""

    rate: float | None = Field(description="Mean over letters of the share absorbed; absent where no letter is seen.")
    silent: float | None = Field(description="Mean share of the words where the letter's feature is silent at all.")
    letters: str = Field(description="Letters that a probe of the activation sees.")
    words: int = Field(description="Words judged.")


class Halves(NamedTuple):
    """Tokens that choose and tokens that judge."""

    choose: ndarray  # indices
    judge: ndarray


def properties(strings: Sequence[Sequence[str]]) -> dict[str, ndarray]:
    """Per token of all rows, one after another, whether it has each property."""
    import numpy as np

    def each(has: Callable[[str], bool]) -> ndarray:
        return np.array([has(token) for row in strings for token in row])

    return {
        "starts a word": each(lambda t: t[:1] in " \u0120\u2581" and t[1:2].isalpha()),
        "capital": each(lambda t: t.strip()[:1].isupper()),
        "number": each(lambda t: any(c.isdigit() for c in t)),
        "punctuation": each(lambda t: bool(t.strip()) and not any(c.isalnum() for c in t)),
        "line break": each(lambda t: "\n" in t),
        "inside brackets": np.array([inside for row in strings for inside in _inside(row)]),
    }


def halves(lengths: Sequence[int], kept: ndarray) -> Halves:
    """Even rows choose, odd rows judge; only kept tokens."""
    import numpy as np

    row = np.repeat(np.arange(len(lengths)), lengths)
    return Halves(np.flatnonzero(kept & (row % 2 == 0)), np.flatnonzero(kept & (row % 2 == 1)))


def probe_rows(
    x: ndarray, f: ndarray, labels: dict[str, ndarray], parts: Halves, seed: int
) -> Iterator[ProbeRow]:
    """The table; properties that too few tokens have or lack are left out. x [n, d], f [n, features]."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for name, label in labels.items():
        if not _enough(label, parts):
            continue
        feature, score = one_of(f, label, parts)
        mixed = label.copy()
        mixed[parts.choose] = rng.permutation(label[parts.choose])
        yield ProbeRow(
            property=name, positives=int(label[parts.judge].sum()), one_feature=score, feature=feature,
            one_coordinate=one_of(x, label, parts)[1], whole=whole_probe(x, label, parts)[1],
            shuffled=one_of(f, mixed, parts)[1],
        )  # fmt: skip


def absorption(
    x: ndarray, f: ndarray, directions: ndarray, strings: Sequence[str], parts: Halves
) -> Absorption:
    """First letters of words. strings: of all tokens; directions [features, d]."""
    import numpy as np

    first = np.array([t[1:2].lower() if t[:1] in " \u0120\u2581" and t[1:2].isalpha() else "" for t in strings])
    word = first != ""
    within = Halves(*(part[word[part]] for part in parts))
    rates, quiet, seen, n = [], [], "", 0
    for letter in sorted(set(first) - {""}):
        label = first == letter
        if not _enough(label, within):
            continue
        direction, score, right = whole_probe(x, label, within)
        if score < SEEN:
            continue
        main, _ = one_of(f, label, within)
        judged = within.judge[right & label[within.judge]]
        carried = f[judged] * (directions @ direction)
        total = carried.sum(1)
        silent = f[judged, main] == 0
        carried[:, main] = 0
        taken = silent & (total > 0) & (carried.max(1) > CARRIES * total)
        rates.append(float(taken.mean()))
        quiet.append(float(silent.mean()))
        seen += letter
        n += len(judged)
    return Absorption(
        rate=float(np.mean(rates)) if rates else None, silent=float(np.mean(quiet)) if quiet else None,
        letters=seen, words=n,
    )  # fmt: skip


def one_of(values: ndarray, label: ndarray, parts: Halves) -> tuple[int, float]:
    """The column that separates best where it is chosen, and its balanced accuracy where it is judged."""
    import numpy as np

    v, y = values[parts.choose], label[parts.choose]
    gap = v[y].mean(0) - v[~y].mean(0)
    spread = np.sqrt(v[y].var(0) + v[~y].var(0)) + 1e-9
    column = int(np.abs(gap / spread).argmax())
    sign = 1.0 if gap[column] >= 0 else -1.0
    chosen = sign * v[:, column]
    cuts = np.unique(np.concatenate([np.quantile(chosen, np.linspace(0, 1, 21)), [0.0]]))
    cut = max(cuts, key=lambda c: balanced(chosen > c, y))
    return column, balanced(sign * values[parts.judge, column] > cut, label[parts.judge])


def whole_probe(x: ndarray, label: ndarray, parts: Halves) -> tuple[ndarray, float, ndarray]:
    """A ridge probe with the classes weighted alike: its unit direction, balanced accuracy, and where it says yes."""
    import numpy as np

    v, y = x[parts.choose].astype(np.float64), label[parts.choose]
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    mean = weight @ v
    centred = v - mean
    gram = (centred * weight[:, None]).T @ centred
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    direction = np.linalg.solve(gram, centred.T @ (weight * np.where(y, 1.0, -1.0)))
    said = (x[parts.judge] - mean) @ direction > 0
    return direction / np.linalg.norm(direction), balanced(said, label[parts.judge]), said


def balanced(said: ndarray, label: ndarray) -> float:
    """Mean of the shares of both kinds that are told right."""
    return float((said[label].mean() + (~said[~label]).mean()) / 2)


def _enough(label: ndarray, parts: Halves) -> bool:
    return all(FEW <= label[part].sum() <= len(part) - FEW for part in parts)


def _inside(row: Sequence[str]) -> Iterator[bool]:
    """Whether an opened bracket is still open before each token."""
    depth = 0
    for token in row:
        yield depth > 0
        depth = max(0, depth + sum(token.count(c) for c in "([{") - sum(token.count(c) for c in ")]}"))
