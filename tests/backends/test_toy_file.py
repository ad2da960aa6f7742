"""Toy files: a model written and read is the same model; words with BOS and answers; models that see the whole row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from anatomist.errors import BadArguments, BadPrompts, CorruptFile, OutsideRoots, Unsupported
from anatomist.model.backends.proof import proven_kinds
from anatomist.model.backends.toy import ToyModel, plain_logits
from anatomist.model.backends.toy_circuits import random_toy
from anatomist.model.backends.toy_file import Form, load_toy, named_tensors, save_toy, toy_weights, untrained
from anatomist.model.backends.toy_words import Words
from anatomist.model.loading import load_model, random_twin
from anatomist.model.programs import PROGRAMS, program_file
from anatomist.model.protocol import Model, Weights
from anatomist.model.trained import TOY_FILE

from tests.backends.toy_forms import toy_of_gpt2


def form(**changed: object) -> Form:
    words = Words.numbered(11).strings
    return Form(**{"name": "kept", "source": "a test", "n_ctx": 16, "strings": words, **changed})  # type: ignore[arg-type]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    save_toy(tmp_path / TOY_FILE, named_tensors(random_toy().weights), form())
    return tmp_path


@pytest.mark.positive_control
def test_a_model_that_was_written_is_read_the_same(kept: Path) -> None:
    before, after = random_toy(), load_model(str(kept), roots=[kept.parent])
    assert after.info.weights_hash == before.info.weights_hash
    assert (after.info.name, after.info.source, after.info.backend) == ("kept", "a test", "toy")
    tokens = before.tokenize([[1, 2, 3]])
    a, b = (m.run(tokens, logits_at="all").logits for m in (before, after))
    assert a is not None
    assert b is not None
    assert torch.equal(a, b)


@pytest.mark.positive_control
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_compiled_program_is_a_model_with_all_its_places_proven(name: str) -> None:
    model = load_model(name)
    assert isinstance(model, Model)
    assert isinstance(model.weights, Weights)
    assert model.info.name == name
    assert (model.info.adds_bos, model.info.causal, model.info.norm) == (True, False, "none")
    assert proven_kinds(model) == model.info.sites


@pytest.mark.negative_control
def test_where_the_whole_row_is_seen_padding_is_not() -> None:
    """A short row beside a long one has the logits that it has alone; and its first position does see its last."""
    model = load_toy(program_file("tracr-hist"))
    together = model.run(model.tokenize(["a b", "c c d c"]), logits_at="all").logits
    alone = model.run(model.tokenize(["a b"]), logits_at="all").logits
    other = model.run(model.tokenize(["a a"]), logits_at="all").logits
    assert together is not None
    assert alone is not None
    assert other is not None
    assert torch.equal(together[0, :3], alone[0])
    assert not torch.equal(other[0, 1], alone[0, 1])


@pytest.mark.hand_worked
def test_words_with_a_bos_token_are_put_first_unless_told_otherwise() -> None:
    words = Words(("BOS", "a", "b", "1"), bos=0, readable=3)
    assert words.tokenize(["a b"], 4, None).ids == ((0, 1, 2),)
    assert words.tokenize(["BOS a"], 4, None).ids == ((0, 1),)
    assert words.tokenize(["a b"], 4, False).ids == ((1, 2),)
    assert words.tokenize([[1, 2]], 4, None).ids == ((1, 2),)
    assert words.tokenize([[1, 2]], 4, True).bos
    with pytest.raises(BadPrompts, match=r"id 3; ids are 0 to 2 for this model in a prompt \('1' are answers only\)"):
        words.tokenize(["a 1"], 4, None)


@pytest.mark.hand_worked
def test_an_unembedding_bias_is_added_to_the_logits() -> None:
    tensors = named_tensors(random_toy().weights)
    bias = torch.arange(11.0)
    ids = torch.tensor([[1, 2, 3]])
    plain, shifted = (plain_logits(toy_weights(t), ids) for t in (tensors, {**tensors, "unembedding_bias": bias}))
    assert torch.allclose(shifted - plain, bias.expand(1, 3, 11), atol=1e-5)
    weights = toy_weights({**tensors, "unembedding_bias": bias})
    assert weights.unembed_bias([3, 1]).tolist() == [3, 1]  # type: ignore[union-attr]


def test_untrained_weights_have_the_spread_of_a_fresh_layer_and_learned_toys_have_such_twins(tmp_path: Path) -> None:
    shapes = {"embedding": torch.empty(64, 100), "blocks.0.o": torch.empty(4, 25, 100), "x_bias": torch.ones(3)}
    fresh = untrained(shapes, 0)
    assert fresh["embedding"].std() == pytest.approx(0.1, rel=0.05)
    assert fresh["blocks.0.o"].std() == pytest.approx(0.1, rel=0.05)
    assert fresh["x_bias"].tolist() == [0, 0, 0]
    save_toy(tmp_path / TOY_FILE, named_tensors(random_toy().weights), form(learned=True))
    learned = load_model(str(tmp_path))
    twins = [random_twin(learned, seed) for seed in (1, 1, 2)]
    assert twins[0].info.weights_hash == twins[1].info.weights_hash
    assert len({learned.info.weights_hash, *(t.info.weights_hash for t in twins)}) == 3


@pytest.mark.bad_input
def test_what_is_no_toy_file_or_may_not_be_read_is_told(kept: Path) -> None:
    with pytest.raises(OutsideRoots, match="outside the folders that models may be read from"):
        load_model(str(kept), roots=[kept / "elsewhere"])
    with pytest.raises(BadArguments, match="runs on the toy backend alone, not on 'local'"):
        load_model(str(kept), backend="local")
    with pytest.raises(BadArguments, match="made for float32 on the CPU"):
        load_model("tracr-hist", dtype="bfloat16")
    (kept / TOY_FILE).write_bytes((kept / TOY_FILE).read_bytes()[:100])
    with pytest.raises(CorruptFile, match="is no toy model"):
        load_model(str(kept))


@pytest.mark.bad_input
def test_a_toy_with_norms_is_not_written() -> None:
    from anatomist.model.backends.local import LocalModel

    from tests.backends.families import FAMILIES

    local = LocalModel(FAMILIES["gpt2"](), None, name="gpt2")
    toy = toy_of_gpt2(local.weights)  # type: ignore[arg-type]
    assert isinstance(toy, ToyModel)
    with pytest.raises(Unsupported, match="a toy with norms cannot be written"):
        named_tensors(toy.weights)
