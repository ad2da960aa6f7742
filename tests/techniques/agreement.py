"""Subject and verb: 'The cat near the road' -> ' is', 'The cats near the road' -> ' are'.

Only the number of the noun differs. Held-out prompts have other nouns, other last words and partly another template.
"""

from __future__ import annotations

import random

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
LAST = ("house", "road", "river", "garden", "school", "bridge", "office", "park", "door", "station")
TEMPLATES = ("The {} near the {}", "The {} behind the {}", "The {} next to the {}", "The {} beside the {}")
KEPT_BACK = "The {} that I saw in the {}"


def agreement(model: Model, n: int, held_out: int, seed: int = 0) -> tuple[PromptSet, PromptSet]:
    """Discovery and held-out prompts: singular is clean, plural corrupted; the noun's position is 'NOUN'."""
    single = [w for w in NOUNS if len(model.token_ids(f" {w}")) == len(model.token_ids(f" {w}s")) == 1]
    draw = random.Random(seed)
    draw.shuffle(single)
    half = len(single) // 2
    return (
        _part(draw, single[:half], LAST[:5], TEMPLATES, n, "discovery"),
        _part(draw, single[half:], LAST[5:], (*TEMPLATES[:2], KEPT_BACK), held_out, "held_out"),
    )


def _part(
    draw: random.Random, nouns: list[str], last: tuple[str, ...], templates: tuple[str, ...], n: int, split: str
) -> PromptSet:
    every = [(noun, word, text) for noun in nouns for word in last for text in templates]
    return PromptSet(
        handle=f"agreement-{split}", task="agreement", split=split,  # type: ignore[arg-type]
        prompts=tuple(
            Prompt(
                clean=text.format(noun, word), corrupted=text.format(f"{noun}s", word), answer=" is", wrong=" are",
                roles={"NOUN": 1, "NEXT": 2}, template=text, cluster=noun,
            )
            for noun, word, text in draw.sample(every, n)
        ),
    )  # fmt: skip
