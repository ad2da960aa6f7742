"""On a circuit that is known, the heads are found, and the behaviour goes with them."""

import sys
from pathlib import Path

from anatomist.host import Host

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import study


def test_the_known_heads_are_found_and_removed(tmp_path: Path) -> None:
    config = {
        "model": "toy-induction", "task": "induction", "others": ["induction"], "prompts": 32, "heads": 2,
        "controls": 5, "seed": 0, "neutral": ["t1 t2 t3 t4 t5 t6"],
    }  # fmt: skip
    result = study(Host(tmp_path), config)
    assert sorted(result["found"]["heads"]) == ["L0H1", "L1H2"]
    assert result["removed"]["run"].startswith("r-")
