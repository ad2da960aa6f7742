"""The nnsight backend against bare hooks on the plain model, and what is its own: early ends, unknown anatomy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from anatomist.errors import BadArguments, BadSite, EditDidNotFire, Unavailable, Unsupported
from anatomist.model.backends.nnsight import NNsightModel
from anatomist.model.edits import Edit
from anatomist.model.sites import Site, list_sites
from anatomist.model.tokens import Tokens
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, Olmo2Config, Olmo2ForCausalLM

from tests.backends.families import FAMILIES, randomised

TOKENS = Tokens(((3, 17, 42, 9, 88, 17, 5), (71, 2, 2, 50)), (("",) * 7, ("",) * 4), False)
IDS = torch.tensor([[3, 17, 42, 9, 88, 17, 5], [71, 2, 2, 50, 0, 0, 0]])
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> NNsightModel:
    return NNsightModel(FAMILIES["llama"](), name="llama")


def with_input_hook(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of the plain Llama with one module's input changed by a bare hook."""
    model = FAMILIES["llama"]()
    target = model.get_submodule(module) if isinstance(module, str) else module
    handle = target.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits
    handle.remove()
    return logits


@pytest.mark.positive_control
@pytest.mark.parametrize("family", FAMILIES)
def test_every_place_and_the_logits_leave_the_plain_forward_as_it_is(family: str) -> None:
    """Reading everything at once must not change a bit; padding on the right changes nothing either."""
    with torch.no_grad():
        plain = FAMILIES[family]()(IDS, use_cache=False).logits
    model = NNsightModel(FAMILIES[family](), name=family)
    run = model.run(TOKENS, read=list_sites(model.info.shape), logits_at="all")
    assert run.logits is not None
    assert torch.equal(run.logits, plain)
    assert len(run.reads) == len(list_sites(model.info.shape))
    assert {"q", "k", "v", "scores", "pattern", "head", "neuron"} <= set(model.info.sites)


@pytest.mark.positive_control
def test_patching_a_head_equals_a_bare_hook_on_the_output_matrix(llama: NNsightModel) -> None:
    """Rules out a wrong head order, a wrong row and a wrong position."""
    value = torch.randn(8, generator=torch.Generator().manual_seed(0))

    def patch(z: Tensor) -> Tensor:
        z = z.clone()
        z[0, 4, 2 * 8 : 3 * 8] = value  # head 2 of 4, of width 8
        return z

    expected = with_input_hook("model.layers.1.self_attn.o_proj", patch)  # type: ignore[arg-type]
    edit = Edit(site=Site("head", 1, 2), rule="set", rows=(0,), positions=(4,), value=value)
    run = llama.run(TOKENS, edits=[edit], logits_at="all")
    assert run.logits is not None
    assert run.fired == (1,)
    assert torch.equal(run.logits, expected)
    assert not torch.equal(run.logits[0, 4:], llama.run(TOKENS, logits_at="all").logits[0, 4:])  # type: ignore[index]


@pytest.mark.positive_control
def test_ablating_a_neuron_equals_a_bare_hook(llama: NNsightModel) -> None:
    expected = with_input_hook(
        "model.layers.2.mlp.down_proj",  # type: ignore[arg-type]
        lambda x: x.index_fill(-1, torch.tensor([17]), 0.0),
    )
    run = llama.run(TOKENS, edits=[Edit(site=Site("neuron", 2, 17), rule="zero")], logits_at=TOKENS.last)
    assert run.logits is not None
    assert float((run.logits - expected[[0, 1], [6, 3]]).abs().max()) < 1e-6


def test_an_edit_between_attention_and_mlp_reaches_both_the_mlp_and_the_residual(llama: NNsightModel) -> None:
    """With the middle set to zero the block's output is the MLP's alone; rules out an edit of the MLP's input only."""
    read = [Site("resid_post", 1), Site("mlp_out", 1)]
    run = llama.run(TOKENS, read=read, edits=[Edit(site=Site("resid_mid", 1), rule="zero")])
    assert torch.equal(run.reads[read[0]][0], run.reads[read[1]][0])


def test_a_pass_without_logits_ends_after_the_last_wanted_place() -> None:
    hf = FAMILIES["llama"]()
    entered: list[int] = []
    for i in range(3):
        hf.get_submodule(f"model.layers.{i}").register_forward_pre_hook(lambda _m, _a, i=i: entered.append(i))
    model = NNsightModel(hf, name="llama")
    entered.clear()
    run = model.run(TOKENS, read=[Site("head", 1)])
    assert run.logits is None
    assert entered == [0, 1]


