"""The study finds the two heads of a circuit that is known, and they pass the held-out test."""

import sys
from pathlib import Path

from anatomist.host import Host

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import study


def test_the_study_finds_the_known_circuit(tmp_path: Path) -> None:
    config = {
        "model": "toy-induction", "task": "induction", "prompts": 32, "positions": [], "heads": 5, "controls": 39,
        "seed": 0,
    }  # fmt: skip
    result = study(Host(tmp_path), config)
    assert sorted(result["alone"]["heads"]) == ["L0H1", "L1H2"]
    assert result["tested"]["mean"]["fraction_lost"] > 0.5
    assert result["tested"]["mean"]["run"].startswith("r-")
