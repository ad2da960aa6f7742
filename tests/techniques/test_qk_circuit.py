"""qk_circuit: the hand-set circuit by hand, every family against scores read from the model itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from anatomist.errors import BadArguments, BadSite, Unsupported
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.edits import Edit
from anatomist.model.loading import random_twin, wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.technique import Context
from anatomist.techniques.qk_circuit import Arguments, QKResult, plot, run
from transformers import Gemma2Config, Gemma2ForCausalLM

from tests.backends.families import FAMILIES, randomised

STATIC = ("gpt2", "llama", "gpt_neox", "qwen2", "gemma2")


def look(model: Model, **more: Any) -> QKResult:
    return run(Context(model), Arguments(model="m", **more))


@pytest.fixture(scope="module")
def hand() -> ToyModel:
    return induction()


@cache
def model_of(family: str) -> Model:
    return wrap_model(gemma2() if family == "gemma2" else FAMILIES[family](), None, name=family)


def gemma2() -> Gemma2ForCausalLM:
    """Scores capped at 2, so that the cap is felt; windows of four in every other layer."""
    config = Gemma2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, sliding_window=4, attn_logit_softcapping=2.0,
    )  # fmt: skip
    return randomised(Gemma2ForCausalLM(config))  # type: ignore[return-value]


def read_scores(model: Model, layer: int, head: int, ids: list[int]) -> torch.Tensor:
    """The model's scores [query, key] where the residual before a layer is the embedding of each token."""
    tokens, site = model.tokenize([ids]), Site("scores", layer, head)
    edit = Edit(site=Site("resid_pre", layer), rule="set", value=model.weights.embed()[ids][None])
    return model.run(tokens, read=[site], edits=[edit]).reads[site][0]


@pytest.mark.hand_worked
def test_the_previous_token_head_scores_position_by_position(hand: ToyModel) -> None:
    """By construction the query of position i is 40 x the key of i - 1 and of no other; token against token gives 0."""
    found = look(hand, head="L0H1", between="positions", positions=10)
    for q in range(10):
        for k in range(10):
            expected = None if k > q else 40.0 if k == q - 1 else 0.0
            assert found.tables[0].at(q, k) == (None if expected is None else pytest.approx(expected, abs=1e-4))
    assert found.profile is not None
    assert found.profile.values == pytest.approx([0, 40, *[0] * 8], abs=1e-4)
    between_tokens = look(hand, head="L0H1", extremes=1)
    assert between_tokens.largest[0].score == between_tokens.smallest[0].score == 0
    assert "every score is 0" in between_tokens.summary


@pytest.mark.hand_worked
def test_the_induction_head_seeks_its_own_token_in_what_the_previous_token_head_wrote(hand: ToyModel) -> None:
    """Through L0H1 the matrix is 40 x identity; directly it is 0: no embedding holds anything in the buffer."""
    every = tuple(range(20))
    found = look(hand, head="L1H2", keys_through="L0H1", tokens=every)
    assert found.tables[0].values == pytest.approx((40 * torch.eye(20)).flatten().tolist(), abs=1e-4)
    assert found.matching[0].score == pytest.approx(1)
    assert found.singular_values == pytest.approx([40.0] * 10, rel=1e-4)
    assert not any(look(hand, head="L1H2", tokens=every).tables[0].values or (1,))


@pytest.mark.positive_control
@pytest.mark.parametrize("family", STATIC)
@pytest.mark.parametrize(("layer", "head"), [(0, 1), (2, 3)])
def test_scores_are_the_models_own(family: str, layer: int, head: int) -> None:
    """Rules out a wrong group of keys, a rotation the wrong way or by another base, a lost bias, scaling or cap."""
    model = model_of(family)
    ids = [5, 60, 17, 42]
    own = read_scores(model, layer, head, ids)
    rotary = model.info.positional == "rotary"
    found = look(
        model, head=f"L{layer}H{head}", tokens=tuple(ids), extremes=0, **({"offsets": (0, 1, 2, 3)} if rotary else {})
    )
    for q in range(4):
        for k in range(q + 1):
            table = found.tables[q - k if rotary else 0]
            assert table.at(q, k) == pytest.approx(float(own[q, k]), abs=1e-4)
    assert found.self_tests[0].passed


