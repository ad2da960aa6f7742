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
def llama() -> Model:
    return wrap_model(FAMILIES["llama"](), None, name="llama")


def rows(model: Model, n: int, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return model.tokenize(torch.randint(0, 97, (n, 24), generator=generator).tolist())


@pytest.fixture(scope="module")
def trained(llama: Model) -> dict[str, torch.Tensor]:
    """Weights of a small top-k dictionary of layer 1, trained here."""
    import numpy as np

    x = llama.run(rows(llama, 200, 0), read=[SITE]).reads[SITE][:, 1:].reshape(-1, 32)
    recipe = Recipe(architecture="topk", d_dict=96, k=K, batch=256, steps=500, lr=3e-3, normalise=False, dead_after=100)
    batches = Shuffled(InMemory(x), np.arange(len(x)), batch=256, seed=0, device="cpu")
    sae = for_inference(train(recipe, batches, progress=lambda *_: None).sae)
    rescaled = sae.cfg.rescale_acts_by_decoder_norm
    state = {k: v.clone() for k, v in sae.state_dict().items()}
    return {**state, "rescaled": torch.tensor(float(rescaled))}


def dictionary(state: dict[str, torch.Tensor], model: Model, *, hook: str = small.HOOK, **release: float) -> Any:
    """The trained weights as the top-k dictionary they are, at a hook that is claimed."""
    config = small.TopKSAEConfig(
        32, 96, k=K, rescale_acts_by_decoder_norm=bool(state["rescaled"]), metadata=small.metadata(hook)
    )
    sae = small.TopKSAE(config)
    sae.load_state_dict({k: v for k, v in state.items() if k != "rescaled"})
    return wrap_sae(sae, name="mine", model=model, release=ReleaseFigures(**release))


@pytest.mark.negative_control
def test_a_dictionary_that_does_what_it_says_is_left_in_peace(llama: Model, trained: dict[str, torch.Tensor]) -> None:
    tokens = rows(llama, 30, 1)
    found = figures(llama, dictionary(trained, llama), tokens)
    assert found.explained_variance > 0.5
    assert found.l0 <= K
    stated = dictionary(trained, llama, l0=found.l0, explained_variance=found.explained_variance)
    assert diagnosis(llama, stated, tokens) == ()


@pytest.mark.positive_control
def test_a_wrong_hook_is_named_with_the_right_one(llama: Model, trained: dict[str, torch.Tensor]) -> None:
    wrong = dictionary(trained, llama, hook="blocks.0.hook_mlp_out", explained_variance=0.7)
    (told,) = diagnosis(llama, wrong, rows(llama, 30, 1))
    assert told.startswith("MISMATCH")
    # resid_post of layer 1 is two layers of its kind away only for a residual hook; the mid residual is near it.
    wrong = dictionary(trained, llama, hook="blocks.0.hook_resid_post", explained_variance=0.7)
    (told,) = diagnosis(llama, wrong, rows(llama, 30, 1))
    assert "wrong hook: it fits blocks.1.resid_post, not blocks.0.resid_post" in told


@pytest.mark.positive_control
def test_a_topk_dictionary_loaded_as_relu_is_called_so(llama: Model, trained: dict[str, torch.Tensor]) -> None:
    # The trap of the field: the weights are right, only the activation function is not.
    sae = StandardSAE(StandardSAEConfig(32, 96, metadata=small.metadata()))
    norms = trained["W_dec"].norm(dim=-1) if trained["rescaled"] else torch.ones(96)
    sae.load_state_dict({
        "W_enc": trained["W_enc"] * norms, "b_enc": trained["b_enc"] * norms, "b_dec": trained["b_dec"],
        "W_dec": trained["W_dec"] / norms[:, None],
    })  # fmt: skip
    found = wrap_sae(sae, name="relu", model=llama, release=ReleaseFigures(l0=float(K)))
    (told,) = diagnosis(llama, found, rows(llama, 30, 1))
    assert "features are active at a token; the release states 6" in told
    assert "wrong activation function: it was trained to keep the 6 largest features" in told


@pytest.mark.positive_control
def test_a_norm_factor_that_was_not_folded_is_called_so(llama: Model, trained: dict[str, torch.Tensor]) -> None:
    # Weights for activations multiplied by c: W_enc / c, b_dec * c, W_dec * c; given plain activations they fail.
    tokens = rows(llama, 30, 1)
    x = llama.run(tokens, read=[SITE]).reads[SITE][:, 1:]
    c = 32**0.5 / float(x.norm(dim=-1).median())
    state = dict(trained)
    rescaled = bool(trained["rescaled"])
    state["b_dec"] = trained["b_dec"] * c
    state["W_dec"] = trained["W_dec"] * c
    state["W_enc"] = trained["W_enc"] / c
    if rescaled:  # activations are multiplied by the decoder's norm before the largest are kept
        state["W_enc"], state["b_enc"] = trained["W_enc"] / c, trained["b_enc"]
    (told,) = diagnosis(llama, dictionary(state, llama, explained_variance=0.7), tokens)
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
def test_a_random_dictionary_has_no_reason_that_would_repair_it(llama: Model) -> None:
    (told,) = diagnosis(llama, wrap_sae(small.standard(), name="r", model=llama), rows(llama, 10, 1))
    assert "None of the usual reasons" in told
