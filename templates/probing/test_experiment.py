"""A property that is a token's own identity can be read from a small model."""

import sys
from pathlib import Path

from anatomist.host import Host

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import examples, study


def test_every_word_stands_in_every_template_and_keeps_its_label() -> None:
    made = examples({"animal": ["dog"], "vehicle": ["car", "bus"]}, ("A {}", "The {}"))
    assert [(e["text"], e["label"], e["group"]) for e in made] == [
        ("A dog", "animal", "dog"), ("The dog", "animal", "dog"), ("A car", "vehicle", "car"),
        ("The car", "vehicle", "car"), ("A bus", "vehicle", "bus"), ("The bus", "vehicle", "bus"),
    ]  # fmt: skip


def test_the_last_token_can_be_read(tmp_path: Path) -> None:
    rows = [
        {"text": f"t{a} t{b}", "label": "low" if b < 10 else "high", "group": f"t{a}"}
        for a in range(8)
        for b in range(20)
        if a != b
    ]
    config = {"model": "toy-induction", "site": "resid_post", "position": "last", "null_models": 0, "seed": 0}
    result = study(Host(tmp_path), {**config, "examples": rows})
    assert result["run"].startswith("r-")
