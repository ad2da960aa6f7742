"""What a circuit's verdict comes to in words."""

from __future__ import annotations

from .circuit_evaluation import Rivals, Verdict
from .faithfulness import STABLE

ENOUGH = 19  # random circuits: the smallest p is then .05


def in_words(what: str, rivals: Rivals) -> str:
    """Random circuits in half a sentence; nothing where there are none."""
    if rivals.p is None:
        return ""
    most = max(rivals.values)
    return f"; {len(rivals.values)} {what} {rivals.mean:.2f} on average, at most {most:.2f} (p = {rivals.p:.2g})"


def warnings_of(v: Verdict, target: float, stability: float | None, size: int, of: int) -> tuple[str, ...]:
    """What speaks against a circuit of `size` of `of` parts."""
    found: list[str] = []
    f = v.faithfulness.mean
    if size == of:
        found.append(f"No circuit smaller than the whole model reaches f = {target:g}.")
    if f > 1.05:
        found.append(f"f is {f:.2f}: parts left out work against the behaviour, so the circuit overshoots the model.")
    if f < 0:
        found.append(f"f is {f:.2f}: on held-out prompts the circuit does worse than nothing at all.")
    why = "the size and the kinds of parts may do it, not these parts"
    found += _beaten("random circuits like it", why, f, v.random)
    if v.same_layers is not None:
        why = "its MLPs and the layers may do it, not these heads"
        found += _beaten("circuits with its MLPs and other heads of the same layers", why, f, v.same_layers)
    if v.inverted.mean >= f and size < of:
        found.append("The inverted ranking is at least as faithful: the scores do not find what does the task.")
    if v.complement.mean > 0.5 and size < of:
        found.append(
            f"The rest of the model keeps f = {v.complement.mean:.2f} without the circuit: enough, but not needed; "
            "something outside does the same work."
        )
    if v.minimality.idle:
        found.append(f"Not minimal: {len(v.minimality.idle)} of {v.minimality.checked} parts can go without loss.")
    if stability is not None and stability < STABLE:
        found.append(f"UNSTABLE: circuits found on resampled prompts overlap by {stability:.2f} (Jaccard) only.")
    return tuple(found)


def _beaten(which: str, why: str, f: float, rivals: Rivals) -> list[str]:
    """A warning where random circuits do as well, or where there are too few to tell."""
    n = len(rivals.values)
    if rivals.p is None:
        return [f"No {which} to compare with ({rivals.drawn})."]
    if n < ENOUGH:
        return [f"With {n} {which} p cannot be below {1 / (1 + n):.2g}; {ENOUGH} or more allow .05 ({rivals.drawn})."]
    if rivals.p <= 0.05:
        return []
    as_good = sum(r >= f for r in rivals.values)
    return [f"{as_good} of {n} {which} are at least as faithful (p = {rivals.p:.2g}): {why}."]
