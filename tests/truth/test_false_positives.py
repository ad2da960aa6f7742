"""How often a technique claims something where there is nothing, on nulls that are exchangeable by construction.

| null | why nothing can be true of it | a false claim |
|---|---|---|
| answers swapped at random per prompt | an effect and its negative are equally likely | a cell survives Holm at .05 |
| sets drawn at random | the claim is drawn like its controls | p <= .05 against random sets |
| labels permuted by group | a label says nothing of its text | a layer is called decodable, or p <= .05 |

*Significant* also means that an interval lies beyond a minimum effect stated beforehand: at most 5% of them may. The
networks are untrained and of no use, but not without effects: patching and ablating them changes their logits, which an
interval around 0 does not deny. Over S seeds a procedure of level .05 makes more than `most(S)` false claims with
probability below .01.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import pytest
from anatomist.causal.joint import JointEffect, joint_in_words
from anatomist.measures.decoding import permuted
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model
from anatomist.prompts.examples import Example
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.result import Grid
from anatomist.technique import Context
from anatomist.techniques import ablate, attention_knockout, find_direction, patch_activations, path_patching, probe
from transformers import GPT2Config, GPT2LMHeadModel

from tests.backends.families import FAMILIES, randomised

SEEDS, LEVEL = range(20), 0.05
HEADS, TOKENS = 24, 61  # heads of a layer: enough to draw controls from the same layer
MINIMUM = 0.02  # logits; stated before any run


def most(trials: int, level: float = LEVEL) -> int:
    """The largest number of false claims that a procedure of this level exceeds with probability below .01."""
    from scipy.stats import binom

    return int(binom.ppf(0.99, trials, level))


@cache
def network(seed: int) -> Model:
    """Two layers of 24 heads drawn alike: no head of a layer differs from another but by chance."""
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=16, n_embd=96, n_layer=2, n_head=HEADS, bos_token_id=0, eos_token_id=0
    )
    return wrap_model(randomised(GPT2LMHeadModel(config), seed), None, name=f"random-{seed}")


def swapped(prompts: Iterable[Prompt], seed: int) -> PromptSet:
    """Answer and wrong answer change places at random, prompt by prompt."""
    rng = random.Random(f"swap {seed}")
    flipped = [
        p.model_copy(update={"answer": p.wrong, "wrong": p.answer}) if rng.random() < 0.5 else p for p in prompts
    ]
    return PromptSet(handle=f"null-{seed}", task="null", split="inline", prompts=tuple(flipped))


def random_prompts(seed: int, n: int = 32) -> PromptSet:
    """Random tokens, one of them another in the corrupted prompt; two random answers."""
    rng, found = random.Random(seed), []
    for _ in range(n):
        row = [rng.randrange(TOKENS) for _ in range(6)]
        other = [*row[:2], rng.choice([t for t in range(TOKENS) if t != row[2]]), *row[3:]]
        answer, wrong = rng.sample(range(TOKENS), 2)
        found.append(Prompt(clean=tuple(row), corrupted=tuple(other), answer=answer, wrong=wrong))
    return swapped(found, seed)


class Claims(NamedTuple):
    """What a technique claims of one null."""

    survive_holm: int  # cells
    intervals: tuple[tuple[float, float], ...]  # of every cell that has one


def claims(result: Any) -> Claims:
    effects = result.effects if not isinstance(result.effects, tuple) else result.effects[0]
    low, high = (grid.values if isinstance(grid, Grid) else () for grid in (effects.low, effects.high))
    pairs = tuple((a, b) for a, b in zip(low or (), high or (), strict=True) if a is not None and b is not None)
    return Claims(len(result.stand_out), pairs)


Sweep = Callable[[Model, PromptSet], Any]
SWEEPS: dict[str, Sweep] = {
    "ablate, zero": lambda m, p: _ablate(m, p, ablation="zero"),
    "ablate, mean": lambda m, p: _ablate(m, p, ablation="mean"),
    "ablate, resample": lambda m, p: _ablate(m, p, ablation="resample"),
    "patch heads, denoising": lambda m, p: _patch(m, p, direction="denoising"),
    "patch heads, noising": lambda m, p: _patch(m, p, direction="noising"),
    "attention knockout": lambda m, p: attention_knockout.run(
        Context(m, p), attention_knockout.Arguments(model="m", prompts=p.prompts, sources=(0, 1, 2, 3), controls=0)
    ),
    "path patching": lambda m, p: path_patching.run(
        Context(m, p), path_patching.Arguments(model="m", prompts=p.prompts, receivers=("logits",))
    ),
}


def _ablate(model: Model, prompts: PromptSet, **more: Any) -> Any:
    return ablate.run(Context(model, prompts), ablate.Arguments(model="m", prompts=prompts.prompts, **more))


def _patch(model: Model, prompts: PromptSet, **more: Any) -> Any:
    arguments = patch_activations.Arguments(model="m", prompts=prompts.prompts, site="head", grid="layer_head", **more)
    return patch_activations.run(Context(model, prompts), arguments)


def study(sweep: Sweep, model: Callable[[int], Model], prompts: Callable[[int], PromptSet]) -> list[Claims]:
    return [claims(sweep(model(seed), prompts(seed))) for seed in SEEDS]


def hold(found: list[Claims], minimum: float) -> None:
    """At most the level: families with any claim, and intervals that lie beyond the minimum effect."""
    families = sum(c.survive_holm > 0 for c in found)
    assert families <= most(len(found)), f"{families} of {len(found)} nulls have a cell that survives Holm"
    cells = [pair for c in found for pair in c.intervals]
    assert cells
    beyond = sum(low > minimum or high < -minimum for low, high in cells)
    assert beyond <= LEVEL * len(cells), f"{beyond} of {len(cells)} intervals lie beyond {minimum}"


@pytest.mark.hand_worked
def test_how_many_false_claims_are_too_many() -> None:
    """20 trials at .05: P(X > 4) = .0026, P(X > 3) = .0159, so more than 4 is too many."""
    assert most(20) == 4


@pytest.mark.slow
@pytest.mark.negative_control
@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_with_answers_swapped_at_random_claim_no_more_than_their_level(name: str) -> None:
    hold(study(SWEEPS[name], lambda s: network(s % 4), random_prompts), MINIMUM)


@pytest.mark.negative_control
def test_a_real_circuit_on_swapped_answers_is_not_claimed() -> None:
    """The hand-set circuit does its task, and each of its two heads moves every logit difference by about 10: up in
    half of the prompts, down in the others. Rules out a test on the sizes of the effects."""
    model = induction()
    prompts = [make_prompts("induction", 32, seed, model)[0] for seed in SEEDS]
    found = study(SWEEPS["ablate, resample"], lambda s: model, lambda s: swapped(prompts[s].prompts, s))
    hold(found, 1.0)
    unspoilt = _ablate(model, prompts[0], ablation="resample")
    assert {cell.cell for cell in unspoilt.stand_out} == {"L0H1", "L1H2"}  # the same test finds them where they are


@pytest.mark.positive_control
def test_the_same_prompts_unspoilt_are_claimed() -> None:
    """The answer is what the network itself says most and least: rules out a study that could claim nothing."""
    model, prompts = network(0), random_prompts(0)
    tokens = model.tokenize([p.clean for p in prompts.prompts])
    logits = model.run(tokens, logits_at=tokens.last).logits
    assert logits is not None
    told = zip(prompts.prompts, logits.argmax(1).tolist(), logits.argmin(1).tolist(), strict=True)
    sure = tuple(p.model_copy(update={"answer": a, "wrong": w}) for p, a, w in told)
    found = claims(_ablate(model, prompts.model_copy(update={"prompts": sure}), ablation="zero"))
    assert found.survive_holm >= 3


def random_claim(model: Model, seed: int, size: int, holding: str | None = None) -> tuple[JointEffect, float]:
    """Heads of a layer drawn at random, and their p against random sets; with `holding` one of them is chosen."""
    prompts = random_prompts(seed)
    pool = [name for i in range(HEADS) if (name := f"L1H{i}") != holding]
    chosen = () if holding is None else (holding,)
    heads = (*chosen, *random.Random(f"claim {seed} {size}").sample(pool, size - len(chosen)))
    joint: JointEffect = _ablate(model, prompts, heads=heads, together=True, controls=39, seed=seed).joint[0]
    assert joint.p is not None
    return joint, joint.p


@pytest.mark.slow
@pytest.mark.negative_control
@pytest.mark.parametrize("size", [1, 2, 4])
def test_sets_drawn_at_random_beat_random_sets_no_more_often_than_stated(size: int) -> None:
    p = [random_claim(network(10 + seed % 4), seed, size)[1] for seed in SEEDS]
    assert sum(value <= LEVEL for value in p) <= most(len(p))


@pytest.mark.slow
@pytest.mark.negative_control
@pytest.mark.parametrize("size", [2, 4])
def test_a_strong_head_lifts_no_set_that_was_drawn_at_random(size: int) -> None:
    """One head is thirty times as strong as the others and in every claim, the rest of which is drawn at random: no
    random set without it does as much, yet the set is claimed no more often than stated, for its other heads are like
    any. Rules out a p of joint changes alone."""
    model = wrap_model(_one_strong_head(), None, name="one-strong-head")
    found = [random_claim(model, seed, size, holding="L1H5")[0] for seed in SEEDS]
    assert sum(j.p is not None and j.p <= LEVEL for j in found) <= most(len(found))
    assert sum(j.p_others is not None and j.p_others <= LEVEL for j in found) > most(len(found))
    for joint in found:
        assert joint.strongest == "L1H5"
        last = max(joint.each_part, key=lambda part: part.p)
        assert last.part != "L1H5"
        assert f"the least sure is {last.part}, which carries" in joint_in_words(joint, "the baseline lost")


@pytest.mark.positive_control
def test_a_circuit_of_two_heads_in_sequence_is_claimed() -> None:
    """Without either head of the hand-set circuit all is lost, so that the second adds nothing to the first. Rules out
    a test that parts which need each other cannot pass."""
    model = induction()
    prompts = make_prompts("induction", 32, 0, model)[0]
    common = {"ablation": "resample", "together": True, "controls": 39}
    (joint,) = _ablate(model, prompts, heads=("L0H1", "L1H2"), **common).joint
    assert joint.p_others == pytest.approx(1 / 16)  # only 15 pairs hold neither
    assert {(part.part, part.as_strong, part.others) for part in joint.each_part} == {("L0H1", 0, 6), ("L1H2", 0, 6)}
    (passenger,) = _ablate(model, prompts, heads=("L0H1", "L1H3"), **common).joint
    assert {part.part: part.p == 1.0 for part in passenger.each_part} == {"L1H3": True, "L0H1": False}


def _one_strong_head() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=16, n_embd=96, n_layer=2, n_head=HEADS, bos_token_id=0, eos_token_id=0
    )
    hf: Any = randomised(GPT2LMHeadModel(config), 10)
    width = 96 // HEADS
    hf.transformer.h[1].attn.c_proj.weight.data[5 * width : 6 * width] *= 30
    return hf


def labelled(seed: int, groups: int = 40) -> list[Example]:
    """Two random texts a group; one label a group, dealt at random: no text says anything of it."""
    rng = random.Random(seed)
    names = [f"g{g}" for g in range(groups) for _ in range(2)]
    texts = [tuple(rng.randrange(97) for _ in range(5)) for _ in names]
    import numpy as np

    labels = permuted(np.array([g % 2 for g in range(groups) for _ in range(2)]), names, seed)
    return [Example(text=t, label=str(int(y)), group=g) for t, y, g in zip(texts, labels, names, strict=True)]


@cache
def llama() -> Model:
    return wrap_model(FAMILIES["llama"](), None, name="llama")


@pytest.mark.slow
@pytest.mark.negative_control
def test_probes_of_labels_permuted_by_group_find_nothing_more_often_than_stated() -> None:
    found = []
    for seed in SEEDS:
        arguments = probe.Arguments(model="m", examples=tuple(labelled(seed)), null_models=0, splits=1, seed=seed)
        result = probe.run(Context(llama()), arguments)
        found.append((bool(result.decodable), min(p for p in result.p.values or () if p is not None)))
    assert sum(decodable for decodable, _ in found) <= LEVEL * len(found)
    assert sum(p <= LEVEL for _, p in found) <= most(len(found))


@pytest.mark.slow
@pytest.mark.negative_control
def test_directions_between_texts_of_one_kind_separate_no_more_often_than_stated() -> None:
    found = []
    for seed in SEEDS:
        texts = [e.text for e in labelled(seed)]
        arguments = find_direction.Arguments(
            model="m", positive=tuple(texts[:40]), negative=tuple(texts[40:]), methods=("mean_difference",), seed=seed,
            shuffles=39,
        )  # fmt: skip
        found.append(find_direction.run(Context(llama()), arguments).best[0].p)
    assert all(p is not None for p in found)
    assert sum(p is not None and p <= LEVEL for p in found) <= most(len(found))


@pytest.mark.slow
@pytest.mark.negative_control
def test_heads_of_smollm2_on_ioi_with_swapped_answers_are_not_claimed(smollm2: Model) -> None:
    """A trained model that does the task: its strongest heads, on answers that say nothing."""
    prompts = make_prompts("ioi", 20 * 24, 0, smollm2)[0].prompts
    found = []
    for seed in SEEDS:
        null = swapped(prompts[24 * seed : 24 * (seed + 1)], seed)
        found.append(claims(_patch(smollm2, null, direction="noising", layers=(23,))))
    hold(found, 0.1)
