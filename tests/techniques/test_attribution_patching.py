"""attribution_patching: estimates against bare torch and finite differences, and its warnings where they must come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anatomist.errors import BadArguments
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, random_toy
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Backend, Model
from anatomist.prompts.encoding import EncodedPrompts, encode
from anatomist.prompts.given import inline_set
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context
from anatomist.techniques.attribution_patching import Arguments, AttributionResult, plot, run

from tests.backends.families import FAMILIES
from tests.causal.bare_toy import Bare, difference

ONE = {"clean": "t1 t2 t3 t1", "corrupted": "t4 t5 t6 t4", "answer": "t2", "wrong": "t5"}


def attributed(model: Model, prompts: PromptSet, **more: Any) -> AttributionResult:
    given = {"direction": "noising", **more}
    return run(Context(model, prompts), Arguments(model="m", prompts="given", **given))


def estimates(found: AttributionResult) -> dict[tuple[str, ...], float]:
    return {cell.labels: cell.value for cell in found.estimates.change.top(10_000)}


@pytest.fixture(scope="module")
def hard() -> ToyModel:
    return induction()


@pytest.fixture(scope="module")
def soft() -> ToyModel:
    return induction(sharpness=3.0)


@pytest.fixture(scope="module")
def prompts(hard: ToyModel) -> PromptSet:
    return make_prompts("induction", 24, 0, hard)[0]


def random_pairs(n: int = 4, length: int = 7, vocabulary: int = 11) -> PromptSet:
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(vocabulary, (n, 2, length), generator=g).tolist()
    return inline_set([{"clean": c, "corrupted": d, "answer": i, "wrong": i + 1} for i, (c, d) in enumerate(rows)])


class Sides:
    """Both runs of some prompts in bare torch."""

    def __init__(self, model: ToyModel, given: PromptSet) -> None:
        self.model, self.given = model, encode(given, model)
        assert self.given.corrupted is not None
        self.base, self.other = self.given.clean.ids, self.given.corrupted.ids
        self.here, self.there = Bare(model), Bare(model)
        with torch.no_grad():
            self.here.logits(self.base)
            self.there.logits(self.other)

    def delta(self, place: str) -> torch.Tensor:
        return self.there.seen[place] - self.here.seen[place]

    def metric(self, bare: Bare, *, other: bool = False) -> torch.Tensor:
        e: EncodedPrompts = self.given
        assert e.answers is not None
        assert e.wrongs is not None
        return difference(bare.logits(self.other if other else self.base), e.answers, e.wrongs)

    def slope(self, place: str, head: int) -> float:
        """Central difference of the metric as one head goes a hundred-thousandth of its way."""
        step, way = 1e-5, torch.zeros_like(self.delta(place))
        way[:, :, head] = self.delta(place)[:, :, head]
        sides = [self.metric(Bare(self.model, {place: lambda x, s=s: x + s * step * way})) for s in (1, -1)]
        return float(((sides[0] - sides[1]) / (2 * step)).mean())

    def gradient(self, place: str, where: float = 0.0, held: tuple[str, ...] = ()) -> torch.Tensor:
        """dM / dplace with the embeddings part of the way to the other run, places held cut out of the graph."""
        e = (self.here.seen["embed"] + where * self.delta("embed")).requires_grad_()
        bare = Bare(self.model, {"embed": lambda x: e, **{name: lambda x: x.detach() for name in held}})
        value = self.metric(bare).sum()
        (found,) = torch.autograd.grad(value, bare.seen[place], allow_unused=True)
        return torch.zeros_like(self.delta(place)) if found is None else found


@pytest.mark.hand_worked
def test_the_estimate_is_the_gradient_times_the_change(hard: ToyModel) -> None:
    """One prompt: L1H2 writes t2 and would write t5. dM/dz is +10 on t2 and -10 on t5; z goes from e2 to e5: -20, and
    exactly so, for nothing comes after. L0H1's buffer feeds a saturated softmax: 0, though patching it costs 20/3."""
    found = attributed(hard, inline_set([ONE]))
    values = estimates(found)
    assert values["1", "H2"] == pytest.approx(-20, abs=1e-4)
    assert values["0", "H1"] == pytest.approx(0, abs=1e-6)
    exact = {c.name: c.exact.mean for c in found.recheck.cells}
    assert exact["L1H2"] == pytest.approx(-20, abs=1e-4)
    assert exact["L0H1"] == pytest.approx(10 / 3 - 10, abs=1e-4)


