"""The study runs from the dictionary to the features that are needed, on a small model with a dictionary of its own."""

import random
import sys
from pathlib import Path

from anatomist.host import Host
from anatomist.prompts.prompt_set import Prompt, PromptSet

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import study, turned


def test_features_are_found_and_taken_away(tmp_path: Path) -> None:
    rng = random.Random(0)
    text = [" ".join(f"t{rng.randrange(20)}" for _ in range(64)) for _ in range(64)]
    host = Host(tmp_path)
    training = {
        "model": "toy-induction", "site": "blocks.1.resid_post", "text": text, "architecture": "topk", "features": 128,
        "k": 8, "tokens": 2048, "steps": 60, "width": 16, "name": "small",
    }  # fmt: skip
    folder = host.call("train_sae", training).result.folder
    config = {"model": "toy-induction", "sae": folder, "task": "induction", "prompts": 32, "seed": 0}
    config |= {"concept": "", "read_at": "last", "taken_away_at": [], "controls": 19}
    result = study(host, config)
    assert result["needed"]["run"].startswith("r-")


def test_the_concept_is_always_on_the_clean_side_and_a_pair_of_texts_comes_once() -> None:
    nurse = Prompt(clean="The nurse said", corrupted="The pilot said", answer=" she", wrong=" he")
    pilot = Prompt(clean="The pilot said", corrupted="The nurse said", answer=" he", wrong=" she")
    smith = Prompt(clean="The smith said", corrupted="The maid said", answer=" he", wrong=" she")
    part = PromptSet(handle="h", task="gender_bias", split="discovery", prompts=(nurse, pilot, smith))
    sides = [(p.clean, p.corrupted, p.answer, p.wrong) for p in turned(part, " she").prompts]
    assert sides == [
        ("The nurse said", "The pilot said", " she", " he"), ("The maid said", "The smith said", " she", " he"),
    ]  # fmt: skip
