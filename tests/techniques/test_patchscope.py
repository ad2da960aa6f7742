"""patchscope: what the toy's second layer makes of an activation, by hand; a prompt put into itself; controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from anatomist.causal.transplants import Margin, same_norm
from anatomist.errors import BadArguments, BadPosition, BadPrompts, BadSite
from anatomist.measures.metrics import Metric
from anatomist.model.loading import wrap_model
from anatomist.prompts.given import inline_set
from anatomist.technique import Context
from anatomist.techniques import patchscope
from anatomist.techniques.patchscope import GAIN, LENS, NOTHING, PATCH, RANDOM, Arguments, PatchscopeResult

from tests.backends.families import FAMILIES

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

PROMPTS = [{"clean": "t3 t7 t1 t3"}, {"clean": "t5 t2 t8 t5"}, {"clean": "t9 t4 t6 t9"}]
TARGET = "t3 t9 t1 t0"


def look(model: Model, prompts: list[dict[str, Any]] = PROMPTS, **more: Any) -> PatchscopeResult:
    given = {"model": "m", "prompts": prompts, "target": TARGET} | more
    return patchscope.run(Context(model, prompts=inline_set(prompts)), Arguments.model_validate(given))


@pytest.mark.hand_worked
def test_the_toys_second_layer_looks_the_token_up_in_the_target(toy: Model) -> None:
    # After layer 0 the source's last position holds t3. In the target 't3 t9 t1 _' layer 1 looks for what followed t3
    # there: t9, with probability e^10 / (e^10 + 19) = .99914. After layer 1 the answer t7 of the source is written.
    result = look(toy, max_new_tokens=1)
    assert [d.top[0] for d in result.decoded] == ["t9", "t7"]
    assert [d.text for d in result.decoded] == ["t9", "t7"]
    assert result.decoded[0].probability == pytest.approx(0.99914, abs=1e-4)
    assert result.own[0] == "t7"
    # t5 and t9 of the other prompts: t5 is not in the target, what followed t9 there is t1. None is the source's own.
    assert result.precision.column(PATCH) == (0.0, 1.0)
    assert result.precision.column(NOTHING) == (0.0, 0.0)


@pytest.mark.hand_worked
def test_the_margin_is_the_top_logit_less_the_largest_other() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]])
    margin = Margin("logprob", answers=((0,), (2,)))
    assert margin(logits).tolist() == [0.5, -3.0]
    assert margin.rows([1])(logits[1:]).tolist() == [-3.0]


@pytest.mark.positive_control
@pytest.mark.parametrize(
    ("family", "backend"), [("llama", "local"), ("llama", "nnsight"), ("gpt2", "local"), ("gemma3", "local")]
)
def test_a_prompt_as_its_own_target_says_exactly_what_it_says(family: str, backend: str) -> None:
    # Same prompt, layer and position: every layer's patch must change nothing. Rules out a shifted layer or position.
    model = wrap_model(FAMILIES[family](), None, name=family, backend=backend)
    result = look(model, [{"clean": (5, 8, 2, 9, 4)}], target=(5, 8, 2, 9, 4), controls=1)
    assert result.precision.column(PATCH) == (1.0,) * model.info.n_layers
    assert max(v or 0.0 for v in result.kl.column(PATCH) or ()) < 1e-5
    assert all(t.passed for t in result.self_tests)
    assert [d.top for d in result.decoded] == [result.own] * model.info.n_layers


@pytest.mark.positive_control
def test_the_last_layer_decodes_the_sources_own_prediction_in_any_target() -> None:
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    prompts = [{"clean": (5, 8, 2, 9 + i)} for i in range(6)]
    result = look(model, prompts, target=(1, 2, 3), controls=2)
    assert (result.precision.column(PATCH) or ())[-1] == 1.0
    assert (result.kl.column(PATCH) or ())[-1] == pytest.approx(0, abs=1e-5)
    assert (result.kl.column(LENS) or ())[-1] == pytest.approx(0, abs=1e-5)
    assert result.path.startswith("fast")


def test_each_patch_is_that_of_a_plain_run() -> None:
    # An independent way: one edit, one forward pass. Rules out values that land in another prompt's row or layer.
    from anatomist.model.edits import Edit
    from anatomist.model.sites import Site

    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    prompts = [{"clean": (5, 8, 2, 9)}, {"clean": (7, 1, 6)}]
    result = look(model, prompts, target=(1, 2, 3, 4), target_layer=1, target_position=2, prompt=1, controls=1)
    target = model.tokenize([(1, 2, 3, 4)])
    expected = []
    for layer in range(model.info.n_layers):
        far = []
        for prompt in prompts:
            tokens = model.tokenize([prompt["clean"]])
            ran = model.run(tokens, read=[Site("resid_post", layer)], logits_at=tokens.last)
            value = ran.reads[Site("resid_post", layer)][:, -1:]
            edit = Edit(site=Site("resid_post", 1), rule="set", positions=(2,), value=value)
            logits = model.run(target, edits=[edit], logits_at=target.last).logits
            assert logits is not None
            assert ran.logits is not None
            far.append(float(Metric("kl", reference=ran.logits)(logits)[0]))
            top = model.token_strings([int(logits[0].argmax())])[0]
        expected.append(sum(far) / 2)
        assert result.decoded[layer].top[0] == top  # the last prompt is the one shown
    assert result.kl.column(PATCH) == pytest.approx(expected, abs=1e-4)
    assert any("before the target's last token" in w for w in result.warnings)


@pytest.mark.negative_control
def test_random_activations_and_the_target_alone_do_not_give_the_answer(toy: Model) -> None:
    result = look(toy)
    assert max(v or 0.0 for v in result.precision.column(RANDOM) or ()) < 0.5
    assert result.precision.column(NOTHING) == (0.0, 0.0)
    # After the last layer the logit lens is as good: nothing is gained, and that is said.
    assert (result.precision.column(GAIN) or ())[1] == 0.0
    assert any("best control" in w for w in result.warnings)


def test_random_activations_have_the_norm_of_those_they_stand_for() -> None:
    residuals = torch.randn(2, 3, 16) * torch.tensor([1.0, 100.0])[:, None, None]
    drawn = same_norm(residuals, 0)
    assert drawn.norm(dim=-1).flatten().tolist() == pytest.approx(residuals.norm(dim=-1).flatten().tolist(), rel=1e-5)
    assert (drawn != same_norm(residuals, 1)).all()


@pytest.mark.bad_input
def test_what_cannot_be_patched_is_refused(toy: Model) -> None:
    with pytest.raises(BadPrompts, match="Give a `target` that this model reads"):
        look(toy, target=patchscope.IDENTITY)
    with pytest.raises(BadPosition, match="position 9 is outside"):
        look(toy, target_position=9)
    with pytest.raises(BadSite, match="layer 2 does not exist"):
        look(toy, target_layer=2)
    with pytest.raises(BadPrompts, match="prompt 3 does not exist"):
        look(toy, prompt=3)
    with pytest.raises(BadArguments, match="each once"):
        look(toy, layers=[0, 0])


@pytest.mark.slow
def test_smollm2_holds_its_next_token_in_late_layers(smollm2: Model) -> None:
    # Eight prompts gave .38 at layer 3, 1.0 at layer 26 where the logit lens gave .25, and 1.0 at the last layer.
    texts = ("The capital of France is", "Two plus two equals", "The opposite of hot is")
    prompts = [{"clean": text} for text in texts]
    result = look(smollm2, prompts, target=patchscope.IDENTITY, layers=[3, 26, 29], controls=1)
    shares, by_lens = result.precision.column(PATCH) or (), result.precision.column(LENS) or ()
    assert shares[1:] == (1.0, 1.0)
    assert (shares[0] or 0.0) < 1.0
    assert (by_lens[1] or 0.0) < 1.0
    assert all(t.passed for t in result.self_tests)


def test_the_picture_shows_precision_and_distance(toy: Model) -> None:
    figure = patchscope.plot(look(toy))
    assert [len(panel.series) for panel in figure.panels if panel.kind == "lines"] == [4, 4]
