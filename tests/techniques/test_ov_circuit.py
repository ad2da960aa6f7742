"""ov_circuit: the hand-set circuit by hand, every family through the model's own residual, norms and unembedding."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from anatomist.errors import BadArguments, BadSite
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, tiny
from anatomist.model.edits import Edit
from anatomist.model.loading import random_twin, wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.technique import Context
from anatomist.techniques.ov_circuit import Arguments, OVResult, plot, run

from tests.backends.families import FAMILIES


def look(model: Model, **more: Any) -> OVResult:
    return run(Context(model), Arguments(model="m", **more))


@pytest.fixture(scope="module")
def hand() -> ToyModel:
    return induction()


@cache
def model_of(family: str) -> Model:
    return wrap_model(FAMILIES[family](), None, name=family)


def effects_in_the_model(model: Model, layer: int, head: int, ids: list[int]) -> torch.Tensor:
    """[token read, V]: z where a head sees one residual alone, written to the end of the residual; biases taken away.

    The logits of the written vector, times its own scale, are those of a scale of one.
    """
    last, site = model.info.n_layers - 1, Site("head", layer, head)
    x = torch.cat([model.weights.embed()[ids], torch.zeros(1, model.info.d_model)])  # the last: nothing but biases
    one = model.tokenize([[0]] * len(x))
    before = Edit(site=Site("resid_pre", layer), rule="set", value=x[:, None])
    z = model.run(one, read=[site], edits=[before]).reads[site][:, 0]
    written, post = (z[:-1] - z[-1]) @ model.weights.o(layer)[head], model.weights.post_attention_norm(layer)
    written = torch.cat([written if post is None else written * post.weight, torch.zeros(1, model.info.d_model)])
    after = Edit(site=Site("resid_post", last), rule="set", value=written[:, None])
    logits = model.run(one, edits=[after], logits_at=(0,) * len(x)).logits
    assert logits is not None
    return (logits[:-1] - logits[-1]) * model.weights.final_norm().scale(written[:-1])


@pytest.mark.hand_worked
def test_the_induction_head_copies_and_the_others_never_reach_the_logits(hand: ToyModel) -> None:
    """L1H2 writes the token it reads to the output, the unembedding there is 10: the matrix is 10 x identity.

    L0H1 writes to the buffer and the decoys to junk, which nothing unembeds.
    """
    every = tuple(range(20))
    found = look(hand, head="L1H2", tokens=every)
    assert found.table.values == pytest.approx((10 * torch.eye(20)).flatten().tolist(), abs=1e-5)
    assert found.copying.score == pytest.approx(1)
    assert (found.copying.top5, found.copying.bottom5, found.copying.top5_chance) == (1.0, 0.0, 0.25)
    assert found.singular_values == pytest.approx([10.0] * 10, rel=1e-5)
    for head in ("L0H1", "L0H0", "L1H3"):
        other = look(hand, head=head)
        assert other.largest[0].effect == other.smallest[0].effect == 0
        assert (other.copying.score, other.copying.top5, other.copying.bottom5) == (0, 0, 0)
        assert "every effect is 0" in other.summary


@pytest.mark.hand_worked
def test_a_head_of_width_two_by_hand() -> None:
    """toy-tiny: W_V is the identity, W_O doubles the first dimension and drops the second.

    Embeddings (1, 0), (0, 1), (-1, 2) are written as (2, 0), (0, 0), (-2, 0); unembedded x, y, x + y.
    """
    found = look(tiny(), head="L0H0", tokens=(0, 1, 2))
    assert found.table.values == (2, 0, 2, 0, 0, 0, -2, 0, -2)
    assert found.largest[0].effect == 2
    assert (found.smallest[0].source, found.smallest[0].effect) == ("t2", -2)


@pytest.mark.positive_control
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("layer", "head"), [(0, 1), (1, 3)])
def test_effects_are_the_models_own(family: str, layer: int, head: int) -> None:
    """Rules out a wrong group of values, a transposed output matrix, a forgotten centring or weight of a norm."""
    model, ids = model_of(family), [5, 60, 17]
    own = effects_in_the_model(model, layer, head, ids)
    found = look(model, head=f"L{layer}H{head}", tokens=tuple(ids), output_tokens=tuple(range(40)), extremes=0)
    scale = float(own.abs().max())
    assert found.table.values == pytest.approx(own[:, :40].flatten().tolist(), abs=1e-4 * scale)
    assert found.self_tests[0].passed


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_extremes_and_shares_are_those_of_the_matrix_written_out(family: str) -> None:
    model = model_of(family)
    whole = effects_in_the_model(model, 1, 2, list(range(97)))
    found = look(model, head="L1H2", extremes=15)
    ordered = whole.flatten().sort(descending=True).values
    assert [e.effect for e in found.largest] == pytest.approx(ordered[:15].tolist(), rel=1e-3)
    assert [e.effect for e in found.smallest] == pytest.approx(ordered.flip(0)[:15].tolist(), rel=1e-3)
    own = whole.diagonal()[:, None]
    assert found.copying.top5 == pytest.approx(float(((whole > own).sum(1) < 5).float().mean()))
    assert found.copying.bottom5 == pytest.approx(float(((whole < own).sum(1) < 5).float().mean()))
    values = torch.linalg.eigvals(whole.double())
    assert found.copying.score == pytest.approx(float(values.sum().real / values.abs().sum()), abs=1e-3)


def test_after_block_0_a_token_is_the_residual_of_a_prompt_of_itself() -> None:
    model, ids = model_of("llama"), [5, 60]
    after = model.run(model.tokenize([[i] for i in ids]), read=[Site("resid_post", 0)]).reads[Site("resid_post", 0)]
    norm, w = model.weights.attention_norm(2), model.weights
    written = norm(after[:, 0]) @ w.v(2)[1] @ w.o(2)[3] * w.final_norm().weight
    found = look(model, head="L2H3", tokens=tuple(ids), tokens_as="after_block_0", extremes=0)
    assert found.table.values == pytest.approx((written @ w.unembed(ids)).flatten().tolist(), abs=1e-4)


@pytest.mark.negative_control
def test_heads_of_an_untrained_model_copy_no_more_than_random_matrices() -> None:
    """With tied embeddings as well, where a head that does nothing could pass for a copier. 2 in 21 lie outside."""
    config_tied = FAMILIES["gpt2"]()
    assert config_tied.config.tie_word_embeddings
    untrained = random_twin(wrap_model(config_tied, None, name="gpt2"), 3)
    found = [look(untrained, head=f"L{layer}H{h}", extremes=1).copying for layer in range(3) for h in range(4)]
    assert sum(not min(c.null) <= c.score <= max(c.null) for c in found) <= 4
    assert sum(c.top5 for c in found) / 12 < 4 * found[0].top5_chance


def test_a_head_made_to_suppress_scores_minus_one(hand: ToyModel) -> None:
    model = induction()
    model.weights.blocks[1].o[2].neg_()
    found = look(model, head="L1H2")
    assert found.copying.score == pytest.approx(-1)
    assert (found.copying.top5, found.copying.bottom5) == (0.0, 1.0)


def test_it_says_what_the_numbers_leave_out() -> None:
    text = " ".join(look(model_of("gemma3"), head="L1H1").warnings)
    assert "applied, not folded" in text
    assert "norm after attention" in text
    assert "key-value head L1KV1" in look(model_of("llama"), head="L1H2").head
    assert not look(induction(), head="L1H2").warnings


def test_the_picture_shows_the_table_and_the_eigenvalues(hand: ToyModel) -> None:
    figure = plot(look(hand, head="L1H2"))
    assert [p.kind for p in figure.panels] == ["heatmap", "scatter"]
    assert "random matrices" in figure.caption


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extremes": 0}, "nothing to show"),
        ({"tokens": (20,)}, "ids are 0 to 19"),
        ({"tokens": ("t1 t2",)}, "is 2 tokens"),
        ({"output_tokens": (1, 1)}, "each once"),
        ({"head": "L0H1", "tokens_as": "after_block_0"}, "use tokens_as='embedding'"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_next_step(
    hand: ToyModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadArguments, match=message):
        look(hand, **{"head": "L1H2", **arguments})


@pytest.mark.bad_input
def test_a_head_that_does_not_exist_is_refused(hand: ToyModel) -> None:
    with pytest.raises(BadSite, match="L9H0 does not exist"):
        look(hand, head="L9H0")
