"""The study runs from the dictionary to the features that are needed, on a small model with a dictionary of its own."""

import random
import sys
from pathlib import Path

from anatomist.host import Host

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import study


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
    result = study(host, config)
    assert result["needed"]["run"].startswith("r-")
