"""Direct logit attribution: every term is what taking that part out of the final residual changes, norms frozen.

The sum alone would pass with heads permuted among themselves, or with everything put down to one component. So each
head is held against the plain model's own output matrix, called through a hook with that head's values in and out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from anatomist.causal.direct_effects import pulled_back
from anatomist.errors import BadArguments, BadPrompts, BadSite, Cancelled, ParityError, UnknownName, WouldNotFit
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, random_toy, tiny
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model, Norm, Run
from anatomist.model.sites import Site, head_name
from anatomist.prompts.given import inline_set
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import PromptSet
from anatomist.result import Estimate
from anatomist.technique import Context
from anatomist.techniques.direct_logit_attribution import Arguments, DirectLogitAttributionResult, plot, run
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.backends.families import FAMILIES

REPEATED: dict[str, Any] = {"clean": "t1 t2 t3 t1", "answer": "t2", "wrong": "t5"}
ROWS = [((5, 9, 3, 77, 12), 4, 8), ((1, 2, 3, 4, 5, 6, 7), 50, 90), ((33, 60), 0, 96)]  # ids, answer, wrong
O_PROJ = {
    "gpt2": "transformer.h.{}.attn.c_proj", "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "llama": "model.layers.{}.self_attn.o_proj", "gemma3": "model.layers.{}.self_attn.o_proj",
    "qwen2": "model.layers.{}.self_attn.o_proj", "qwen3": "model.layers.{}.self_attn.o_proj",
}  # fmt: skip


def attribute(
    model: Model, prompts: PromptSet | list[dict[str, Any]], *, context: dict[str, Any] | None = None, **more: Any
) -> DirectLogitAttributionResult:
    given = prompts if isinstance(prompts, PromptSet) else inline_set(prompts)
    return run(Context(model, given, **(context or {})), Arguments(model="m", prompts="given", **more))


def effects(found: DirectLogitAttributionResult) -> dict[str, float]:
    return {c.name: c.effect.mean for c in found.all_components}


def whole(found: DirectLogitAttributionResult) -> float:
    return sum(c.effect.mean for c in found.all_components if c.part_of is None)


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        # Prompt t0 t1, last embedding (0, 1). z is the mean of (1, 0) and (0, 1); the output matrix doubles its first
        # dimension and drops the second: (1, 0). Residual (1, 1), neurons relu(1) and relu(-1), neuron 0 writes
        # (0, 1): residual (1, 2), logits (1, 2, 3). t2 minus t0 reads the second dimension, t2 minus t1 the first.
        ("t0", {"embed": 1.0, "L0H0": 0.0, "blocks.0.mlp_out": 1.0, "L0N0": 1.0, "L0N1": 0.0}),
        ("t1", {"embed": 0.0, "L0H0": 1.0, "blocks.0.mlp_out": 0.0, "L0N0": 0.0, "L0N1": 0.0}),
    ],
)
def test_every_term_is_the_one_worked_out_on_paper(wrong: str, expected: dict[str, float]) -> None:
    found = attribute(tiny(), [{"clean": "t0 t1", "answer": "t2", "wrong": wrong}], neurons=2)
    assert {name: effects(found)[name] for name in expected} == expected
    assert found.total.mean == sum(expected[name] for name in ("embed", "L0H0", "blocks.0.mlp_out"))


@pytest.mark.hand_worked
def test_a_frozen_norm_is_pulled_back_centring_and_all() -> None:
    # part (3, 1) centred (1, -1), over scale 2, times weight (2, 4): (1, -2); along (1, 1): -1.
    # The other way: direction (1, 1) times (2, 4) is (2, 4), centred (-1, 1), over 2: (-.5, .5); (3, 1) . that = -1.
    norm = Norm("layer", torch.tensor([2.0, 4.0]), torch.tensor([9.0, 9.0]), 0.0)
    back = pulled_back(norm, torch.ones(1, 2), torch.tensor([[2.0]]))
    assert back.tolist() == [[-0.5, 0.5]]
    assert float((back * torch.tensor([3.0, 1.0])).sum()) == -1.0


@pytest.mark.positive_control
def test_in_the_hand_set_circuit_the_induction_head_writes_all_of_it(toy: Model) -> None:
    discovery, _ = make_prompts("induction", 24, 0, toy)
    found = attribute(toy, discovery)
    assert found.total.mean == pytest.approx(10.0, abs=1e-4)
    assert effects(found)["L1H2"] == pytest.approx(10.0, abs=1e-4)
    assert found.top[0].name == "L1H2"
    assert "L1H2 +10" in found.summary
    assert whole(found) == pytest.approx(found.total.mean, abs=1e-5)


@pytest.mark.negative_control
def test_decoys_and_the_head_that_only_feeds_another_have_no_direct_effect_at_all(toy: Model) -> None:
    """L0H1 is half of the circuit: what this technique does not show."""
    found = attribute(toy, make_prompts("induction", 24, 0, toy)[0])
    rest = {name: value for name, value in effects(found).items() if name not in ("L1H2", "blocks.1.attn_out")}
    assert {"L0H1", "L0H0", "L1H0", "L1H1", "L1H3", "L0H2", "L0H3", "embed"} <= set(rest)
    assert set(rest.values()) == {0.0}


@pytest.mark.negative_control
def test_asked_the_other_way_round_every_term_changes_its_sign() -> None:
    model = random_toy()
    one = attribute(model, [{"clean": "t1 t2 t3", "answer": "t4", "wrong": "t5"}])
    other = attribute(model, [{"clean": "t1 t2 t3", "answer": "t5", "wrong": "t4"}])
    for name, value in effects(one).items():
        assert effects(other)[name] == pytest.approx(-value, abs=1e-6)


def family(name: str) -> tuple[PreTrainedModel, Model]:
    """The plain model, and the same one (drawn again) behind the protocol: wrapping changes a model in place."""
    return FAMILIES[name](), wrap_model(FAMILIES[name](), None, name=name, backend="local")


@contextmanager
def output_of(module: nn.Module, *, without: slice | None = None) -> Iterator[list[Tensor]]:
    """What a module gives, with some of its input set to zero where asked."""

    def zeroed(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x[..., without] = 0
        return (x, *args[1:])

    seen: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, out: seen.append(out))]
    if without is not None:
        handles.append(module.register_forward_pre_hook(zeroed))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def removed(hf: PreTrainedModel, name: str, model: Model, row: int, layer: int, head: int) -> float:
    """Logit difference lost when a head's write is taken from the final residual, scale kept; all by plain modules."""
    ids, answer, wrong = ROWS[row]
    module = hf.get_submodule(O_PROJ[name].format(layer))
    width = model.info.d_head
    written = []
    for without in (None, slice(head * width, (head + 1) * width)):
        with output_of(module, without=without) as seen, torch.no_grad():
            hf(torch.tensor([ids]))
        written.append(seen[0].reshape(1, len(ids), -1)[0, -1])
    write = written[0] - written[1]
    if name == "gemma3":
        after = hf.get_submodule(f"model.layers.{layer}.post_attention_layernorm")
        write = write / rms(written[0]) * (1 + after.weight)  # type: ignore[operator]
    tokens = model.tokenize([ids])
    final = model.run(tokens, read=[Site("resid_post", 2)]).reads[Site("resid_post", 2)][0, -1]
    return logit_diff(hf, name, final, final, answer, wrong) - logit_diff(hf, name, final - write, final, answer, wrong)


