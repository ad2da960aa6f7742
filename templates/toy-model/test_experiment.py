"""A short training is enough for the circuit, and too short a one is said to be too short."""

import sys
from pathlib import Path

from anatomist.host import Host

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import study


def test_the_predicted_circuit_grows(tmp_path: Path) -> None:
    result = study(Host(tmp_path), {"kind": "induction", "steps": 400, "prompts": 32, "seed": 0})
    into = {side: path["mean_change"] for side, path in result["paths_into"].items()}
    assert min(into, key=into.get) == "k"
    assert into["k"] < -0.5
    assert result["without_induction_heads"]["fraction_lost"] > 0.8


def test_a_model_that_was_not_trained_long_enough_stops_the_study(tmp_path: Path) -> None:
    result = study(Host(tmp_path), {"kind": "induction", "steps": 20, "prompts": 32, "seed": 0})
    assert "train longer" in result["stopped"]