@pytest.mark.positive_control
def test_soft_attention_agrees_with_finite_differences(soft: ToyModel, prompts: PromptSet) -> None:
    """Independent: bare einsums in float64, moved a little and measured. Rules out a wrong sign, a sum over the wrong
    axis, values of the wrong run and gradients taken at it."""
    short = inline_set([{**ONE, "cluster": str(i), **pair} for i, pair in enumerate(PAIRS)])
    found, sides = estimates(attributed(soft, short)), Sides(soft, short)
    for layer, head in ((0, 1), (1, 2), (0, 0)):
        assert found[str(layer), f"H{head}"] == pytest.approx(sides.slope(f"z{layer}", head), abs=1e-3)
    assert found["0", "H1"] < -2
    assert found["1", "H2"] < -9


PAIRS = (
    {},
    {"clean": "t7 t8 t9 t7", "corrupted": "t4 t5 t6 t4", "answer": "t8", "wrong": "t5"},
    {"clean": "t10 t11 t3 t10", "corrupted": "t0 t12 t6 t0", "answer": "t11", "wrong": "t12"},
)


def test_every_head_of_a_random_model_agrees_with_finite_differences() -> None:
    model, given = random_toy(), random_pairs()
    found, sides = estimates(attributed(model, given)), Sides(model, given)
    for layer in (0, 1):
        for head in (0, 1):
            assert found[str(layer), f"H{head}"] == pytest.approx(sides.slope(f"z{layer}", head), abs=1e-3)


def test_integrated_gradients_are_the_mean_over_midpoints() -> None:
    model, given = random_toy(), random_pairs()
    result = attributed(model, given, method="integrated", steps=4)
    found, sides = estimates(result), Sides(model, given)
    for layer in (0, 1):
        mean = sum(sides.gradient(f"z{layer}", where) for where in (0.125, 0.375, 0.625, 0.875)) / 4
        product = (mean * sides.delta(f"z{layer}")).sum((1, 3)).mean(0)
        for head in (0, 1):
            assert found[str(layer), f"H{head}"] == pytest.approx(float(product[head]), abs=1e-3)
    fine = attributed(model, given, method="integrated", steps=100)
    assert fine.completeness.gap is not None
    assert fine.completeness.gap < 0.02
    gap = float((sides.metric(Bare(model), other=True) - sides.metric(Bare(model))).mean())
    assert fine.completeness.difference == pytest.approx(gap, abs=1e-4)


def test_dropped_gradients_are_those_that_skip_a_layer() -> None:
    """Independent: the layer's outputs detached in bare torch. Rules out dropping the node's own gradient and the wrong
    mean (over L - 1 layers, of magnitudes, per prompt)."""
    model, given = random_toy(layers=3), random_pairs()
    result, sides = attributed(model, given, method="atp_star"), Sides(model, given)
    assert result.dropped is not None
    for layer in range(3):
        total = torch.zeros(4, 2, dtype=torch.float64)
        for held in range(3):
            gradient = sides.gradient(f"z{layer}", held=(f"attn{held}", f"mlp{held}"))
            total += (gradient * sides.delta(f"z{layer}")).sum((1, 3)).abs()
        for head in (0, 1):
            assert result.dropped.at(layer, head) == pytest.approx(float(total[:, head].mean() / 2), abs=1e-3)