def logit_diff(hf: PreTrainedModel, name: str, x: Tensor, scaled_by: Tensor, answer: int, wrong: int) -> float:
    """Final norm with the scale of `scaled_by`, then the unembedding: written out here once more."""
    paths = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
    norm: Any = hf.get_submodule(paths.get(name, "model.norm"))
    if name in paths:
        scale = (scaled_by.var(unbiased=False) + norm.eps).sqrt()
        y = (x - x.mean()) / scale * norm.weight + norm.bias
    else:
        y = x / rms(scaled_by) * (norm.weight + (1 if name == "gemma3" else 0))
    out: Any = hf.get_output_embeddings()
    logits = out(y)
    return float(logits[answer] - logits[wrong])


@pytest.mark.positive_control
@pytest.mark.parametrize("name", FAMILIES)
def test_each_head_is_worth_what_taking_its_write_away_changes(name: str) -> None:
    """Rules out heads out of order, a transposed output matrix, a scale or centring left out, a post-norm forgotten."""
    hf, model = family(name)
    for row, (ids, answer, wrong) in enumerate(ROWS):
        found = attribute(model, [{"clean": ids, "answer": answer, "wrong": wrong}])
        got = [effects(found)[head_name(layer, head)] for layer in range(3) for head in range(4)]
        expected = [removed(hf, name, model, row, layer, head) for layer in range(3) for head in range(4)]
        assert got == pytest.approx(expected, abs=2e-5)
        assert max(map(abs, expected)) > 0.05
        assert len({round(e, 4) for e in expected}) == 12


