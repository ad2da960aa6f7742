"""encode_sae: the features of a circuit that is known, what a plain sum says, and what is left over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from anatomist.dictionaries.saelens import load_dictionary, wrap_sae
from anatomist.errors import BadArguments, BadPosition
from anatomist.model.loading import wrap_model
from anatomist.model.sites import Site
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.technique import Context
from anatomist.techniques import encode_sae
from anatomist.techniques.encode_sae import Arguments

from tests.backends.families import FAMILIES
from tests.dictionaries import small

if TYPE_CHECKING:
    from anatomist.dictionaries.protocol import Dictionary
    from anatomist.model.protocol import Model

PROMPT = Prompt(clean="t3 t7 t1 t3", answer="t7", wrong="t1")


def encoded(
    model: Model, dictionary: Dictionary | None, *prompts: Prompt, **more: object
) -> tuple[encode_sae.EncodeSaeResult, Context]:
    chosen = PromptSet(handle="inline", task="inline", split="inline", prompts=prompts)
    context = Context(model=model, prompts=chosen, dictionary=dictionary)
    return encode_sae.run(context, Arguments(model="m", sae="d", prompts=prompts, **more)), context  # type: ignore[arg-type]


@pytest.mark.hand_worked
def test_the_features_of_the_induction_circuit_are_those_written_down(toy: Model) -> None:
    # After layer 1 the last token t3 holds: token t3 (3), buffer t1 (20 + 1), output t7 (40 + 7), each 1, and besides
    # its position (1, no feature) and junk (no feature). Unembedding 10: output t7 adds 10 logits to t7 - t1.
    result, context = encoded(toy, load_dictionary("toy-induction-l1"), PROMPT, positions=("last",))
    assert [(f.feature, f.largest) for f in sorted(result.features, key=lambda f: f.index)] == [
        ("L1F3", 1.0), ("L1F21", 1.0), ("L1F47", 1.0),
    ]  # fmt: skip
    output = next(f for f in result.features if f.feature == "L1F47")
    assert output.direct_logit_diff is not None
    assert output.direct_logit_diff.mean == pytest.approx(10.0)
    assert output.promotes == ("t7",)
    assert result.l0.mean == 3
    residual = toy.run(toy.tokenize([PROMPT.clean]), read=[Site("resid_post", 1)]).reads[Site("resid_post", 1)][0, -1]
    left = float(residual.square().sum()) - 3.0  # three features of size 1, all along axes of their own
    assert result.error.mean == pytest.approx((left / float(residual.square().sum())) ** 0.5, abs=1e-6)
    assert result.self_tests[0].passed
    kept = context.arrays["feature"].tensor.long()
    assert {3, 21, 47} <= set(kept.tolist())


def _site(layer: int):
    from anatomist.model.sites import Site

    return Site("resid_post", layer)


@pytest.mark.positive_control
def test_direct_effects_add_up_to_the_logit_difference_where_nothing_else_writes(toy: Model) -> None:
    # In the toy only output features reach the logits: their sum is the model's own logit difference, 10.
    result, _ = encoded(toy, load_dictionary("toy-induction-l1"), PROMPT)
    total = sum(f.direct_logit_diff.mean for f in result.features if f.direct_logit_diff)
    logits = toy.run(toy.tokenize([PROMPT.clean]), logits_at=[3]).logits
    assert logits is not None
    assert total == pytest.approx(float(logits[0, 7] - logits[0, 1]), abs=1e-4)


@pytest.mark.positive_control
def test_sparse_arrays_hold_what_the_encoder_gives() -> None:
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    sae = small.topk()
    dictionary = wrap_sae(sae, name="k", model=model)
    prompts = (Prompt(clean=(5, 6, 7, 8), answer=9, wrong=10), Prompt(clean=(1, 2, 3)))
    _, context = encoded(model, dictionary, *prompts)
    token, feature, value = (context.arrays[n].tensor for n in ("token", "feature", "value"))
    assert len(token) == small.K * 7
    tokens = model.tokenize([(1, 2, 3)])
    x = model.run(tokens, read=[dictionary.info.reads]).reads[dictionary.info.reads][0]
    dense = torch.zeros(7, small.D_DICT)
    dense[token.long(), feature.long()] = value
    torch.testing.assert_close(dense[4:], sae.encode(x), atol=1e-5, rtol=0)


@pytest.mark.negative_control
def test_a_dictionary_of_another_layer_finds_no_output_features(toy: Model) -> None:
    # Before layer 1 nothing is written to the output: no feature of 40 to 59 is active, and nothing reaches the logits.
    result, _ = encoded(toy, load_dictionary("toy-induction-l0"), PROMPT)
    assert all(f.index < 40 for f in result.features)
    assert all(f.direct_logit_diff is None or f.direct_logit_diff.mean == 0 for f in result.features)
    assert all(f.promotes == () for f in result.features)


@pytest.mark.negative_control
def test_a_feature_that_is_asked_for_and_silent_is_shown_as_silent(toy: Model) -> None:
    result, _ = encoded(toy, load_dictionary("toy-induction-l1"), PROMPT, features=("L1F59", 3))
    assert (result.features[0].index, result.features[0].at) == (59, "active nowhere")
    assert result.features[1].largest == 1.0


def test_a_random_dictionary_leaves_most_over_and_says_so() -> None:
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    result, _ = encoded(model, wrap_sae(small.standard(), name="r", model=model), Prompt(clean=(5, 6, 7, 8)))
    assert result.error.mean > 0.5
    assert np.isfinite([f.norm_share for f in result.features]).all()
    assert result.features[0].direct_logit_diff is None


@pytest.mark.bad_input
def test_what_cannot_be_used_is_told(toy: Model) -> None:
    with pytest.raises(BadArguments, match="no dictionary was named"):
        encoded(toy, None, PROMPT)
    dictionary = load_dictionary("toy-induction-l1")
    with pytest.raises(BadArguments, match="has features 0 to 59"):
        encoded(toy, dictionary, PROMPT, features=(60,))
    with pytest.raises(BadArguments, match=r"which explains blocks.1.resid_post"):
        encoded(toy, dictionary, PROMPT, features=("L3F2",))
    with pytest.raises(BadPosition, match="no token"):
        encoded(toy, dictionary, PROMPT, positions=("t19",))


def test_the_picture_draws(toy: Model) -> None:
    from anatomist.drawing import png

    result, _ = encoded(toy, load_dictionary("toy-induction-l1"), PROMPT)
    assert png(encode_sae.plot(result))[:4] == b"\x89PNG"
