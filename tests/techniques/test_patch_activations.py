"""Activation patching: numbers worked out on paper, a circuit that is known, plain module hooks, and bad input."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest
import torch
from anatomist.errors import AnatomistError, BadArguments, BadPosition, BadPrompts, BadSite, Cancelled
from anatomist.model.backends.local import LocalModel
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.technique import Context
from anatomist.techniques import patch_activations
from anatomist.techniques.patch_activations import Arguments, PatchingResult, PatchSite

from tests.backends.families import llama

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

PAIR = Prompt(clean="t3 t7 t1 t3", corrupted="t5 t9 t2 t5", answer="t7", wrong="t9")
IOI = Prompt(
    clean="When John and Mary went to the shops, John gave the bag to",
    corrupted="When John and Mary went to the shops, Mary gave the bag to",
    answer=" Mary",
    wrong=" John",
)


def patch(model: Model, *prompts: Prompt, **more: object) -> PatchingResult:
    chosen = PromptSet(handle="inline", task="inline", split="inline", prompts=prompts)
    arguments = Arguments(model="m", prompts=prompts, **more)  # type: ignore[arg-type]
    return patch_activations.run(Context(model=model, prompts=chosen), arguments)


def changes(result: PatchingResult) -> list[float]:
    assert result.effects[0].change.values is not None
    return [float(v or 0) for v in result.effects[0].change.values]


@pytest.fixture(scope="module")
def many(toy: Model) -> tuple[Prompt, ...]:
    return make_prompts("induction", 32, 0, toy)[0].prompts


@pytest.fixture(scope="module")
def tiny() -> LocalModel:
    return LocalModel(llama(), None, name="tiny-llama")


IDS = (
    Prompt(clean=(5, 8, 2, 9, 4), corrupted=(5, 8, 7, 9, 4), answer=11, wrong=12),
    Prompt(clean=(3, 8, 6, 1, 4), corrupted=(3, 8, 9, 1, 4), answer=21, wrong=13),
)


@pytest.mark.hand_worked
@pytest.mark.parametrize(("direction", "sign"), [("noising", -1), ("denoising", 1)])
def test_the_two_heads_of_the_circuit_have_the_effects_worked_out_on_paper(
    toy: Model, direction: str, sign: int
) -> None:
    result = patch(toy, PAIR, site="head", direction=direction)
    # Intact: 10 on the answer. L1H2 from the other run: 0 on the answer, 10 on the wrong one: 20. L0H1 from the other
    # run: no key matches, so L1H2 reads tokens 1, 2, 3 evenly (0 is barred): a third of 10 is left, 10 - 10/3.
    expected = [0.0] * 8
    expected[1], expected[6] = sign * (10 - 10 / 3), sign * 20.0
    assert changes(result) == pytest.approx(expected, abs=1e-4)
    effects = result.effects[0]
    assert effects.base.mean == pytest.approx(-sign * 10, abs=1e-4)
    assert effects.other is not None
    assert effects.other.mean == pytest.approx(sign * 10, abs=1e-4)
    assert effects.fraction is not None
    assert effects.fraction.at(1, 2) == pytest.approx(1.0, abs=1e-5)  # 20 of the gap of 20
    assert effects.fraction.at(0, 1) == pytest.approx(1 / 3, abs=1e-5)  # 6.67 of 20


@pytest.mark.hand_worked
def test_the_fraction_is_a_ratio_of_means_not_a_mean_of_ratios(toy: Model) -> None:
    # A prompt of 4 tokens loses 10 - 10/3 through L0H1, one of 6 loses 10 - 10/5; both gaps are 20.
    longer = Prompt(clean="t3 t7 t1 t8 t10 t3", corrupted="t5 t9 t2 t11 t12 t5", answer="t7", wrong="t9")
    result = patch(toy, PAIR, longer, heads=("L0H1",), site="head", direction="noising")
    assert result.effects[0].fraction is not None
    assert result.effects[0].fraction.at(0, 1) == pytest.approx((20 / 3 + 8) / 40, abs=1e-5)
    assert result.effects[0].change.at(0, 1) == pytest.approx(-(20 / 3 + 8) / 2, abs=1e-4)


@pytest.mark.positive_control
@pytest.mark.parametrize(
    ("site", "found"), [("head", {"L0H1", "L1H2"}), ("q", {"L1H2"}), ("k", {"L1KV2"}), ("v", {"L0KV1", "L1KV2"})]
)
def test_exactly_the_heads_of_the_circuit_stand_out_through_their_inputs(
    toy: Model, many: tuple[Prompt, ...], site: str, found: set[str]
) -> None:
    result = patch(toy, *many, site=site, direction="noising")
    assert {s.cell for s in result.stand_out} == found
    assert all(s.p_holm is not None and s.p_holm < 0.01 for s in result.stand_out)
    others = [v for i, v in enumerate(changes(result)) if (i // 4, i % 4) not in ((0, 1), (1, 2))]
    assert others == [0.0] * 6  # exactly: nobody reads what they write


@pytest.mark.negative_control
def test_a_run_patched_from_an_equal_run_shows_nothing_and_gives_no_fractions(toy: Model) -> None:
    same = PAIR.model_copy(update={"corrupted": PAIR.clean})
    result = patch(toy, same, same, site="resid_pre")
    assert changes(result) == [0.0] * 8
    assert not result.stand_out
    assert result.effects[0].fraction is None
    assert result.effects[0].withheld is not None
    assert "0 in its interval" in result.effects[0].withheld
    assert any("no fractions" in w for w in result.warnings)


@pytest.mark.negative_control
def test_no_head_stands_out_of_a_random_model_on_few_prompts(tiny: LocalModel) -> None:
    result = patch(tiny, *IDS, site="head")
    assert not result.stand_out
    assert any("none of 12 cells can survive Holm" in w for w in result.warnings)


def test_every_result_carries_its_self_tests(toy: Model, tiny: LocalModel) -> None:
    for model, prompts, at_least in ((toy, (PAIR,), 5), (tiny, IDS, 6)):
        result = patch(model, *prompts, site="attn_out")
        assert len(result.self_tests) >= at_least
        assert all(test.passed for test in result.self_tests), result.self_tests
    assert "whole forward passes" in result.self_tests[-1].name  # the fast path was checked on its own cells


def test_the_path_and_the_cost_are_told(toy: Model, tiny: LocalModel) -> None:
    slow, fast = patch(toy, PAIR, site="resid_pre"), patch(tiny, *IDS, site="resid_pre")
    assert slow.cost.path == "generic"
    assert fast.cost.path == "fast+shared-prefix"
    assert fast.cost.flops < fast.cost.estimated_flops
    assert (slow.cost.cells, slow.cost.places_written) == (8, 8)  # 2 layers x 4 positions on one prompt


def test_grids_are_labelled_and_agree_with_each_other(toy: Model) -> None:
    by_position = patch(toy, PAIR, site="head", grid="head_position", heads=("L1H2",), direction="noising")
    assert by_position.effects[0].change.axes[0].labels == ("L1H2",)
    assert by_position.effects[0].change.axes[1].labels == ("0:t3", "1:t7", "2:t1", "3:t3")
    # Only the last position's output is read: there it is the whole effect of the head.
    assert changes(by_position) == pytest.approx([0, 0, 0, -20], abs=1e-4)
    last = patch(toy, PAIR, site="head", heads=("L1H2",), positions=("last",), direction="noising")
    assert last.effects[0].change.at(1 - 1, 2) == pytest.approx(-20, abs=1e-4)
    layers = patch(toy, PAIR, site="head", grid="layer_position", layers=(1,), direction="noising")
    assert changes(layers) == pytest.approx([0, 0, 0, -20], abs=1e-4)


def test_heads_that_were_not_chosen_are_missing_not_zero(toy: Model) -> None:
    result = patch(toy, PAIR, site="head", heads=("L1H2", "L0H0"))
    assert result.effects[0].change.values is not None
    assert [v is None for v in result.effects[0].change.values] == [False, True, True, True, True, True, False, True]


def test_key_value_heads_are_named_as_such(tiny: LocalModel) -> None:
    result = patch(tiny, *IDS, site="v", heads=("L1KV1",))
    axis = result.effects[0].change.axes[1]
    assert (axis.name, axis.labels) == ("key-value head", ("KV0", "KV1"))
    with pytest.raises(BadSite, match="no key-value head"):
        patch(tiny, *IDS, site="v", heads=("L1H1",))


def test_prompts_of_unequal_lengths_use_their_roles(toy: Model, many: tuple[Prompt, ...]) -> None:
    result = patch(toy, *many, site="resid_pre")
    labels = result.effects[0].change.axes[1].labels
    assert [label.split(" ")[0] for label in labels] == ["A1", "B1", "END"]
    with pytest.raises(BadPosition, match="different lengths"):
        patch(toy, *many, site="resid_pre", positions="all")


def test_several_metrics_come_from_one_pass(toy: Model) -> None:
    result = patch(toy, PAIR, site="head", direction="noising", more_metrics=("logprob", "prob", "loss", "kl"))
    by_name = {e.metric: e for e in result.effects}
    assert list(by_name) == ["logit_diff", "logprob", "prob", "loss", "kl"]
    assert by_name["loss"].change.at(1, 2) == pytest.approx(-(by_name["logprob"].change.at(1, 2) or 0))
    assert by_name["kl"].base.mean == pytest.approx(0, abs=1e-6)
    alone = patch(toy, PAIR, site="head", direction="noising", metric="prob")
    assert alone.effects[0].change == by_name["prob"].change


def test_what_a_direction_shows_is_said_in_words(toy: Model) -> None:
    assert "sufficient" in patch(toy, PAIR).summary
    assert "necessary" in patch(toy, PAIR, direction="noising").summary


def test_the_picture_has_a_panel_for_each_metric(toy: Model) -> None:
    figure = patch_activations.plot(patch(toy, PAIR, site="head", more_metrics=("prob",)))
    assert [panel.kind for panel in figure.panels] == ["heatmap", "heatmap"]
    assert "denoising" in figure.caption


def test_values_of_every_prompt_are_kept(toy: Model) -> None:
    context = Context(model=toy, prompts=PromptSet(handle="x", task="x", split="inline", prompts=(PAIR, PAIR)))
    patch_activations.run(context, Arguments(model="m", prompts=(PAIR,), site="head"))
    kept = context.arrays["values"]
    assert (tuple(kept.tensor.shape), kept.axes) == ((1, 8, 2), ("metric", "cell", "prompt"))


@pytest.mark.parametrize("site", get_args(PatchSite))
def test_every_site_can_be_swept_on_a_language_model(tiny: LocalModel, site: str) -> None:
    result = patch(tiny, *IDS, site=site, grid="layer_position", positions=(2, "last"))
    assert result.effects[0].change.shape == (3, 2)
    assert all(test.passed for test in result.self_tests)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"site": "resid_pre", "layers": (7,)}, BadSite, "layers are 0 to 1"),
        ({"site": "mlp_out"}, BadSite, "have no 'mlp_out'"),
        ({"site": "head", "heads": ("L0H9",)}, BadSite, "runs from 0 to 3"),
        ({"site": "head", "heads": ("H1",)}, BadSite, "Write it like"),
        ({"site": "head", "heads": ("L0H1", "L0H1")}, BadArguments, "each once"),
        ({"site": "head", "heads": ()}, BadArguments, "name at least one"),
        ({"site": "head", "heads": ("L0H1",), "layers": (1,)}, BadArguments, "outside layers"),
        ({"site": "resid_pre", "grid": "layer_head"}, BadArguments, "has no heads"),
        ({"site": "resid_pre", "heads": ("L0H1",)}, BadArguments, "has no heads"),
        ({"site": "resid_pre", "positions": (9,)}, BadPosition, "outside prompt 0"),
        ({"site": "resid_pre", "positions": ("t3",)}, BadPosition, "occurs at positions"),
        ({"site": "resid_pre", "more_metrics": ("logit_diff",)}, BadArguments, "name each once"),
    ],
)
def test_bad_input_is_refused_with_what_is_allowed(
    toy: Model, more: dict, error: type[AnatomistError], told: str
) -> None:
    with pytest.raises(error, match=told):
        patch(toy, PAIR, **more)


@pytest.mark.bad_input
def test_prompts_without_a_counterfactual_are_refused(toy: Model) -> None:
    with pytest.raises(BadPrompts, match="`corrupted`"):
        patch(toy, Prompt(clean="t1 t2 t1", answer="t2", wrong="t3"))
    with pytest.raises(BadPrompts, match="`wrong`"):
        patch(toy, Prompt(clean="t1 t2 t1", corrupted="t3 t4 t3", answer="t2"))


def test_a_caller_who_stops_ends_the_sweep(toy: Model) -> None:
    def stop(done: float, total: float, what: str) -> None:
        raise Cancelled("stopped")

    chosen = PromptSet(handle="inline", task="inline", split="inline", prompts=(PAIR,))
    with pytest.raises(Cancelled):
        patch_activations.run(Context(toy, chosen, progress=stop), Arguments(model="m", prompts=(PAIR,)))


@pytest.mark.slow
def test_head_patching_of_a_language_model_equals_plain_module_hooks(smollm2: Model) -> None:
    """Rules out heads cut at the wrong width, the wrong run as source, and a metric at another position."""
    from anatomist.model.offline import offline_folder
    from transformers import AutoModelForCausalLM

    result = patch(smollm2, IOI, site="head")
    plain = AutoModelForCausalLM.from_pretrained(offline_folder("smollm2-135m"), attn_implementation="eager").eval()
    runs = smollm2.tokenize([IOI.clean, str(IOI.corrupted)])
    clean, corrupted = (torch.tensor([ids]) for ids in runs.ids)
    right, wrong = (smollm2.token_ids(str(a))[0] for a in (IOI.answer, IOI.wrong))
    outputs = [layer.self_attn.o_proj for layer in plain.model.layers]
    z: dict[int, torch.Tensor] = {}

    def difference() -> float:
        logits = plain(corrupted).logits[0, -1]
        return float(logits[right] - logits[wrong])

    with torch.no_grad():
        watch = [o.register_forward_pre_hook(lambda _, x, i=i: z.update({i: x[0]})) for i, o in enumerate(outputs)]
        plain(clean)
        for handle in watch:
            handle.remove()
        base = difference()
        for layer, head in [(23, 3), (29, 1), (20, 0), (29, 0), (24, 4), (5, 5), (0, 8)]:
            part = slice(head * 64, head * 64 + 64)

            def put(_: object, x: tuple, layer: int = layer, part: slice = part) -> tuple:
                changed = x[0].clone()
                changed[..., part] = z[layer][..., part]
                return (changed,)

            handle = outputs[layer].register_forward_pre_hook(put)
            expected = difference() - base
            handle.remove()
            assert result.effects[0].change.at(layer, head) == pytest.approx(expected, abs=1e-4)
    assert result.effects[0].change.top(1)[0].labels == ("23", "H3")