def test_logits_at_one_position_a_row_are_those_of_the_whole(llama: NNsightModel) -> None:
    whole, some = llama.run(TOKENS, logits_at="all").logits, llama.run(TOKENS, logits_at=(2, 3)).logits
    assert whole is not None
    assert some is not None
    assert float((some - whole[[0, 1], [2, 3]]).abs().max()) < 1e-6


def test_gradients_reach_a_read_and_an_edit_value(llama: NNsightModel) -> None:
    """Of the sum of logits to one added vector: the two ways to ask for it agree."""
    site, value = Site("resid_post", 0), torch.zeros(32, requires_grad=True)
    edit = Edit(site=site, rule="add", rows=(0,), positions=(3,), value=value)
    run = llama.run(TOKENS, read=[site], edits=[edit], logits_at=TOKENS.last, gradients=True)
    assert run.logits is not None
    to_read, to_value = torch.autograd.grad(run.logits[0].sum(), [run.reads[site], value])
    assert torch.allclose(to_read[0, 3], to_value, atol=1e-6)
    assert float(to_value.abs().sum()) > 0
    assert llama.run(TOKENS, read=[site]).reads[site].requires_grad is False


def test_generation_with_an_edit_is_greedy_over_edited_passes(llama: NNsightModel) -> None:
    edit = Edit(site=Site("mlp_out", 1), rule="scale", factor=-2.0)
    row = TOKENS.rows([0])
    ids = list(row.ids[0])
    for _ in range(3):
        tokens = llama.tokenize([ids])
        logits = llama.run(tokens, edits=[edit], logits_at=tokens.last).logits
        assert logits is not None
        ids.append(int(logits[0].argmax()))
    assert llama.generate(row, max_new_tokens=3, edits=[edit]) == (tuple(ids[-3:]),)
    assert llama.generate(row, max_new_tokens=3) != (tuple(ids[-3:]),)


# --- architectures whose anatomy is not known -------------------------------------------------------------------------


@pytest.mark.positive_control
def test_an_unknown_anatomy_offers_what_adds_up() -> None:
    model = NNsightModel(randomised(MixtralForCausalLM(MixtralConfig(**SIZES))), name="mixtral")
    assert {"attn_out", "mlp_out", "resid_pre", "resid_post", "q", "k", "pattern"} <= set(model.info.sites)
    assert "head" not in model.info.sites
    with pytest.raises(Unsupported, match="anatomy of MixtralForCausalLM is not known"):
        _ = model.weights


@pytest.mark.negative_control
def test_an_unknown_anatomy_with_norms_after_each_part_does_not_offer_their_inputs() -> None:
    """Olmo 2 normalises what its attention returns: that is not what is added to the residual."""
    model = NNsightModel(randomised(Olmo2ForCausalLM(Olmo2Config(**SIZES))), name="olmo2")
    assert {"resid_pre", "resid_post", "pattern"} <= set(model.info.sites)
    assert not {"attn_out", "mlp_out"} & set(model.info.sites)
    with pytest.raises(BadSite, match="no 'attn_out'"):
        model.run(TOKENS, read=[Site("attn_out", 0)])


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_an_error_inside_the_trace_keeps_its_class_and_the_model_still_answers(llama: NNsightModel) -> None:
    edit = Edit(site=Site("resid_pre", 1), rule="set", value=torch.zeros(5))
    with pytest.raises(BadArguments, match=r"shape \[5\]") as caught:
        llama.run(TOKENS, edits=[edit], logits_at="all")
    assert type(caught.value) is BadArguments
    assert llama.run(TOKENS, logits_at=TOKENS.last).logits is not None


@pytest.mark.bad_input
def test_a_place_the_model_does_not_have_is_refused_before_anything_runs(llama: NNsightModel) -> None:
    with pytest.raises(BadSite, match="layers are 0 to 2"):
        llama.run(TOKENS, read=[Site("resid_pre", 3)])


@pytest.mark.bad_input
def test_a_closed_model_says_so() -> None:
    model = NNsightModel(FAMILIES["gpt2"](), name="gone")
    model.close()
    with pytest.raises(Unavailable, match="gone was closed"):
        model.run(TOKENS, logits_at=TOKENS.last)
    with pytest.raises((Unavailable, Unsupported), match="gone was closed"):
        _ = model.weights


@pytest.mark.bad_input
def test_an_edit_of_padding_alone_is_refused(llama: NNsightModel) -> None:
    from anatomist.errors import BadPosition

    with pytest.raises((BadPosition, EditDidNotFire), match="outside prompt 1's 4 tokens"):
        llama.run(TOKENS, edits=[Edit(site=Site("embed"), rule="zero", rows=(1,), positions=(5,))])
