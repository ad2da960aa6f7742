"""sae_feature_search: a known feature is found and judged, chance is told from it, pages show what is there."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from anatomist.causal.feature_search import scored
from anatomist.dictionaries.random_features import RandomFeatures
from anatomist.dictionaries.saelens import load_dictionary
from anatomist.errors import BadArguments
from anatomist.prompts.corpus import Corpus
from anatomist.technique import Context
from anatomist.techniques import sae_feature_search
from anatomist.techniques.sae_feature_search import Arguments
from scipy.stats import mannwhitneyu

if TYPE_CHECKING:
    from anatomist.model.protocol import Model


def texts(n: int, word: str | None, seed: int) -> tuple[str, ...]:
    """Eight random tokens without t4; with `word` put in one place."""
    chosen = random.Random(seed)
    rows = [[f"t{chosen.choice([i for i in range(20) if i != 4])}" for _ in range(8)] for _ in range(n)]
    for row in rows:
        if word is not None:
            row[chosen.randrange(8)] = word
    return tuple(" ".join(row) for row in rows)


CORPUS = Corpus("inline", texts(60, None, 5) + texts(20, "t4", 6))


def searched(model: Model, **arguments: object) -> sae_feature_search.FeatureSearchResult:
    context = Context(model=model, text=CORPUS, dictionary=load_dictionary("toy-induction-l0"))
    return sae_feature_search.run(context, Arguments(model="m", sae="d", n_tokens=600, width=8, **arguments))  # type: ignore[arg-type]


@pytest.mark.hand_worked
def test_auroc_effect_and_p_are_those_of_the_books() -> None:
    # With 3, 4, 5 against 1, 2, 4: of nine pairs 7 are won and one is tied (4, 4): 7.5 / 9. Means 4 and 7/3, variances
    # (n below) 2/3 and 14/9: pooled with n - 2 = 4 below, (3 * 2/3 + 3 * 14/9) / 4 = 5/3.
    values = np.array([[3.0], [4], [5], [1], [2], [4]])
    labels = np.array([1, 1, 1, 0, 0, 0])
    found = scored(values, labels, [str(i) for i in range(6)], seed=0)
    assert found.auroc[0] == pytest.approx(7.5 / 9)
    assert found.effect[0] == pytest.approx((4 - 7 / 3) / (5 / 3) ** 0.5)
    assert found.p[0] == pytest.approx(mannwhitneyu([3, 4, 5], [1, 2, 4], method="asymptotic").pvalue)
    assert found.p_holm[0] == found.p[0]


@pytest.mark.positive_control
def test_the_feature_of_a_word_is_found_and_the_word_itself_does_as_well(toy: Model) -> None:
    # Feature 4 is 'token t4', feature 24 'buffer t4': the only two that depend on it.
    result = searched(toy, positive=texts(40, "t4", 1), negative=texts(40, None, 2), show=1, examples=4)
    assert [f.index for f in result.found[:2]] == [4, 24]
    assert result.found[0].held_out.mean == 1.0
    assert result.found[0].p_holm < 1e-6
    assert result.found[0].p_shuffled == pytest.approx(1 / 501)
    assert {f.index for f in result.found if f.p_holm < 0.05} == {4, 24}
    assert any("best single token reaches 1.00" in w for w in result.warnings)
    page = result.described[0]
    assert page.index == 4
    top = [e for e in page.examples if e.kind == "top"]
    assert {e.tokens[e.focus] for e in top} == {"t4"}
    assert {e.kind for e in page.examples} == {"top", "middle", "low", "random"}
    assert page.histogram is not None
    assert page.promotes == ()  # nothing reads the token block at the output


@pytest.mark.positive_control
def test_pairs_are_tested_as_pairs(toy: Model) -> None:
    without = texts(30, None, 3)
    with_it = tuple(" ".join(["t4", *text.split()[1:]]) for text in without)
    result = searched(toy, positive=with_it, negative=without, paired=True, show=0)
    assert result.found[0].index in (4, 24)
    assert result.found[0].p_holm < 0.01
    assert result.described == ()


@pytest.mark.negative_control
def test_two_sets_that_differ_in_nothing_have_no_feature(toy: Model) -> None:
    result = searched(toy, positive=texts(40, None, 11), negative=texts(40, None, 12), show=0)
    assert all(f.p_holm > 0.05 for f in result.found)
    assert any("No feature survives Holm" in w for w in result.warnings)
    chance = next(b.held_out for b in result.baselines if b.name == "best feature by shuffled labels")
    assert 0.35 < chance < 0.65


@pytest.mark.positive_control
def test_features_that_are_named_are_shown_without_texts(toy: Model) -> None:
    result = searched(toy, features=("L0F7", 27), examples=3)
    assert [d.feature for d in result.described] == ["L0F7", "L0F27"]
    page = result.described[0]
    # 80 documents of 8 tokens, the first of each left out: the density is the share of t7 among the other 7 x 80.
    rows = [text.split()[1:] for text in CORPUS.documents]
    assert page.density == pytest.approx(sum(r.count("t7") for r in rows[:75]) / 525, abs=0.02)
    assert page.nearest[0].cosine == pytest.approx(0.0, abs=1e-6)  # directions are axes
    assert result.found == ()
    # What 'buffer t7' fires on is the token after a t7.
    after = [e.tokens[e.focus - 1] for e in result.described[1].examples if e.kind == "top"]
    assert set(after) == {"t7"}


@pytest.mark.negative_control
def test_a_feature_that_never_fires_has_an_empty_page_and_says_so(toy: Model) -> None:
    result = searched(toy, features=(45,))  # 'output t5', written in layer 1 alone
    assert result.described[0].density == 0
    assert result.described[0].mean_active is None
    assert any("active on no token" in w for w in result.warnings)


def test_output_features_promote_their_token(toy: Model) -> None:
    context = Context(model=toy, text=CORPUS, dictionary=load_dictionary("toy-induction-l1"))
    result = sae_feature_search.run(context, Arguments(model="m", sae="d", features=(45,), n_tokens=600, width=8))
    (up,) = result.described[0].promotes
    # 10 on t5 and 0 elsewhere, less the vocabulary's mean of 10 / 20.
    assert (up.token, up.logit) == ("t5", pytest.approx(9.5))


def test_random_features_are_as_sparse_as_what_they_stand_for(toy: Model) -> None:
    dictionary = load_dictionary("toy-induction-l0")
    x = torch.randn(400, 132, generator=torch.Generator().manual_seed(0)).abs()
    drawn = RandomFeatures(dictionary, x, seed=1)
    share = float((dictionary.encode(x) != 0).float().mean())
    assert float((drawn.encode(x) != 0).float().mean()) <= share * 1.05


@pytest.mark.bad_input
def test_what_cannot_be_used_is_told(toy: Model) -> None:
    with pytest.raises(BadArguments, match="give `positive` and `negative` texts"):
        searched(toy)
    with pytest.raises(BadArguments, match="has features 0 to 59"):
        searched(toy, features=(60,))
    with pytest.raises(BadArguments, match="both `positive` and `negative`"):
        searched(toy, positive=("t1 t2",))
    with pytest.raises(BadArguments, match="cannot be split"):
        searched(toy, positive=("t1 t2",), negative=("t3 t4",))


def test_the_picture_draws(toy: Model) -> None:
    from anatomist.drawing import png

    result = searched(toy, positive=texts(20, "t4", 1), negative=texts(20, None, 2), show=1)
    assert png(sae_feature_search.plot(result))[:4] == b"\x89PNG"
