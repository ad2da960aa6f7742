"""The dictionary that ships: it is whole, small, and does on the model in hand what its card says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from anatomist.causal.features import feature_values, removal_test
from anatomist.dictionaries.quality import measure_quality
from anatomist.dictionaries.reading import activations
from anatomist.dictionaries.saelens import load_dictionary
from anatomist.dictionaries.sources import SHIPPED
from anatomist.dictionaries.training.folder import Card
from anatomist.model.edits import Edit
from anatomist.prompts.corpus import corpus_of, rows
from anatomist.roots import Roots
from sae_lens import SAE

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

NAME = "smollm2-135m-l15"
SPEECH = 246  # active where a speech has ended and a verb of saying follows
PROMPT = 'He smiled. "We shall go to town," said he, and looked at the 24 letters on the table.'


def card() -> Card:
    return Card.model_validate_json((SHIPPED / NAME / "card.json").read_text())


def test_it_is_small_and_its_card_says_what_it_is() -> None:
    assert sum(f.stat().st_size for f in (SHIPPED / NAME).iterdir()) < 6_000_000
    told = card()
    assert told.site == "blocks.15.resid_post"
    assert told.text.tokens > told.text.trained_on > 300_000
    assert told.limits
    own = told.quality.ordinary
    assert all(own.explained_variance > b.ordinary.explained_variance + 0.1 for b in told.baselines.values())
    # Mean ablation costs an untrained model next to nothing: there is no cross-entropy to recover.
    learned = [b.ordinary for name, b in told.baselines.items() if "untrained" not in name]
    assert len(learned) == 2
    assert all((own.ce_recovered or 0) > (b.ce_recovered or 0) + 0.05 for b in learned)


def test_its_card_says_what_rounding_cost_and_what_another_seed_has_of_it() -> None:
    told = card()
    assert told.before_rounding is not None
    assert told.before_rounding.ordinary.ce_intact == told.quality.ordinary.ce_intact  # the same text
    assert told.quality.ordinary.explained_variance == pytest.approx(
        told.before_rounding.ordinary.explained_variance, abs=1e-4
    )
    (other,) = told.beside.values()
    assert other.agreement is not None
    assert other.agreement.median_cosine > 2 * other.agreement.by_chance
    assert any(f"has {other.agreement.found_again:.0%} of its features" in limit for limit in told.limits)


def test_it_names_its_model_and_its_site() -> None:
    info = load_dictionary(NAME).info
    assert (info.model, info.site, info.d_dict, info.bos) == ("smollm2-135m", "blocks.15.resid_post", 2048, False)
    assert info.release.explained_variance == card().quality.ordinary.explained_variance


@pytest.mark.positive_control
def test_a_whole_prompt_is_encoded_as_saelens_does_and_the_error_term_gives_the_logits_back(smollm2: Model) -> None:
    # SAELens alone, on Hugging Face's own hidden states: hidden_states[16] is what leaves block 15. The splice would
    # pass for any dictionary; that the reconstruction alone does not shows that it is written at all.
    sae, plain = load_dictionary(NAME, model=smollm2), SAE.load_from_disk(SHIPPED / NAME, dtype="float32")
    tokens = smollm2.tokenize([PROMPT])
    with torch.no_grad():
        hidden = smollm2._hf(torch.tensor(tokens.ids), output_hidden_states=True).hidden_states[16]  # type: ignore[attr-defined]
        theirs = plain.encode(hidden)
    (batch,) = activations(smollm2, sae, tokens)
    ours = sae.encode(batch.x)
    assert (ours != 0).sum(-1).tolist() == [[32] * tokens.width]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    rebuilt = sae.decode(ours, batch.x)
    site = sae.info.writes
    own = smollm2.run(tokens, logits_at="all").logits
    spliced, alone = (
        smollm2.run(tokens, edits=[Edit(site=site, rule="set", value=v)], logits_at="all").logits
        for v in (rebuilt + (batch.y - rebuilt), rebuilt)
    )
    torch.testing.assert_close(spliced, own, atol=1e-4, rtol=0)
    assert own is not None
    assert alone is not None
    assert (alone - own).abs().max() > 1


@pytest.mark.positive_control
def test_a_feature_that_is_taken_away_changes_the_activation_by_exactly_its_own_part(smollm2: Model) -> None:
    sae, tokens = load_dictionary(NAME, model=smollm2), smollm2.tokenize([PROMPT])
    found = feature_values(smollm2, sae, tokens, [SPEECH], 2**30)
    assert float(found.values.max()) > 20  # it is active where the speech ends
    assert removal_test(smollm2, sae, tokens, found, SPEECH).passed


@pytest.mark.slow
def test_on_other_text_it_does_nearly_what_its_card_says(smollm2: Model) -> None:
    sae = load_dictionary(NAME, model=smollm2)
    tokens = rows(corpus_of("python", Roots([])), smollm2, width=128, n_tokens=512)
    found = measure_quality(smollm2, sae, tokens)
    assert found.massive_tokens >= tokens.n_rows  # the first of each row
    assert found.massive_variance_share > 0.9
    assert found.ordinary.l0 == pytest.approx(32, abs=0.5)
    assert found.ordinary.explained_variance > card().quality.ordinary.explained_variance - 0.1
    assert (found.ordinary.ce_recovered or 0) > 0.9
