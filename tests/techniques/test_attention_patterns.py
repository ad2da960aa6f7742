"""attention_patterns: scores worked by hand, heads known by construction, decoys, and input that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anatomist.causal.attention_scores import ScoreName, scores, targets, uniform
from anatomist.errors import BadArguments, BadPosition, BadPrompts, BadSite, WouldNotFit
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, random_toy, tiny
from anatomist.model.protocol import Model
from anatomist.model.sites import head_name
from anatomist.model.tokens import Tokens
from anatomist.prompts.given import inline_set
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context
from anatomist.techniques.attention_patterns import Arguments, AttentionPatternsResult, plot, run
from torch import Tensor

TRUE = {"L0H1": "previous_token", "L1H2": "induction"}
# A B A C: A comes back at position 2, where B, the token after the first A, stands at 1.
IDS = (7, 8, 7, 9)
PATTERN = torch.tensor([
    [1.0, 0.0, 0.0, 0.0],
    [0.6, 0.4, 0.0, 0.0],
    [0.2, 0.5, 0.3, 0.0],
    [0.1, 0.2, 0.3, 0.4],
])  # fmt: skip


def look(
    model: Model, prompts: list[dict[str, Any]] | PromptSet, *, context: dict[str, Any] | None = None, **more: Any
) -> AttentionPatternsResult:
    given = prompts if isinstance(prompts, PromptSet) else inline_set(prompts)
    return run(Context(model, given, **(context or {})), Arguments(model="m", prompts="given", **more))


def repeated(n: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Eight different tokens, twice."""
    generator = torch.Generator().manual_seed(seed)
    halves = [torch.randperm(20, generator=generator)[:8].tolist() for _ in range(n)]
    return [{"clean": (*half, *half)} for half in halves]


def tokens(*rows: tuple[int, ...]) -> Tokens:
    return Tokens(rows, tuple(tuple(f"t{i}" for i in row) for row in rows), False)


def one(pattern: Tensor, name: ScoreName, ids: tuple[int, ...] = IDS) -> tuple[float, bool]:
    value, defined = scores(pattern[None, None], tokens(ids))[name]
    return float(value), bool(defined)


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("previous_token", (0.6 + 0.5 + 0.3) / 3),  # below the diagonal, from position 1 on
        ("induction", 0.5),  # only position 2 repeats a token; the one after its first copy is at 1
        ("duplicate_token", 0.2),  # the first copy itself, at 0
        ("first_token", (0.6 + 0.2 + 0.1) / 3),
        # -(.6 ln .6 + .4 ln .4) = .6730, -(.2 ln .2 + .5 ln .5 + .3 ln .3) = 1.0297,
        # -(.1 ln .1 + .2 ln .2 + .3 ln .3 + .4 ln .4) = 1.2799; their mean:
        ("entropy", 0.99419),
    ],
)
def test_each_score_of_a_small_pattern_is_the_one_worked_out_on_paper(name: ScoreName, expected: float) -> None:
    assert one(PATTERN, name) == (pytest.approx(expected, abs=1e-4), True)


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("previous_token", (1 / 2 + 1 / 3 + 1 / 4) / 3),
        ("induction", 1 / 3),
        ("duplicate_token", 1 / 3),
        ("first_token", (1 / 2 + 1 / 3 + 1 / 4) / 3),
        ("entropy", (0.693147 + 1.098612 + 1.386294) / 3),  # ln 2, ln 3, ln 4
    ],
)
def test_uniform_attention_has_the_scores_of_its_positions(name: ScoreName, expected: float) -> None:
    assert one(uniform(tokens(IDS), PATTERN)[0, 0], name) == (pytest.approx(expected, abs=1e-5), True)


@pytest.mark.hand_worked
def test_a_token_seen_twice_before_has_two_keys_for_induction() -> None:
    # A A A: at 1 the token after the first A is A itself at 1, not before the query. At 2 it is position 1 (after the
    # A at 0); what comes after the A at 1 is the query itself, which does not count.
    found = targets(tokens((5, 5, 5)), PATTERN)
    assert found["induction"].nonzero().tolist() == [[0, 2, 1]]
    assert found["duplicate_token"].nonzero().tolist() == [[0, 1, 0], [0, 2, 0], [0, 2, 1]]