@pytest.mark.parametrize("name", FAMILIES)
def test_terms_add_up_to_the_plain_models_logit_difference_on_prompts_of_different_lengths(name: str) -> None:
    hf, model = family(name)
    with torch.no_grad():
        plain = [float(hf(torch.tensor([ids])).logits[0, -1] @ _one_hot(answer, wrong)) for ids, answer, wrong in ROWS]
    prompts = [{"clean": ids, "answer": answer, "wrong": wrong} for ids, answer, wrong in ROWS]
    context = Context(model, inline_set(prompts))
    found = run(context, Arguments(model="m", prompts="given", neurons=3))
    alone = [i for i, c in enumerate(found.all_components) if c.part_of is None]
    assert context.arrays["terms"].tensor[:, alone].sum(1).tolist() == pytest.approx(plain, abs=1e-4)
    assert found.total.mean == pytest.approx(sum(plain) / 3, abs=1e-4)
    for site in ("blocks.0.attn_out", "blocks.2.mlp_out"):
        parts = [c.effect.mean for c in found.all_components if c.part_of == site]
        assert sum(parts) == pytest.approx(effects(found)[site], abs=1e-4)
    assert all(t.passed for t in found.self_tests)
    assert len(found.self_tests) == 4


def _one_hot(answer: int, wrong: int) -> Tensor:
    out = torch.zeros(97)
    out[answer], out[wrong] = 1.0, -1.0
    return out


def test_biases_are_components_of_their_own() -> None:
    _, model = family("gpt2")
    prompts = [{"clean": ids, "answer": a, "wrong": w} for ids, a, w in ROWS]
    found = effects(attribute(model, prompts))
    named = {name for name in found if name.endswith("bias")}
    assert named == {"final_norm bias", *(f"blocks.{n}.{k} bias" for n in range(3) for k in ("attn_out", "mlp_out"))}
    assert min(abs(found[name]) for name in named) > 1e-3
    assert abs(found["position_embed"]) > 1e-3


def test_neurons_not_shown_are_one_term_and_the_top_list_holds_no_part_twice() -> None:
    model = random_toy(d_mlp=8)
    prompts = [{"clean": "t1 t2 t3", "answer": "t4", "wrong": "t5"}]
    every = effects(attribute(model, prompts, neurons=8, neuron_layers=(1,)))
    found = attribute(model, prompts, neurons=2, neuron_layers=(1,), top=50)
    shown = [name for name in effects(found) if name.startswith("L1N")]
    assert len(shown) == 2
    largest = sorted((n for n in every if n.startswith("L1N")), key=lambda n: -abs(every[n]))[:2]
    assert shown == largest
    assert effects(found)["blocks.1.mlp_out other neurons"] == pytest.approx(
        sum(v for n, v in every.items() if n.startswith("L1N") and n not in shown), abs=1e-6
    )
    assert sum(c.effect.mean for c in found.top) == pytest.approx(found.total.mean, abs=1e-5)
    assert "blocks.1.mlp_out" not in {c.name for c in found.top}
    assert "blocks.0.mlp_out" in {c.name for c in found.top}


def test_batches_make_no_difference() -> None:
    _, model = family("llama")
    prompts = [{"clean": ids, "answer": a, "wrong": w} for ids, a, w in ROWS * 3]
    seen: list[float] = []
    tight = {"budget_bytes": 120_000, "progress": lambda done, total, what: seen.append(done)}
    assert effects(attribute(model, prompts, context=tight)) == pytest.approx(
        effects(attribute(model, prompts)), abs=1e-5
    )
    assert len(seen) > 2
    assert seen[-1] == 9


def test_a_soft_cap_stands_after_the_sum() -> None:
    hf, inner = FAMILIES["gemma3"](), FAMILIES["gemma3"]()
    hf.config.final_logit_softcapping = inner.config.final_logit_softcapping = 1.5
    model = wrap_model(inner, None, name="capped", backend="local")
    found = attribute(model, [{"clean": ids, "answer": a, "wrong": w} for ids, a, w in ROWS])
    with torch.no_grad():
        plain = [float(hf(torch.tensor([ids])).logits[0, -1] @ _one_hot(a, w)) for ids, a, w in ROWS]
    assert found.after_cap is not None
    assert found.after_cap.mean == pytest.approx(sum(plain) / 3, abs=1e-4)
    assert whole(found) == pytest.approx(found.total.mean, abs=1e-4)
    assert abs(found.total.mean - found.after_cap.mean) > 1e-2
    assert any("cap" in w for w in found.warnings)


def test_joint_of_adds_what_heads_and_sites_write() -> None:
    _, model = family("llama")
    prompts = [{"clean": (*ids, i), "answer": a, "wrong": w} for i, (ids, a, w) in enumerate(ROWS * 4)]
    found = attribute(model, prompts)
    by_name = {c.name: c.effect for c in found.all_components}
    joint = found.joint_of(["L0H1", "L2H3", "blocks.1.mlp_out"])
    parts: list[Estimate] = [by_name[name] for name in ("L0H1", "L2H3", "blocks.1.mlp_out")]
    assert joint.mean == pytest.approx(sum(p.mean for p in parts))
    assert joint.low == pytest.approx(sum(p.low or 0.0 for p in parts))
    assert joint.high == pytest.approx(sum(p.high or 0.0 for p in parts))
    assert joint.n == 12
    assert found.joint_of(["L0H1"]) == by_name["L0H1"]
    every = [c.name for c in found.all_components if c.part_of is None]
    assert found.joint_of(every).mean == pytest.approx(found.total.mean, abs=1e-5)


