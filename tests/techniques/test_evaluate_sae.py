"""evaluate_sae: the ends of the scale, trained against random dictionaries, an untrained model, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from anatomist.dictionaries.baselines import (
    PrincipalComponents,
    for_inference,
    ordinary_activations,
    same_size,
    trained_on,
)
from anatomist.dictionaries.quality import MASSIVE
from anatomist.dictionaries.saelens import wrap_sae
from anatomist.dictionaries.training.recipe import Recipe, untrained
from anatomist.errors import BadArguments, BadPrompts
from anatomist.model.loading import random_twin
from anatomist.model.sites import parse_site
from anatomist.prompts.corpus import Corpus, rows
from anatomist.technique import Context
from anatomist.techniques import evaluate_sae
from anatomist.techniques.evaluate_sae import Arguments, SaeEvaluation

from tests.dictionaries.words import Both, documents, reader

if TYPE_CHECKING:
    from anatomist.dictionaries.protocol import Dictionary
    from anatomist.model.protocol import Model

SITE = "blocks.0.resid_post"
TEXT = Corpus("words", documents(120))


@pytest.fixture(scope="module")
def llama() -> Model:
    return reader()


@pytest.fixture(scope="module")
def learned(llama: Model) -> Dictionary:
    """A top-k dictionary trained on this model's own activations."""
    tokens = rows(Corpus("words", documents(200, seed=5)), llama, width=12, n_tokens=3000)
    x = ordinary_activations(llama, parse_site(SITE), tokens, times=MASSIVE, budget=2**27)
    recipe = Recipe(architecture="topk", d_dict=128, k=4, batch=128, steps=300, lr=3e-3, dead_after=50)
    return trained_on(x, recipe, name="learned", site=parse_site(SITE), progress=lambda done, total, what: None)


class Renamed:
    """A dictionary under another name."""

    def __init__(self, of: Dictionary) -> None:
        self._of, self.info, self.directions = of, of.info.model_copy(update={"name": "twin"}), of.directions

    def __getattr__(self, name: str) -> object:
        return getattr(self._of, name)


def drawn(seed: int = 0) -> Dictionary:
    """A dictionary that was never trained."""
    recipe = Recipe(architecture="topk", d_dict=128, k=4, seed=seed)
    return wrap_sae(for_inference(untrained(recipe, 32, "cpu")), name=f"drawn-{seed}", site=parse_site(SITE))


def evaluated(model: Model, sae: Dictionary, *others: Dictionary, **more: object) -> SaeEvaluation:
    told = {
        "tokens": 400, "width": 12, "baseline_tokens": 900, "baseline_steps": 100,
        "beside": tuple(o.info.name for o in others), **more,
    }  # fmt: skip
    context = Context(
        model=model, text=TEXT, dictionary=sae, random_twin=lambda seed: random_twin(model, seed),
        find_dictionary=lambda name: next(o for o in others if o.info.name == name),
    )  # fmt: skip
    return evaluate_sae.run(context, Arguments(model="m", sae="d", **told))  # type: ignore[arg-type]


@pytest.mark.hand_worked
def test_an_exact_dictionary_stands_at_the_end_of_every_scale(llama: Model) -> None:
    # Every coordinate is a feature's positive or negative part: 32 of 64 are active, and nothing is left over. With as
    # many components as the width, principal components are exact too: no better than they are.
    exact = Both(32, SITE, torch.zeros(1))
    found = evaluated(llama, exact, baselines=("pca",), probing=False)
    first, pca = found.judged
    assert first.quality.ordinary.explained_variance == pytest.approx(1.0)
    assert first.quality.ordinary.l0 == pytest.approx(32.0)
    assert pca.quality.ordinary.explained_variance == pytest.approx(1.0, abs=1e-5)
    assert found.verdict[0].startswith("NO BETTER")