@pytest.mark.hand_worked
def test_padding_counts_for_nothing() -> None:
    """Rules out padded queries in the means, and padding taken for a repeated token."""
    alone = scores(PATTERN[None, None], tokens(IDS))
    wide = torch.zeros(2, 1, 6, 6)
    wide[0, 0, :4, :4], wide[1, 0] = PATTERN, torch.eye(6)
    both = scores(wide, tokens(IDS, (1, 2, 3, 4, 5, 6)))
    for name, (value, defined) in alone.items():
        assert float(both[name][0][0]) == pytest.approx(float(value), abs=1e-6)
        assert bool(both[name][1][0]) == bool(defined)
    assert not bool(both["induction"][1][1])


@pytest.mark.positive_control
def test_the_two_heads_of_the_hand_set_circuit_score_one(toy: Model) -> None:
    found = look(toy, repeated(), heads=tuple(TRUE))
    for head in found.heads:
        estimate = head.scores[TRUE[head.head]]
        assert estimate.mean == pytest.approx(1.0, abs=1e-6)
        assert estimate.n == 12
    assert f"{TRUE['L1H2']} 1.00" in found.summary


@pytest.mark.positive_control
@pytest.mark.parametrize(("rank_by", "head"), [("induction", "L1H2"), ("previous_token", "L0H1")])
def test_ranking_puts_the_right_head_first(toy: Model, rank_by: str, head: str) -> None:
    assert look(toy, repeated(), rank_by=rank_by, top=2).heads[0].head == head


@pytest.mark.positive_control
def test_the_pattern_shown_is_the_heads_own_on_the_prompt_asked_for(toy: Model) -> None:
    # t1 t2 t3 t1: L1H2's last query looks at t2 in position 1, L0H1 always one back.
    found = look(toy, [{"clean": "t4 t5"}, {"clean": "t1 t2 t3 t1"}], heads=("L1H2", "L0H1"), prompt=1)
    induction_head, previous = found.patterns
    assert induction_head.at(3, 1) == pytest.approx(1.0)
    assert [previous.at(p, p - 1) for p in (1, 2, 3)] == pytest.approx([1.0] * 3)
    assert previous.at(0, 1) is None  # not yet there to be seen
    assert induction_head.axes[0].labels == ("0:t1", "1:t2", "2:t3", "3:t1")
    assert found.heads[0].looks_at[0] == "1:t2 1.00"
    assert found.tokens == ("t1", "t2", "t3", "t1")


@pytest.mark.negative_control
def test_no_decoy_comes_near_the_true_heads(toy: Model) -> None:
    found = look(toy, repeated(24), heads=("L1H2",))
    grids = {grid.name: grid for grid in found.all_scores}
    for kind in ("previous_token", "induction"):
        others = [
            grids[kind].at(layer, head) or 0.0
            for layer in range(2) for head in range(4) if TRUE.get(head_name(layer, head)) != kind
        ]  # fmt: skip
        assert max(others) < found.baseline[kind] + 0.25
        assert sum(others) / 7 == pytest.approx(found.baseline[kind], abs=0.12)


@pytest.mark.negative_control
def test_a_model_that_attends_evenly_scores_the_baseline_everywhere() -> None:
    """Queries of the tiny toy are zero."""
    prompts = [{"clean": "t0 t1 t0 t2"}, {"clean": "t1 t1 t2"}]
    found = look(tiny(), prompts, heads=("L0H0",))
    got = {name: e.mean for name, e in found.heads[0].scores.items()}
    assert got == pytest.approx(found.baseline)


def test_layers_and_prompts_read_in_pieces_give_the_same_scores() -> None:
    model = random_toy(layers=4, vocabulary=13)
    prompts = [{"clean": tuple(range(1, n))} for n in (4, 9, 6, 12, 3)]
    seen: list[tuple[float, float]] = []
    # A pass takes 11,244 bytes besides 968 for each layer read: two layers at a time, a prompt at a time.
    tight = {"budget_bytes": 14_000, "progress": lambda done, total, what: seen.append((done, total))}
    whole, pieces = look(model, prompts, heads=("L3H1",)), look(model, prompts, heads=("L3H1",), context=tight)
    assert len(seen) >= 6
    assert all(done < total == 10 for done, total in seen)
    for one_grid, other in zip(whole.all_scores, pieces.all_scores, strict=True):
        assert other.values == pytest.approx(one_grid.values, abs=1e-6)