def test_the_picture_has_the_top_terms_with_intervals_and_a_map_of_heads(toy: Model) -> None:
    found = attribute(toy, make_prompts("induction", 24, 0, toy)[0], top=4)
    bars, heads = plot(found).panels
    assert bars.kind == "bars"
    assert bars.labels[0] == "L1H2"
    assert len(bars.labels) == 4
    assert bars.low is not None
    assert None not in bars.low
    assert heads.kind == "heatmap"
    assert heads.diverging
    assert heads.grid.at(1, 2) == pytest.approx(10.0, abs=1e-4)
    assert found.by_layer.shape == (2, 1)  # attention only
    assert found.by_kind["attention"].mean == pytest.approx(10.0, abs=1e-4)


def test_smollm2_adds_up_to_a_thousandth(smollm2: Model) -> None:
    found = attribute(smollm2, make_prompts("ioi", 6, 0, smollm2)[0])
    assert all(t.passed and t.tolerance == 1e-3 for t in found.self_tests)
    assert whole(found) == pytest.approx(found.total.mean, rel=1e-3)
    assert found.total.mean > 1.0
    assert found.heads.shape == (30, 9)


class Broken(ToyModel):
    """A toy whose weights, as handed out, have two heads exchanged."""

    def __init__(self, true: ToyModel) -> None:
        blocks = tuple(replace(b, o=b.o.flip(0)) for b in true.weights.blocks)
        super().__init__(replace(true.weights, blocks=blocks), name="broken")
        self.true = true

    def run(self, *args: Any, **more: Any) -> Run:
        return self.true.run(*args, **more)


@pytest.mark.bad_input
def test_weights_that_do_not_describe_the_model_are_an_error() -> None:
    with pytest.raises(ParityError, match=r"heads and bias of each layer add up.*not so"):
        attribute(Broken(random_toy()), [{"clean": "t1 t2 t3", "answer": "t4", "wrong": "t5"}])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"wrong": None}, "1 of 1 prompts have no `wrong`"),
        ({"answer": None}, "1 of 1 prompts have no `answer`"),
        ({"answer": ["t2", "t3"]}, "the `answer` of 1 of 1 prompts is a set.*one token each"),
        ({"wrong": ["t7", "t8"]}, "the `wrong` of 1 of 1 prompts is a set"),
    ],
)
def test_prompts_without_one_clear_contrast_are_refused(toy: Model, change: dict[str, Any], text: str) -> None:
    with pytest.raises(BadPrompts, match=text):
        attribute(toy, [{**REPEATED, **change}])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"neurons": 3}, BadArguments, "has no neurons"),
        ({"neuron_layers": (0,)}, BadArguments, "neurons is 0"),
    ],
)
def test_neurons_that_are_not_there_are_refused(
    toy: Model, more: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        attribute(toy, [REPEATED], **more)


@pytest.mark.bad_input
def test_what_does_not_exist_or_fit_is_refused_and_no_prompts_are_an_error(toy: Model) -> None:
    prompts = [{"clean": "t1 t2 t3", "answer": "t4", "wrong": "t5"}]
    with pytest.raises(BadSite, match="layer 9 does not exist"):
        attribute(random_toy(), prompts, neurons=1, neuron_layers=(9,))
    with pytest.raises(WouldNotFit, match="Name fewer neuron_layers"):
        attribute(random_toy(), prompts, neurons=1, context={"budget_bytes": 100})
    with pytest.raises(BadPrompts, match="no prompts"):
        run(Context(toy), Arguments(model="m", prompts="given"))

    def stop(done: float, total: float, what: str) -> None:
        raise Cancelled("asked to stop")

    with pytest.raises(Cancelled):
        attribute(toy, [REPEATED], context={"progress": stop})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("components", "error", "text"),
    [
        (["L1H9"], UnknownName, "unknown component 'L1H9'"),
        (["L1H2", "blocks.1.attn_out"], BadArguments, "L1H2 is a part of blocks.1.attn_out"),
        (["L1H2", "L1H2"], BadArguments, "each once"),
        ([], BadArguments, "at least one"),
    ],
)
def test_components_that_cannot_be_added_are_refused(
    components: list[str], error: type[Exception], text: str
) -> None:
    found = attribute(induction(), [REPEATED])
    with pytest.raises(error, match=text):
        found.joint_of(components)
