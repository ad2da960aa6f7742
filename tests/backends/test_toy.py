"""The tiny toy worked out on paper, and what a toy refuses."""

from __future__ import annotations

import pytest
import torch
from anatomist.errors import BadArguments, BadPrompts, BadSite, Unavailable, Unsupported
from anatomist.model.backends.toy_circuits import TOYS, random_toy, tiny
from anatomist.model.edits import Edit
from anatomist.model.protocol import Model, Weights
from anatomist.model.sites import Site

# Tokens t0 t1 t2 have the embeddings (1, 0), (0, 1), (-1, 2). Attention is uniform, so z is the running mean:
# (1, 0), (1/2, 1/2), (0, 1). The output matrix doubles the first dimension and drops the second.
# resid_mid = embed + attn_out; the neurons are relu(x0) and relu(-x1), each written to the other's dimension.
WORKED = {
    Site("embed"): [[1, 0], [0, 1], [-1, 2]],
    Site("attn_out", 0): [[2, 0], [1, 0], [0, 0]],
    Site("resid_mid", 0): [[3, 0], [1, 1], [-1, 2]],
    Site("neuron", 0): [[3, 0], [1, 0], [0, 0]],
    Site("mlp_out", 0): [[0, 3], [0, 1], [0, 0]],
    Site("resid_post", 0): [[3, 3], [1, 2], [-1, 2]],
    Site("logits"): [[3, 3, 6], [1, 2, 3], [-1, 2, 1]],
}


@pytest.mark.hand_worked
def test_every_number_of_the_tiny_toy_is_the_one_on_paper() -> None:
    model = tiny()
    run = model.run(model.tokenize(["t0 t1 t2"]), read=[*WORKED, Site("pattern", 0), Site("head", 0)], logits_at="all")
    for site, expected in WORKED.items():
        assert run.reads[site][0].tolist() == expected
    assert torch.allclose(run.reads[Site("pattern", 0)][0, 0, 2], torch.full((3,), 1 / 3))
    assert torch.allclose(run.reads[Site("head", 0)][0, :, 0], torch.tensor([[1, 0], [0.5, 0.5], [0, 1.0]]))


@pytest.mark.hand_worked
def test_an_edit_in_the_tiny_toy_has_the_effect_worked_out() -> None:
    """Attention removed at position 1: resid_mid (0, 1), no neuron fires, the logits are 0, 1 and 1."""
    model = tiny()
    tokens = model.tokenize([[0, 1, 2]])
    run = model.run(tokens, edits=[Edit(site=Site("attn_out", 0), rule="zero", positions=(1,))], logits_at=[1])
    assert run.logits is not None
    assert run.logits.tolist() == [[0.0, 1.0, 1.0]]
    assert run.fired == (1,)


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_is_a_model_that_describes_itself(name: str) -> None:
    model = TOYS[name]()
    assert isinstance(model, Model)
    assert isinstance(model.weights, Weights)
    assert model.info.name == name
    assert model.info.weights_hash == TOYS[name]().info.weights_hash
    assert ("neuron" in model.info.sites) == (model.info.d_mlp > 0)


def test_the_fingerprint_tells_weights_apart() -> None:
    assert random_toy(seed=0).info.weights_hash != random_toy(seed=1).info.weights_hash


def test_keys_and_values_may_be_fewer_than_queries() -> None:
    """The same key and value twice is what two query heads that share one see."""
    shared = random_toy(heads=2, kv_heads=1)
    tokens = shared.tokenize([[1, 2, 3]])
    reads = shared.run(tokens, read=[Site("k", 0), Site("q", 0), Site("scores", 0)]).reads
    q, k = reads[Site("q", 0)], reads[Site("k", 0)]
    assert k.shape == (1, 3, 1, 4)
    assert torch.allclose(reads[Site("scores", 0)][0, 1, 2], q[0, 2, 1] @ k[0, :, 0].T / 2, atol=1e-6)


def test_words_and_ids_are_the_same_tokens() -> None:
    model = tiny()
    assert model.tokenize(["t2 t0"]) == model.tokenize([[2, 0]])
    assert model.token_ids(" t1") == (1,)
    assert model.token_strings([2]) == ("t2",)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("t3", "'t3' is not a token; a toy's tokens are 't0' to 't2'"),
        ("", "has 0 tokens"),
        ([3], "token id 3; ids are 0 to 2"),
        ([0] * 17, "17 tokens; this model takes 1 to 16"),
    ],
)
def test_a_prompt_outside_the_toys_language_is_an_error(prompt: str | list[int], words: str) -> None:
    with pytest.raises(BadPrompts, match=words):
        tiny().tokenize([prompt])


@pytest.mark.bad_input
def test_what_a_toy_lacks_is_an_error() -> None:
    model = TOYS["toy-induction"]()
    tokens = model.tokenize(["t1 t2"])
    with pytest.raises(BadSite, match="no 'neuron'"):
        model.run(tokens, read=[Site("neuron", 0)])
    with pytest.raises(BadPrompts, match="no BOS token"):
        model.tokenize(["t1"], bos=True)
    with pytest.raises(Unsupported, match="no chat template"):
        model.chat("hello")
    with pytest.raises(BadArguments, match="max_new_tokens=0"):
        model.generate(tokens, max_new_tokens=0)
    with pytest.raises(BadPrompts, match="at most 62 new tokens"):
        model.generate(tokens, max_new_tokens=63)
    model.close()
    with pytest.raises(Unavailable, match="was closed"):
        model.run(tokens, logits_at="all")


def test_a_rows_sampled_text_does_not_depend_on_the_rows_beside_it() -> None:
    model = random_toy()
    rows = [[1, 2, 3], [4, 5], [6, 7, 8]]
    together = model.generate(model.tokenize(rows), max_new_tokens=5, temperature=1.0, seed=3)
    alone = model.generate(model.tokenize(rows[:1]), max_new_tokens=5, temperature=1.0, seed=3)
    assert together[0] == alone[0]
    assert len(set(together)) == 3