@pytest.mark.hand_worked
def test_principal_components_keep_the_largest_of_each_token() -> None:
    # Axis-aligned data: keeping one coordinate of (3, 1) leaves (3, 0), of (1, -2) leaves (0, -2), around the mean 0.
    x = torch.tensor([[3.0, 1.0], [-3.0, -1.0], [1.0, -2.0], [-1.0, 2.0]])
    pca = PrincipalComponents(x @ torch.eye(2), 1, Both(2, SITE, torch.zeros(1)).info)
    f = pca.encode(x)
    assert (f != 0).sum(-1).tolist() == [1, 1, 1, 1]
    along = x @ pca.directions.T
    assert torch.equal(f.abs().amax(-1), along.abs().amax(-1))
    assert torch.allclose(pca.decode(along), x, atol=1e-6)


@pytest.mark.positive_control
def test_a_trained_dictionary_is_better_than_a_frozen_random_decoder(llama: Model, learned: Dictionary) -> None:
    found = evaluated(llama, learned)
    rows_of = {row.baseline: row.quality.ordinary for row in found.judged}
    assert set(rows_of) == {None, "pca", "random_decoder", "random_model"}
    assert rows_of[None].explained_variance > rows_of["random_decoder"].explained_variance + 0.1
    assert all(row.quality.ordinary.l0 == pytest.approx(4.0, abs=0.1) for row in found.judged)
    assert any(words.startswith("Better") and "frozen random decoder" in words for words in found.verdict)
    assert "On an untrained model" in " ".join(found.verdict)
    assert evaluate_sae.plot(found).panels


@pytest.mark.negative_control
def test_a_dictionary_that_was_never_trained_is_no_better_than_its_baselines(llama: Model) -> None:
    found = evaluated(llama, drawn(), baselines=("pca", "random_decoder"), probing=False)
    assert found.verdict[0].startswith("NO BETTER")
    assert any("random_model" in words and "cannot be called good" in words for words in found.warnings)


@pytest.mark.positive_control
def test_several_stand_in_one_table(llama: Model, learned: Dictionary) -> None:
    found = evaluated(llama, learned, drawn(1), drawn(2), baselines=(), probing=False)
    assert [row.name for row in found.judged] == ["learned", "drawn-1", "drawn-2"]
    assert found.judged[0].quality.ordinary.explained_variance > found.judged[1].quality.ordinary.explained_variance
    points = evaluate_sae.plot(found).panels[0]
    assert len(points.x) == 3  # type: ignore[union-attr]


@pytest.mark.positive_control
def test_features_that_another_training_has_too_are_counted(llama: Model, learned: Dictionary) -> None:
    # The same weights under another name have every feature; one that was only drawn has hardly any.
    twin = Renamed(learned)
    found = evaluated(llama, learned, twin, drawn(1), baselines=("pca", "random_decoder"), probing=False)  # type: ignore[arg-type]
    own, same, other, pca, frozen = (row.agreement for row in found.judged)
    assert (own, pca) == (None, None)
    assert same is not None
    assert other is not None
    assert frozen is not None
    assert same.found_again == 1.0
    assert max(other.found_again, frozen.found_again) < 0.2
    assert "twin: L0 4.0" in found.summary
    assert "has 100% of the first's features" in found.summary


@pytest.mark.negative_control
def test_a_baseline_has_the_size_and_the_sparsity_of_what_it_stands_by(learned: Dictionary) -> None:
    recipe = same_size(learned, 4.2, steps=10, batch=8, seed=0, frozen=True)
    assert (recipe.d_dict, recipe.k, recipe.freeze_decoder) == (128, 4, True)


@pytest.mark.bad_input
def test_what_cannot_be_judged_is_told(llama: Model, learned: Dictionary) -> None:
    with pytest.raises(BadArguments, match="cannot stand in one table"):
        evaluated(llama, learned, Both(32, "blocks.2.resid_post", torch.zeros(1)), baselines=())
    context = Context(model=llama, text=Corpus("short", ("w3 w4 w5", "w6 w7")), dictionary=learned)
    with pytest.raises(BadPrompts, match="less than a row of 12"):
        evaluate_sae.run(context, Arguments(model="m", sae="d", width=12))
