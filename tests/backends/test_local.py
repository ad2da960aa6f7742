"""What only the local backend promises: nothing stored twice, an early stop, cached generation, freed weights."""

from __future__ import annotations

import pytest
import torch
from anatomist.errors import Unavailable, Unsupported
from anatomist.model.backends.generation import generate, uncached
from anatomist.model.backends.local import LocalModel
from anatomist.model.edits import Edit
from anatomist.model.sites import Site, list_sites
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.backends.families import CONTEXT, FAMILIES, VOCABULARY

PROMPTS = [[3, 17, 42, 9, 88, 17, 5], [71, 2, 2, 50], [9, 9, 1, 4]]


def local(family: str) -> LocalModel:
    return LocalModel(FAMILIES[family](), None, name=family)


def stored_bytes(model: nn.Module) -> int:
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bridge_stores_no_weight_twice(family: str) -> None:
    """It adds one bias of zeros to the unembedding (V floats) and nothing else."""
    hf = FAMILIES[family]()
    before = stored_bytes(hf)
    model = LocalModel(hf, None, name=family)
    assert stored_bytes(hf) - before in (0, 4 * VOCABULARY)
    assert model.info.weight_bytes == before
    assert not any(p.requires_grad for p in hf.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_plain_model(family: str) -> None:
    """Against transformers' own eager attention, not the suite's oracle."""
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        plain = FAMILIES[family]()(input_ids=ids).logits
    run = local(family).run(local(family).tokenize([PROMPTS[0]]), logits_at="all")
    assert run.logits is not None
    assert float((run.logits - plain).abs().max()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_kept_keys_and_values_is_that_without(family: str) -> None:
    """Long enough for Gemma's window of four to forget; rows of two lengths, edited at a site and at a position."""
    model = local(family)
    model._plain().generation_config.eos_token_id = None
    tokens = model.tokenize(PROMPTS)
    shift = torch.randn(32, generator=torch.Generator().manual_seed(0))
    edits = [
        Edit(site=Site("resid_post", 1), rule="add", value=shift),
        Edit(site=Site("k", 0), rule="scale", factor=0.5, rows=(1, 2)),
        Edit(site=Site("head", 1, 2), rule="zero", positions=((6,), (0, 3), (1,))),
    ]
    whole = generate(
        uncached(model), tokens, max_new_tokens=8, temperature=0, seed=0, edits=edits, n_ctx=CONTEXT, stop=()
    )
    assert model.generate(tokens, max_new_tokens=8, edits=edits) == whole
    assert whole != model.generate(tokens, max_new_tokens=8)


def test_generation_stops_before_the_end_of_text_token() -> None:
    model = local("llama")
    model._plain().generation_config.eos_token_id = None
    free = model.generate(model.tokenize(PROMPTS[:1]), max_new_tokens=4)[0]
    model._plain().generation_config.eos_token_id = [free[2]]
    assert model.generate(model.tokenize(PROMPTS[:1]), max_new_tokens=4)[0] == free[: free.index(free[2])]


def test_a_pass_stops_after_the_last_place_that_is_wanted() -> None:
    """The second block is never entered when only the first is read; with logits it is."""
    model = local("llama")
    entered: list[int] = []
    for i, layer in enumerate(model._plain().model.layers):  # type: ignore[union-attr]
        layer.register_forward_pre_hook(lambda *_, i=i: entered.append(i))
    tokens = model.tokenize(PROMPTS)
    model.run(tokens, read=[Site("resid_post", 0)])
    assert entered == [0]
    model.run(tokens, read=[Site("resid_post", 0)], logits_at=tokens.last)
    assert entered == [0, 0, 1, 2]


def test_no_hook_is_left_behind_by_a_pass_or_by_an_error() -> None:
    model = local("gpt_neox")
    tokens = model.tokenize(PROMPTS)
    model.run(tokens, read=list_sites(model.info.shape), logits_at="all")
    with pytest.raises(Exception, match="NaN"):
        model.run(tokens, edits=[Edit(site=Site("resid_post", 0), rule="scale", factor=float("nan"))], logits_at="all")
    hooks = [place.hook for places in model._places for place in places.values()]
    assert not any(hook._forward_hooks for hook in hooks)


@pytest.mark.bad_input
def test_a_closed_model_says_so() -> None:
    model = local("llama")
    tokens = model.tokenize(PROMPTS)
    model.close()
    with pytest.raises(Unavailable, match="llama was closed; load it again"):
        model.run(tokens, logits_at="all")
    with pytest.raises(Unsupported, match="was closed"):
        _ = model.weights


@pytest.mark.bad_input
def test_an_architecture_without_a_bridge_is_refused() -> None:
    class HomeMade(GPT2LMHeadModel):
        """A class that TransformerLens has never heard of."""

    with pytest.raises(Unsupported, match=r"no bridge for HomeMade.*backend='nnsight'"):
        LocalModel(HomeMade(GPT2Config(vocab_size=5, n_embd=4, n_layer=1, n_head=1, n_positions=4)), None, name="x")
