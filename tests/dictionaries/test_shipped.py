"""The dictionary that ships: it is whole, small, and does on the model in hand what its card says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from anatomist.dictionaries.quality import measure_quality
from anatomist.dictionaries.saelens import load_dictionary
from anatomist.dictionaries.sources import SHIPPED
from anatomist.dictionaries.training.folder import Card
from anatomist.prompts.corpus import corpus_of, rows
from anatomist.roots import Roots

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

NAME = "smollm2-135m-l15"


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
    assert all((own.ce_recovered or 0) > (b.ordinary.ce_recovered or 0) + 0.05 for b in told.baselines.values())


def test_it_names_its_model_and_its_site() -> None:
    info = load_dictionary(NAME).info
    assert (info.model, info.site, info.d_dict, info.bos) == ("smollm2-135m", "blocks.15.resid_post", 2048, False)
    assert info.release.explained_variance == card().quality.ordinary.explained_variance


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
