"""On a circuit that is known, the induction head is found, and the behaviour is lost without it."""

import sys
from pathlib import Path

from anatomist.host import Host

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import study


def test_the_known_induction_head_is_described(tmp_path: Path) -> None:
    config = {
        "model": "toy-induction", "head": "", "kind": "induction", "task": "induction", "prompts": 32, "controls": 39,
        "random_tokens": {"seeds": 2, "rows": 8}, "seed": 0,
    }  # fmt: skip
    result = study(Host(tmp_path), config)
    assert result["head"] == "L1H2"
    assert result["without_it"]["fraction_lost"] > 0.5