@pytest.mark.parametrize("kind", ["q", "k"])
def test_the_qk_fix_takes_the_exact_change_of_attention(kind: str) -> None:
    """In the last layer nothing but linear maps follows the pattern of a model without MLPs: the fix is exact there,
    and the plain gradient is not."""
    model, given = random_toy(d_mlp=0), random_pairs()
    star = {c.name: c for c in attributed(model, given, method="atp_star", site=kind, layers=(1,)).recheck.cells}
    plain = {c.name: c for c in attributed(model, given, site=kind, layers=(1,)).recheck.cells}
    for cell in star.values():
        assert cell.estimate == pytest.approx(cell.exact.mean, abs=1e-4)
    assert any(abs(c.estimate - c.exact.mean) > 1e-3 for c in plain.values())
    by_position = attributed(model, given, method="atp_star", site=kind, grid="head_position", layers=(1,))
    for cell in by_position.recheck.cells:
        assert cell.estimate == pytest.approx(cell.exact.mean, abs=1e-4)


@pytest.mark.parametrize("kind", ["q", "k"])
def test_the_qk_fix_knows_rotary_shared_keys(kind: str) -> None:
    """The pattern worked out for moved queries or keys is what patching them gives, with rotation and groups."""
    from anatomist.causal.attention_change import moved
    from anatomist.model.edits import Edit
    from anatomist.model.sites import Site

    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    encoded = encode(random_pairs(vocabulary=97), model)
    assert encoded.corrupted is not None
    q, k, pattern, site = Site("q", 1), Site("k", 1), Site("pattern", 1), Site("q" if kind == "q" else "k", 1)
    base = model.run(encoded.clean, read=[q, k, pattern]).reads
    other = model.run(encoded.corrupted, read=[site]).reads[site]
    patched = model.run(encoded.clean, read=[pattern], edits=[Edit(site=site, rule="set", value=other)]).reads[pattern]
    everywhere = torch.ones(other.shape[:2])
    rule = model.weights.attention_rule(1)
    which, fixed = ("q", k) if kind == "q" else ("k", q)
    new = moved(which, rule, base[site], other, base[fixed], base[pattern], everywhere)
    assert torch.allclose(new, patched, atol=1e-5)
    assert not torch.allclose(new, base[pattern], atol=1e-2)


@pytest.mark.parametrize("more", [{}, {"method": "atp_star"}, {"method": "integrated", "steps": 20}])
def test_hard_attention_is_warned_of(hard: ToyModel, prompts: PromptSet, more: dict[str, Any]) -> None:
    """The ranking is perfect and one of two heads is scored 0: a correlation or an AUROC alone would not show it."""
    found = attributed(hard, prompts, **more)
    assert {s.head for s in found.saturated} == {"L1H2"}
    assert "SATURATION" in " ".join(found.warnings)
    assert found.recheck.missed == ("L0H1",)
    assert found.recheck.checked == found.recheck.of == 8
    exact = {c.name: c.exact.mean for c in found.recheck.cells}
    assert exact["L0H1"] < -8
    assert "L0H1 -8" in found.summary


def test_the_exact_change_of_attention_mends_hard_attention(hard: ToyModel, prompts: PromptSet) -> None:
    found = attributed(hard, prompts, method="atp_star", site="k")
    assert estimates(found)["1", "KV2"] < -8
    assert found.recheck.missed == ()
    assert found.recheck.pearson == pytest.approx(1, abs=1e-6)


def test_soft_attention_is_not_warned_of(soft: ToyModel, prompts: PromptSet) -> None:
    found = attributed(soft, prompts)
    assert found.saturated == ()
    assert not any("SATURATION" in w for w in found.warnings)
    assert found.recheck.wrong_sign == ()


def test_a_completeness_gap_of_the_integrated_gradient_is_warned_of(hard: ToyModel) -> None:
    """Another last token: on the way attention jumps at once from one match to the next, between two midpoints."""
    jumping = make_prompts("induction", 16, 0, hard, corruption="other_last")[0]
    found = attributed(hard, jumping, method="integrated", steps=2)
    assert found.completeness.gap == pytest.approx(1, abs=0.1)
    assert any("COMPLETENESS GAP" in w for w in found.warnings)


