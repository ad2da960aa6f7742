"""Subject and verb: 'The cat near the road' -> ' is', 'The cats near the road' -> ' are'.

Only the number of the noun differs. Three parts that share no noun and no place: one to learn from, one to choose
settings on (half its templates are new), and one to confirm with, of which wording and verb are new too. A figure to
report comes from the third, which nothing may be chosen on.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from anatomist.model.protocol import Model
from anatomist.prompts.prompt_set import Prompt, PromptSet

NOUNS = (
    "cat", "dog", "car", "key", "book", "cup", "tree", "bird", "horse", "boat", "window", "chair", "table", "lamp",
    "phone", "ball", "bag", "shoe", "hat", "coat", "clock", "map", "ring", "coin", "card", "plate", "bowl", "spoon",
    "pen", "pencil", "letter", "picture", "plant", "flower", "stone", "wall", "train", "truck", "bike", "plane",
    "ship", "teacher", "student", "doctor", "nurse", "writer", "actor", "singer", "player", "worker", "farmer",
    "driver", "lawyer", "artist", "king", "queen", "prince", "boy", "girl", "friend", "guest", "visitor", "soldier",
    "officer", "guard", "captain", "machine", "engine", "computer", "camera", "radio", "screen", "button", "wheel",
    "bell", "drum", "guitar", "song", "poem", "film", "movie", "game", "toy", "apple", "orange", "banana", "egg",
    "cake", "cookie", "burger", "bottle", "bucket", "rule", "law", "idea", "plan", "question", "answer", "reason",
    "problem", "method", "model", "result", "report", "article", "page",
)  # fmt: skip
PLACES = ("house", "road", "river", "garden", "school", "bridge", "office", "park", "door", "station")
TEMPLATES = ("The {} near the {}", "The {} behind the {}", "The {} next to the {}", "The {} beside the {}")
KEPT_BACK = "The {} that I saw in the {}"
VERBS = (" is", " are")

NEW_NOUNS = (
    "desk", "mirror", "candle", "carpet", "pillow", "towel", "curtain", "statue", "painting", "tent", "printer",
    "robot", "sensor", "motor", "sword", "shield", "crown", "diamond", "tiger", "lion", "rabbit", "turtle", "snake",
    "spider", "duck", "cow", "goat", "monkey", "elephant", "eagle", "owl", "parent", "brother", "sister", "cousin",
    "colleague", "manager", "owner", "customer", "judge", "painter", "dancer", "pilot", "sailor", "hunter", "tourist",
    "scientist", "engineer", "professor", "editor", "priest", "ticket", "envelope", "notebook", "document",
    "magazine", "poster", "photo", "jacket", "glove", "carrot", "lemon", "rocket", "vehicle", "balloon", "package",
    "instrument", "microphone", "proposal", "decision", "signal", "program",
)  # fmt: skip
NEW_PLACES = ("church", "castle", "museum", "market", "village", "tunnel", "library", "airport", "hospital", "beach")
NEW_TEMPLATES = (
    "My {} from the {}",
    "Their {} across from the {}",
    "In fact, the {} by the {}",
    "We know that the {} inside the {}",
    "The {} which they found at the {}",
)
NEW_VERBS = (" was", " were")


class Agreement(NamedTuple):
    """Prompt sets; singular is clean, plural corrupted, the noun's position is 'NOUN' and the one after it 'NEXT'."""

    learning: PromptSet
    development: PromptSet
    confirmatory: PromptSet


def agreement(model: Model, learning: int, development: int, confirmatory: int, seed: int = 0) -> Agreement:
    """As many prompts of each part as asked for. Nouns of several tokens (of either number) are left out."""
    nouns, new_nouns = (_single(model, words) for words in (NOUNS, NEW_NOUNS))
    draw, apart = random.Random(seed), random.Random(seed)  # the last part is the same however many the others have
    draw.shuffle(nouns)
    half = len(nouns) // 2
    return Agreement(
        _part(model, draw, nouns[:half], PLACES[:5], TEMPLATES, VERBS, learning, "discovery"),
        _part(model, draw, nouns[half:], PLACES[5:], (*TEMPLATES[:2], KEPT_BACK), VERBS, development, "held_out"),
        _part(model, apart, new_nouns, NEW_PLACES, NEW_TEMPLATES, NEW_VERBS, confirmatory, "held_out"),
    )


def followed_by(prompts: PromptSet, verbs: tuple[str, str]) -> PromptSet:
    """The same prompts asked for another verb, singular first."""
    asked = {"answer": verbs[0], "wrong": verbs[1]}
    return prompts.model_copy(update={"prompts": tuple(p.model_copy(update=asked) for p in prompts.prompts)})


def _single(model: Model, words: tuple[str, ...]) -> list[str]:
    return [w for w in words if len(model.token_ids(f" {w}")) == len(model.token_ids(f" {w}s")) == 1]


def _part(
    model: Model, draw: random.Random, nouns: list[str], places: tuple[str, ...], templates: tuple[str, ...],
    verbs: tuple[str, str], n: int, split: str,
) -> PromptSet:  # fmt: skip
    every = [(noun, place, text) for noun in nouns for place in places for text in templates]
    at = {text: len(model.token_ids(text.split(" {}")[0])) for text in templates}
    return PromptSet(
        handle=f"agreement-{split}", task="agreement", split=split,  # type: ignore[arg-type]
        prompts=tuple(
            Prompt(
                clean=text.format(noun, place), corrupted=text.format(f"{noun}s", place), answer=verbs[0],
                wrong=verbs[1], roles={"NOUN": at[text], "NEXT": at[text] + 1}, template=text, cluster=noun,
            )
            for noun, place, text in draw.sample(every, n)
        ),
    )  # fmt: skip
