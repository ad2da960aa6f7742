"""A short training gives a model that can be studied like any other."""

import sys
from pathlib import Path

from anatomist.host import Host

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import study


def test_a_model_is_trained_and_studied(tmp_path: Path) -> None:
    config = {"kind": "induction", "steps": 20, "prompts": 32, "controls": 19, "seed": 0}
    result = study(Host(tmp_path), config)
    assert all(head.startswith("L") for head in result["heads"]["named"])
    assert result["without_them"]["run"].startswith("r-")
