"""A dictionary of a small model is trained, kept, and judged."""

import random
import sys
from pathlib import Path

from anatomist.host import Host

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import study


def test_a_dictionary_is_trained_and_judged(tmp_path: Path) -> None:
    rng = random.Random(0)
    text = [" ".join(f"t{rng.randrange(20)}" for _ in range(64)) for _ in range(256)]
    config = {
        "model": "toy-induction", "site": "blocks.1.resid_post", "text": text, "architecture": "topk", "features": 128,
        "k": 4, "tokens": 2048, "steps": 30, "width": 16, "judged_on": 256, "seed": 0,
    }  # fmt: skip
    result = study(Host(tmp_path), config)
    assert Path(result["trained"]["folder"]).is_dir()
    assert result["judged"]["run"].startswith("r-")
    assert not [words for words in result["judged"]["warnings"] if "this very text" in words]
