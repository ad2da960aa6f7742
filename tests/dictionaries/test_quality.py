"""The figures of a dictionary: ends of every scale, massive-norm tokens, and a plain computation beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from anatomist.dictionaries.quality import measure_quality
from anatomist.dictionaries.saelens import wrap_sae
from anatomist.errors import BadArguments, BadPrompts, NotFinite
from anatomist.model.sites import parse_site

from tests.dictionaries import small
from tests.dictionaries.words import Both, Broken, Nothing, reader

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

SITE = "blocks.1.resid_post"
ROWS = [[3, 5, 7, 9, 11, 13], [4, 6, 8, 10], [2, 3, 5, 8, 13]]


@pytest.fixture(scope="module")
def llama() -> Model:
    return reader()


@pytest.mark.hand_worked
def test_an_exact_dictionary_has_every_figure_at_its_end(toy: Model) -> None:
    # The toy's embedding is one-hot token plus one-hot position: two coordinates are 1 at each token, so L0 is 2.
    # Five tokens 0..4 at five positions in one row: 10 of the 2 D features fire, each on a fifth of the tokens (dense).
    tokens = toy.tokenize([[0, 1, 2, 3, 4]])
    d = toy.info.d_model
    found = measure_quality(toy, Both(d, "embed", torch.zeros(1)), tokens).everywhere
    assert found.l0 == 2.0
    assert found.explained_variance == pytest.approx(1.0)
    assert found.dead_share == pytest.approx(1 - 10 / (2 * d))
    assert found.dense_share == pytest.approx(10 / (2 * d))
    assert found.ce_spliced == pytest.approx(found.ce_intact, abs=1e-6)
    assert found.tokens == 5


@pytest.mark.positive_control
def test_exact_reconstruction_recovers_all_of_the_loss_where_mean_ablation_costs_some(llama: Model) -> None:
    tokens = _predictable(llama)
    found = measure_quality(llama, Both(32, SITE, torch.zeros(1)), tokens).everywhere
    assert found.ce_mean_ablated > found.ce_intact
    assert found.ce_recovered == pytest.approx(1.0, abs=1e-4)


@pytest.mark.negative_control
def test_the_mean_as_reconstruction_is_zero_on_both_scales(llama: Model) -> None:
    tokens = _predictable(llama)
    sae = Nothing(32, SITE, torch.zeros(1))
    sae.bias = llama.run(tokens, read=[parse_site(SITE)]).reads[parse_site(SITE)].flatten(0, 1).mean(0)
    found = measure_quality(llama, sae, tokens).everywhere
    assert (found.l0, found.dead_share) == (0.0, 1.0)
    assert found.explained_variance == pytest.approx(0.0, abs=1e-5)
    assert found.ce_recovered == pytest.approx(0.0, abs=1e-4)


@pytest.mark.positive_control
def test_rows_of_different_length_agree_with_a_plain_computation(llama: Model) -> None:
    # Rules out padding that is counted, and rows or positions that are mixed up: each row is computed by itself here.
    sae, site = wrap_sae(small.topk(), name="d", model=llama), parse_site(SITE)
    tokens = llama.tokenize(ROWS)
    found = measure_quality(llama, sae, tokens).everywhere
    singles = [llama.run(llama.tokenize([row]), read=[site], logits_at="all") for row in ROWS]
    x = torch.cat([run.reads[site][0] for run in singles]).double()
    f = sae.encode(x.float())
    left = (x - sae.decode(f)).square().sum()
    assert found.explained_variance == pytest.approx(float(1 - left / (x - x.mean(0)).square().sum()), abs=1e-5)
    assert found.l0 == pytest.approx(float((f != 0).sum(-1).double().mean()))
    losses = [
        torch.nn.functional.cross_entropy(run.logits[0, :-1], torch.tensor(row[1:]), reduction="none")  # type: ignore[index]
        for run, row in zip(singles, ROWS, strict=True)
    ]
    assert found.ce_intact == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert found.tokens == 15


@pytest.mark.positive_control
def test_massive_tokens_are_set_apart_and_left_as_they_are() -> None:
    # Word 3 is a hundred times as long. A dictionary that rebuilds nothing else well explains nearly all variance with
    # it, and little without; without it, the splice leaves those tokens alone.
    model = reader(heavy_word=3)
    rows = [[3, 5, 7, 9, 11, 13, 2, 4], [6, 8, 3, 10, 12, 14, 1, 9]]
    sae = Both(32, "embed", torch.zeros(1))
    keep = sae.encode
    sae.encode = lambda x: keep(x) * (x.norm(dim=-1, keepdim=True) > 20)  # type: ignore[method-assign]
    quality = measure_quality(model, sae, model.tokenize(rows))
    assert quality.massive_tokens == 2
    # 2 equal vectors v among 16 that are small beside: around the mean v/8 they hold 2 (7/8)^2 of 2 (7/8)^2 + 14 / 64.
    assert quality.massive_variance_share == pytest.approx(0.875, abs=2e-3)
    assert quality.everywhere.explained_variance > 0.9
    assert quality.ordinary.explained_variance < 0.1
    assert quality.ordinary.tokens == 14
    assert quality.ordinary.l0 == 0.0


@pytest.mark.bad_input
def test_what_cannot_be_measured_is_told(llama: Model) -> None:
    tokens = llama.tokenize(ROWS)
    with pytest.raises(NotFinite, match="weights are damaged"):
        measure_quality(llama, Broken(32, SITE, torch.zeros(1)), tokens)
    with pytest.raises(BadArguments, match="width 16"):
        measure_quality(llama, Both(16, SITE, torch.zeros(1)), tokens)
    with pytest.raises(BadPrompts, match="nothing is predicted"):
        measure_quality(llama, Both(32, SITE, torch.zeros(1)), llama.tokenize([[3], [4]]))


def _predictable(model: Model):
    """Rows that continue as the model itself says, so that taking its activations away costs something."""
    rows = model.generate(model.tokenize([[3], [9], [20], [31]]), max_new_tokens=12)
    return model.tokenize([list(row) for row in rows])
