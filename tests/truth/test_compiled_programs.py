"""Compiled programs: the residual is the one Tracr computes, the answers are the program's, ablation finds its parts.

The fixtures in `tests/fixtures/tracr` are what Tracr itself computed; `convert.py` there made them and the weights.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from anatomist.errors import BadPrompts, Unsupported
from anatomist.host import Host
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_file import load_toy
from anatomist.model.loading import load_model, random_twin
from anatomist.model.programs import PROGRAMS, program_file
from anatomist.model.sites import Site
from anatomist.techniques.ablate import AblationResult
from safetensors import safe_open

FIXTURES = Path(__file__).parent.parent / "fixtures" / "tracr"
LONGEST = 5
Row = tuple[str, ...]


def rows(words: Sequence[str], *, distinct: bool = False) -> list[Row]:
    """Every row that the program takes."""
    drawn = itertools.permutations if distinct else lambda pool, n: itertools.product(pool, repeat=n)
    return [row for n in range(1, LONGEST + 1) for row in drawn(words, n)]


# What each program answers, said in Python.
ANSWERS: dict[str, tuple[list[Row], Callable[[Row], list[str]]]] = {
    "tracr-reverse": (rows("abcd"), lambda row: list(reversed(row))),
    "tracr-frac-prevs": (
        rows("xyz"), lambda row: [str(Fraction(row[: i + 1].count("x"), i + 1)) for i in range(len(row))]
    ),
    "tracr-hist": (rows("abcd"), lambda row: [str(row.count(word)) for word in row]),
    "tracr-sort-unique": (rows("12345", distinct=True), lambda row: sorted(row)),
}  # fmt: skip


@pytest.mark.positive_control
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_residual_is_the_compiled_one_to_the_last_bit(name: str) -> None:
    model = load_toy(program_file(name))
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as frozen:
        ids, residuals = frozen.get_tensor("ids").tolist(), frozen.get_tensor("residuals")
    tokens = model.tokenize([[i for i in row if i >= 0] for row in ids])
    halves = [Site(kind, layer) for layer in range(model.info.n_layers) for kind in ("resid_mid", "resid_post")]
    sites = [Site("embed"), *halves]
    reads = model.run(tokens, read=sites).reads
    for number, site in enumerate(sites):
        for row, length in enumerate(tokens.lengths):
            assert torch.equal(reads[site][row, :length], residuals[row, number, :length]), (site, row)


@pytest.mark.positive_control
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_answer_on_every_row_is_the_programs(name: str) -> None:
    """Rows of all lengths in one batch: a padded row must not see its padding, though it sees the whole row."""
    model = load_toy(program_file(name))
    given, answer = ANSWERS[name]
    tokens = model.tokenize([" ".join(row) for row in given])
    assert tokens.bos
    logits = model.run(tokens, logits_at="all").logits
    assert logits is not None
    best = logits.argmax(-1)
    for number, row in enumerate(given):
        found = model.token_strings(best[number, 1 : 1 + len(row)].tolist())
        assert list(found) == answer(row), row


@pytest.mark.positive_control
def test_the_fixture_holds_the_answers_that_tracr_decoded() -> None:
    """Rules out a reference in this file that is wrong in the same way as the conversion."""
    for name, (_, answer) in ANSWERS.items():
        model = load_toy(program_file(name))
        with safe_open(FIXTURES / f"{name}.safetensors", "pt") as frozen:
            ids, told = frozen.get_tensor("ids").tolist(), json.loads(frozen.metadata()["answers"])
        for row, decoded in zip(ids, told, strict=True):
            mine = answer(model.token_strings([i for i in row[1:] if i >= 0]))
            if name == "tracr-frac-prevs":
                assert [float(Fraction(x)) for x in mine] == pytest.approx(decoded[1:], abs=1e-6)
            else:
                assert mine == decoded[1:]


def reverse_prompts(length: int, n: int = 40) -> list[dict[str, object]]:
    """Rows of one length; the answer at the last position is the first token."""
    drawn = random.Random(0)
    found: list[dict[str, object]] = []
    for number in range(n):
        row = [drawn.choice("abcd") for _ in range(length)]
        wrong = drawn.choice([word for word in "abcd" if word != row[0]])
        found.append({"clean": " ".join(row), "answer": row[0], "wrong": wrong, "cluster": str(number)})
    return found


def flagged(host: Host, ablation: str, site: str) -> set[str]:
    """Parts that stand out under an ablation; all others must change nothing at all."""
    arguments = {"model": "tracr-reverse", "prompts": reverse_prompts(4), "site": site, "ablation": ablation}
    result = host.call("ablate", {**arguments, "controls": 0}).result
    assert isinstance(result, AblationResult)
    assert all(test.passed for test in result.self_tests)
    named = {part.cell for part in result.stand_out}
    change = result.effects[0].change
    for label, value in zip(change.axes[0].labels, change.values or (), strict=True):
        assert label in named or value == pytest.approx(0, abs=1e-4)
    return named


@pytest.mark.positive_control
@pytest.mark.negative_control
def test_what_ablation_flags_in_reverse_depends_on_the_ablation(tmp_path: Path) -> None:
    """Layer 0 computes the length, the MLPs the index to look at, layer 3 looks there. Among rows of one length the
    length is the same, so that another row's is as good: resampling flags what carries the token alone. Zero takes the
    length away as well."""
    host = Host(tmp_path)
    assert flagged(host, "resample", "attn_out") == {"L3 attn_out"}
    assert flagged(host, "resample", "mlp_out") == set()
    assert flagged(host, "zero", "attn_out") == {"L0 attn_out", "L3 attn_out"}
    assert flagged(host, "zero", "mlp_out") == {"L0 mlp_out", "L1 mlp_out", "L2 mlp_out"}


@pytest.mark.bad_input
def test_what_a_compiled_program_cannot_do_is_told() -> None:
    model = load_model("tracr-hist")
    assert isinstance(model, ToyModel)
    assert not model.info.causal
    with pytest.raises(Unsupported, match="does not continue text"):
        model.generate(model.tokenize(["a b"]), max_new_tokens=1)
    with pytest.raises(BadPrompts, match="'e' is not a token; this toy's tokens are 'BOS', 'a'"):
        model.tokenize(["a e"])
    with pytest.raises(BadPrompts, match=r"'0', '1', '2', '3', '4', '5' are answers only"):
        model.tokenize(["a 3"])
    with pytest.raises(BadPrompts, match="7 tokens; this model takes 1 to 6"):
        model.tokenize(["a b c d a b"])
    with pytest.raises(Unsupported, match="written and not learned"):
        random_twin(model, 0)


def test_the_programs_are_small() -> None:
    assert sum(program_file(name).stat().st_size for name in PROGRAMS) < 200_000
