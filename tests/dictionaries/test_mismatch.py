"""What is amiss with a dictionary is told: a wrong hook, activation function or normalisation, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from anatomist.dictionaries.baselines import for_inference
from anatomist.dictionaries.mismatch import Figures, amiss, diagnosis, explained, figures
from anatomist.dictionaries.protocol import ReleaseFigures
from anatomist.dictionaries.saelens import wrap_sae
from anatomist.dictionaries.training.order import InMemory, Shuffled
from anatomist.dictionaries.training.recipe import Recipe
from anatomist.dictionaries.training.trainer import train
from anatomist.model.loading import wrap_model
from anatomist.model.sites import Site
from sae_lens import StandardSAE, StandardSAEConfig

from tests.backends.families import FAMILIES
from tests.dictionaries import small

if TYPE_CHECKING:
    from anatomist.model.protocol import Model
    from anatomist.model.tokens import Tokens

SITE, K = Site("resid_post", 1), 6


@pytest.fixture(scope="module")
def gemma() -> Model:
    """Its embeddings are scaled: activations four times as long as sqrt(d)."""
    return wrap_model(FAMILIES["gemma3"](), None, name="gemma")


def rows(model: Model, n: int, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return model.tokenize(torch.randint(0, 97, (n, 24), generator=generator).tolist())


def weights(model: Model, site: Site) -> dict[str, torch.Tensor]:
    """Weights of a small top-k dictionary, trained here; decoder norms folded."""
    import numpy as np

    x = model.run(rows(model, 200, 0), read=[site]).reads[site][:, 1:].reshape(-1, 32)
    recipe = Recipe(architecture="topk", d_dict=96, k=K, batch=256, steps=500, lr=3e-3, normalise=False, dead_after=100)
    batches = Shuffled(InMemory(x), np.arange(len(x)), batch=256, seed=0, device="cpu")
    sae = for_inference(train(recipe, batches, progress=lambda *_: None).sae)
    if sae.cfg.rescale_acts_by_decoder_norm:
        sae.fold_W_dec_norm()
    return {k: v.clone() for k, v in sae.state_dict().items()}


@pytest.fixture(scope="module")
def trained(gemma: Model) -> dict[str, torch.Tensor]:
    return weights(gemma, SITE)


def dictionary(state: dict[str, torch.Tensor], model: Model, *, hook: str = small.HOOK, **release: float) -> Any:
    """The trained weights as the top-k dictionary they are, at a hook that is claimed."""
    sae = small.TopKSAE(small.TopKSAEConfig(32, 96, k=K, metadata=small.metadata(hook)))
    sae.load_state_dict(state)
    return wrap_sae(sae, name="mine", model=model, release=ReleaseFigures(**release))


@pytest.mark.negative_control
def test_a_dictionary_that_does_what_it_says_is_left_in_peace(gemma: Model, trained: dict[str, torch.Tensor]) -> None:
    tokens = rows(gemma, 30, 1)
    found = figures(gemma, dictionary(trained, gemma), tokens)
    assert found.explained_variance > 0.5
    assert found.l0 <= K
    stated = dictionary(trained, gemma, l0=found.l0, explained_variance=found.explained_variance)
    assert diagnosis(gemma, stated, tokens) == ()


@pytest.mark.positive_control
def test_a_wrong_hook_is_named_with_the_right_one(gemma: Model, trained: dict[str, torch.Tensor]) -> None:
    wrong = dictionary(trained, gemma, hook="blocks.1.hook_mlp_out", explained_variance=0.7)
    (told,) = diagnosis(gemma, wrong, rows(gemma, 30, 1))
    assert told.startswith("MISMATCH")
    assert "wrong hook: it fits blocks.1.resid_post, not blocks.1.mlp_out" in told


@pytest.mark.positive_control
def test_a_topk_dictionary_loaded_as_relu_is_called_so(gemma: Model, trained: dict[str, torch.Tensor]) -> None:
    # The trap of the field: the weights are right, only the activation function is not.
    sae = StandardSAE(StandardSAEConfig(32, 96, metadata=small.metadata()))
    sae.load_state_dict(trained)
    found = wrap_sae(sae, name="relu", model=gemma, release=ReleaseFigures(l0=float(K)))
    (told,) = diagnosis(gemma, found, rows(gemma, 30, 1))
    assert "features are active at a token; the release states 6" in told
    assert "wrong activation function: it was trained to keep the 6 largest features" in told


@pytest.mark.positive_control
def test_a_norm_factor_that_was_not_folded_is_called_so() -> None:
    # Llama's second MLP writes less than half of sqrt(d). A dictionary of those activations times c has biases and
    # thresholds c times as large: what it is given plainly hardly passes its thresholds.
    llama, site = wrap_model(FAMILIES["llama"](), None, name="llama"), Site("mlp_out", 1)
    state, tokens = weights(llama, site), rows(llama, 30, 1)
    x = llama.run(tokens, read=[site]).reads[site][:, 1:]
    c = 32**0.5 / float(x.norm(dim=-1).median())
    assert c > 2
    before = (x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]
    weakest = float(before.relu().topk(K, dim=-1).values[..., -1].median())
    sae = small.JumpReLUSAE(small.JumpReLUSAEConfig(32, 96, metadata=small.metadata("blocks.1.hook_mlp_out")))
    state |= {"b_dec": state["b_dec"] * c, "b_enc": state["b_enc"] * c, "threshold": torch.full((96,), weakest * c)}
    sae.load_state_dict(state)
    found = wrap_sae(sae, name="scaled", model=llama, release=ReleaseFigures(l0=float(K)))
    (told,) = diagnosis(llama, found, tokens)
    assert "wrong normalisation: it expects activations whose norm is about sqrt(d)" in told


def test_words_say_what_disagrees() -> None:
    assert amiss(Figures(60.0, 0.8), ReleaseFigures(l0=55.0, explained_variance=0.82), 1000) == ()
    assert amiss(Figures(300.0, 0.8), ReleaseFigures(), 1000) == (
        "300 of 1000 features are active at a token: this is not sparse",
    )
    assert amiss(Figures(0.0, 0.1), ReleaseFigures(), 1000) == (
        "no feature is ever active", "it explains only 10% of the variance",
    )  # fmt: skip
    assert "the release states 55" in amiss(Figures(120.0, 0.8), ReleaseFigures(l0=55.0), 1000)[0]


@pytest.mark.hand_worked
def test_explained_variance_is_the_share_of_squares() -> None:
    # y 1, 3 (mean 2, squares 1 + 1); y_hat 1, 2: left 0 + 1 of 2.
    y, y_hat = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]])
    assert explained(y, y_hat) == pytest.approx(0.5)


@pytest.mark.negative_control
def test_a_random_dictionary_has_no_reason_that_would_repair_it(gemma: Model) -> None:
    (told,) = diagnosis(gemma, wrap_sae(small.standard(), name="r", model=gemma), rows(gemma, 10, 1))
    assert "None of the usual reasons" in told