def test_in_block_0_of_a_rotary_model_scores_are_those_of_a_plain_prompt() -> None:
    model = model_of("llama")
    ids, site = [5, 60, 17], Site("scores", 0, 2)
    own = model.run(model.tokenize([ids]), read=[site]).reads[site][0]
    found = look(model, head="L0H2", tokens=(17,), key_tokens=(60, 5), offsets=(1, 2), extremes=0)
    assert found.tables[0].at(0, 0) == pytest.approx(float(own[2, 1]), abs=1e-5)
    assert found.tables[1].at(0, 1) == pytest.approx(float(own[2, 0]), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_extremes_are_those_of_all_pairs_scored_by_the_model(family: str) -> None:
    """All 97 x 97 pairs as prompts of two tokens; the cap keeps the order."""
    model = model_of(family)
    pairs = [[k, q] for q in range(97) for k in range(97)]
    site = Site("scores", 0, 3)
    own = torch.cat([
        model.run(model.tokenize(pairs[i : i + 1000]), read=[site]).reads[site][:, 1, 0] for i in range(0, 97**2, 1000)
    ])  # fmt: skip
    found = look(model, head="L0H3", extremes=20)
    assert [p.score for p in found.largest] == pytest.approx(own.sort(descending=True).values[:20].tolist(), abs=1e-4)
    assert [p.score for p in found.smallest] == pytest.approx(own.sort().values[:20].tolist(), abs=1e-4)
    k, q = pairs[int(own.argmax())]
    assert (found.largest[0].query, found.largest[0].key) == (f"<{q}>", f"<{k}>")


def test_keys_through_a_head_are_what_it_writes_where_it_sees_the_token_alone() -> None:
    """Layer 0 on a prompt of one token: attention has one place to go, and the head's z is its value."""
    model, ids = model_of("qwen2"), [5, 60, 17]
    z = model.run(model.tokenize([[i] for i in ids]), read=[Site("head", 0, 2)]).reads[Site("head", 0, 2)][:, 0]
    written = z @ model.weights.o(0)[2]
    site = Site("scores", 1, 1)
    both = torch.stack([written, model.weights.embed()[ids]], dim=1)  # key at 0, query at 1
    edit = Edit(site=Site("resid_pre", 1), rule="set", value=both)
    own = model.run(model.tokenize([[0, 0]] * 3), read=[site], edits=[edit]).reads[site][:, 1, 0]
    found = look(model, head="L1H1", keys_through="L0H2", tokens=tuple(ids), extremes=0)
    assert [found.tables[0].at(i, i) for i in range(3)] == pytest.approx(own.tolist(), abs=1e-4)


def test_after_block_0_a_token_is_the_residual_of_a_prompt_of_itself() -> None:
    model, ids = model_of("llama"), [5, 60]
    after = model.run(model.tokenize([[i] for i in ids]), read=[Site("resid_post", 0)]).reads[Site("resid_post", 0)]
    site = Site("scores", 2, 0)
    edit = Edit(site=Site("resid_pre", 2), rule="set", value=after[:, 0][None])
    own = model.run(model.tokenize([[0, 0]]), read=[site], edits=[edit]).reads[site][0]
    found = look(model, head="L2H0", tokens=(60,), key_tokens=(5,), tokens_as="after_block_0", extremes=0)
    assert found.tables[0].at(0, 0) == pytest.approx(float(own[1, 0]), abs=1e-4)


@pytest.mark.negative_control
def test_heads_of_an_untrained_model_match_no_more_than_random_matrices() -> None:
    """Of 12 heads about 2 in 21 lie outside the range of 20 draws; the trained-looking score of 1 is far outside."""
    untrained = random_twin(model_of("llama"), 3)
    outside = 0
    for layer in range(3):
        for head in range(4):
            (m,) = look(untrained, head=f"L{layer}H{head}", extremes=1, offsets=(0,)).matching
            outside += not min(m.null) <= m.score <= max(m.null)
            assert len(m.null) == 20
    assert outside <= 4


def test_it_says_what_the_numbers_depend_on() -> None:
    assert "at the stated offset alone" in " ".join(look(model_of("llama"), head="L1H1").warnings)
    assert "key-value head L1KV1" in look(model_of("llama"), head="L1H2").head
    assert "left out" in " ".join(look(model_of("gpt2"), head="L1H1").warnings)
    assert look(model_of("gpt2"), head="L1H1").profile is None


def test_the_picture_has_a_table_for_each_offset_and_the_profile() -> None:
    figure = plot(look(model_of("llama"), head="L1H1", offsets=(1, 4)))
    assert [p.kind for p in figure.panels] == ["heatmap", "heatmap", "lines"]


@pytest.mark.bad_input
@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_normalised_queries_have_no_static_matrix_and_it_says_so(family: str) -> None:
    with pytest.raises(Unsupported, match="no static QK matrix"):
        look(wrap_model(FAMILIES[family](), None, name=family), head="L0H0")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("gpt2", {"offsets": (1,)}, "only rotary models turn scores"),
        ("llama", {"between": "positions"}, "has no position embeddings"),
        ("llama", {"offsets": (64,)}, "from 0 to 63"),
        ("gemma2", {"head": "L0H0", "offsets": (4,)}, "from 0 to 3"),
        ("llama", {"keys_through": "L2H0"}, "must lie before layer 2"),
        ("llama", {"head": "L0H0", "tokens_as": "after_block_0"}, "use tokens_as='embedding'"),
        ("llama", {"tokens": (97,)}, "ids are 0 to 96"),
        ("llama", {"tokens": (3, 3)}, "each once"),
        ("llama", {"extremes": 0}, "nothing to show"),
        ("gpt2", {"between": "positions", "tokens": (3,)}, "no tokens on its axes"),
        ("gpt2", {"between": "positions", "positions": 128}, "the model has 64"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_next_step(family: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArguments, match=message):
        look(model_of(family), **{"head": "L2H1", **arguments})


@pytest.mark.bad_input
def test_a_head_or_token_that_does_not_exist_is_refused(hand: ToyModel) -> None:
    with pytest.raises(BadSite, match="L5H0 does not exist"):
        look(hand, head="L5H0")
    with pytest.raises(BadArguments, match="'t1 t2' is 2 tokens"):
        look(hand, head="L1H2", tokens=("t1 t2",))