@pytest.mark.negative_control
def test_nothing_is_attributed_where_the_runs_do_not_differ(soft: ToyModel) -> None:
    same = [p.model_copy(update={"corrupted": p.clean}) for p in make_prompts("induction", 8, 0, soft)[0].prompts]
    found = attributed(soft, inline_set(same))
    assert set(estimates(found).values()) == {0.0}
    assert found.saturated == ()
    assert found.completeness.gap is None


@pytest.mark.negative_control
def test_heads_that_write_to_nobody_are_exactly_zero(soft: ToyModel, prompts: PromptSet) -> None:
    values = estimates(attributed(soft, prompts))
    assert {name for name, value in values.items() if value != 0} == {("0", "H1"), ("1", "H2")}


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "head"])
@pytest.mark.parametrize(("name", "backend"), [("llama", "local"), ("gpt2", "local"), ("llama", "nnsight")])
def test_every_site_agrees_with_the_measured_slope(name: str, backend: Backend, site: str) -> None:
    """The self-test moves the cell a hundredth of its way through ordinary edits and forward passes. Rules out places
    that are read beside the graph (a gradient of 0) when others upstream are read as well."""
    model = wrap_model(FAMILIES[name](), None, name=name, backend=backend)
    found = attributed(model, random_pairs(vocabulary=97), site=site, direction="denoising")
    assert found.self_tests[0].name.startswith("estimate of")
    assert all(t.passed for t in found.self_tests), found.self_tests
    assert plot(found).panels


def test_rows_of_different_lengths_and_small_budgets_give_the_same_numbers() -> None:
    model = random_toy()
    ragged = [
        {"clean": p.clean[: 5 + i % 3], "corrupted": (p.corrupted or ())[: 5 + i % 3], "answer": p.answer,
         "wrong": p.wrong} for i, p in enumerate(random_pairs(6).prompts)
    ]  # fmt: skip
    whole = attributed(model, inline_set(ragged))
    alone = [estimates(attributed(model, inline_set([one]))) for one in ragged]
    for key, value in estimates(whole).items():
        assert value == pytest.approx(sum(a[key] for a in alone) / len(alone), abs=1e-5)
    context = Context(model, inline_set(ragged), budget_bytes=40_000)
    small = run(context, Arguments(model="m", prompts="given", direction="noising"))
    for key, value in estimates(small).items():
        assert value == pytest.approx(estimates(whole)[key], abs=1e-6)


@pytest.mark.bad_input
def test_kl_has_no_gradient_at_its_own_reference(soft: ToyModel, prompts: PromptSet) -> None:
    with pytest.raises(BadArguments, match="0 everywhere"):
        attributed(soft, prompts, metric="kl")
    assert attributed(soft, prompts, metric="kl", method="integrated").estimates.metric == "kl"


@pytest.mark.bad_input
def test_a_grid_that_the_site_does_not_have_is_refused(soft: ToyModel, prompts: PromptSet) -> None:
    with pytest.raises(BadArguments, match="has no heads"):
        attributed(soft, prompts, site="attn_out", grid="layer_head")


@pytest.mark.slow
def test_smollm2_heads_are_estimated_well_but_not_all_of_them(smollm2: Model) -> None:
    """Pearson near .9 over all 270 heads, and L17H4 (a large head) far too small; on this one sentence its sign is
    wrong, and the result must name it. An absolute correlation bar alone would pass with that head at 0."""
    sentence = "When John and Mary went to the shops, {} gave the bag to"
    one = inline_set(
        [{"clean": sentence.format("John"), "corrupted": sentence.format("Mary"), "answer": " Mary", "wrong": " John"}]
    )
    single = attributed(smollm2, one, direction="denoising", top=270)
    assert single.recheck.checked == 270
    assert "L17H4" in single.recheck.wrong_sign
    assert "L17H4" in " ".join(single.warnings)
    many = attributed(smollm2, make_prompts("ioi", 16, 1, smollm2)[0], top=270)
    assert many.recheck.pearson is not None
    assert 0.8 < many.recheck.pearson < 0.97
    large = {c.name: c for c in many.recheck.cells}
    assert abs(large["L17H4"].estimate) < 0.5 * abs(large["L17H4"].exact.mean)