def test_scores_are_of_the_side_asked_for(toy: Model) -> None:
    prompts = [{"clean": "t1 t2 t3 t1", "corrupted": "t1 t2 t3 t4"}] * 2
    assert look(toy, prompts, heads=("L1H2",)).defined_on["induction"] == 2
    found = look(toy, prompts, heads=("L1H2",), side="corrupted")
    assert found.defined_on["induction"] == 0
    assert "induction" not in found.heads[0].scores
    assert "induction" not in {grid.name for grid in found.all_scores}
    assert any("induction is not defined" in w for w in found.warnings)


def test_prompts_without_the_position_are_left_out_of_a_score_and_counted(toy: Model) -> None:
    found = look(toy, [{"clean": "t1 t2 t3 t1"}, {"clean": "t1 t2 t3 t4"}], heads=("L1H2",))
    assert found.defined_on["induction"] == 1
    assert found.heads[0].scores["induction"].mean == pytest.approx(1.0)
    assert any("induction is defined on 1 of 2 prompts only" in w for w in found.warnings)


def test_patterns_are_kept_and_drawn_one_square_a_head_on_one_scale(toy: Model) -> None:
    context = Context(toy, inline_set(repeated(3)))
    found = run(context, Arguments(model="m", prompts="given", top=3))
    assert {a.tensor.shape for a in context.arrays.values()} == {(16, 16)}
    panels = plot(found).panels
    assert len(panels) == 3
    for panel, head in zip(panels, found.heads, strict=True):
        assert panel.kind == "heatmap"
        assert panel.domain == (0, 1)
        assert head.head in panel.title


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"heads": ("L1H9",)}, BadSite, "L1H9 does not exist.*heads 0 to 3"),
        ({"heads": ("9.6",)}, BadSite, "'9.6' is not a head"),
        ({"heads": ("L1H2", "L1H2")}, BadArguments, "each once"),
        ({"heads": ()}, BadArguments, "name 1 to 12"),
        ({"prompt": 2, "heads": ("L1H2",)}, BadPosition, r"prompt 2 does not exist: there are 2 \(0 to 1\)"),
        ({"side": "corrupted"}, BadPrompts, "no `corrupted`"),
        ({}, BadArguments, "no prompt has a position that induction is defined on.*rank by another"),
    ],
)
def test_what_cannot_be_shown_says_why(toy: Model, more: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        look(toy, [{"clean": "t1 t2 t3 t4"}, {"clean": "t5 t6 t7 t8"}], **more)


@pytest.mark.bad_input
def test_more_heads_than_can_be_drawn_are_refused() -> None:
    model = random_toy(layers=7)
    heads = tuple(head_name(layer, head) for layer in range(7) for head in range(2))[:13]
    with pytest.raises(BadArguments, match="name 1 to 12"):
        look(model, [{"clean": "t1 t2 t1"}], heads=heads)


@pytest.mark.bad_input
def test_a_backend_without_patterns_is_refused_with_what_it_has() -> None:
    class Blind(ToyModel):
        """A toy whose backend cannot give patterns, as fused attention kernels cannot."""

        def __init__(self, weights: Any) -> None:
            super().__init__(weights, name="blind")
            self.info = self.info.model_copy(update={"sites": tuple(k for k in self.info.sites if k != "pattern")})

    with pytest.raises(BadSite, match=r"no 'pattern'; they have.*head"):
        look(Blind(induction().weights), repeated(2))


@pytest.mark.bad_input
def test_no_prompts_and_too_little_memory_are_errors(toy: Model) -> None:
    with pytest.raises(BadPrompts, match="no prompts"):
        run(Context(toy), Arguments(model="m", prompts="given"))
    with pytest.raises(WouldNotFit, match="shorter prompts"):
        look(toy, repeated(2), context={"budget_bytes": 1000})
