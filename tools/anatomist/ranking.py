"""Ranking texts by the words they share with a question; rare words count more."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Texts = tuple[tuple[float, str], ...]  # weight and text
_COMMON_TEXT = """
    a an and are at be by can do does for from have how i in is it its me model my of on or show tell that the there
    these this those to use want was were what when where which who why will with would you
"""
_COMMON = frozenset(_COMMON_TEXT.split())


class Ranking:
    """Texts by key, indexed by their words."""

    def __init__(self, texts: Mapping[str, Texts]) -> None:
        self._weights = {key: _weighted(parts) for key, parts in texts.items()}
        holders: dict[str, int] = {}
        for weights in self._weights.values():
            for word in weights:
                holders[word] = holders.get(word, 0) + 1
        self._rarity = {word: math.log(1 + len(texts) / n) for word, n in holders.items()}

    def score(self, key: str, question: str) -> float:
        """Sum over the question's words of how much each counts in the text."""
        weights = self._weights[key]
        return sum(weights[w] * self._rarity[w] for w in set(words(question)) if w in weights)

    def best(self, question: str, items: Sequence[Item], key: Callable[[Item], str]) -> list[Item]:
        """Items that share a word with the question, the best first."""
        scored = [(self.score(key(item), question), item) for item in items]
        return [item for score, item in sorted(scored, key=lambda pair: -pair[0]) if score > 0]


def words(text: str) -> list[str]:
    """Words that mean something, cut to a stem: 'heads' and 'head', 'patching' and 'patch' are one."""
    return [_stem(w) for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in _COMMON]


def _stem(word: str) -> str:
    for ending in ("ations", "ation", "ing", "ies", "es", "ed", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def _weighted(parts: Texts) -> dict[str, float]:
    found: dict[str, float] = {}
    for weight, text in parts:
        for word in words(text):
            found[word] = max(weight, found.get(word, 0.0))
    return found
