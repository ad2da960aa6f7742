"""tuned_lens: maps that are known exactly, the logit lens that fails there, and what a real model gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from anatomist.causal.sampled_text import sample_text
from anatomist.causal.tuned import Recipe, groups_of, identity, readings, train
from anatomist.errors import BadArguments, BadPrompts, Cancelled, WouldNotFit
from anatomist.model.loading import wrap_model
from anatomist.model.sites import Site
from anatomist.prompts.corpus import Corpus
from anatomist.technique import Context, KeptArray
from anatomist.techniques import tuned_lens
from anatomist.techniques.tuned_lens import GAIN, LOGIT, TUNED, Arguments, TunedLensResult

from tests.backends.families import FAMILIES
from tests.techniques.rotating_model import rotating, rotations, texts

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

QUICK: dict[str, Any] = {"n_tokens": 4000, "width": 32, "test_tokens": 256, "steps": 250, "rate": 0.6}


def look(model: Model, documents: tuple[str, ...] = (), **more: Any) -> tuple[TunedLensResult, Context]:
    documents = documents or texts()
    context = Context(model, text=Corpus("texts", documents))
    return tuned_lens.run(context, Arguments(model="m", text=documents, **(QUICK | more))), context


@pytest.mark.hand_worked
def test_the_identity_is_the_logit_lens_and_the_last_layer_is_the_model(toy: Model) -> None:
    # Before layer 1 the toy's output block is empty: 20 equal logits. After 't3 t7 t1 t3' the model gives
    # p = e^10 / (e^10 + 19) to t7 and q = 1 / (e^10 + 19) to the rest: KL = p ln(20 p) + 19 q ln(20 q) = 2.9863.
    site = Site("resid_post", 0)
    run = toy.run(toy.tokenize(["t3 t7 t1 t3"]), read=[site, Site("resid_post", 1)])
    early, final = run.reads[site][0, -1:], run.reads[Site("resid_post", 1)][0, -1:]
    levels = [(early, identity(early)), (early, None), (final, None)]
    mapped, plain, last = readings(toy, levels, final, torch.tensor([7]), 4)
    assert float(mapped.kl[0]) == float(plain.kl[0]) == pytest.approx(2.9863, abs=1e-3)
    assert float(last.kl[0]) == 0.0
    # log2 20 bits for any token before layer 1; -log2 .99914 for t7 after it.
    assert float(plain.bits[0]) == pytest.approx(4.3219, abs=1e-3)
    assert float(last.bits[0]) == pytest.approx(0.00124, abs=1e-4)


@pytest.mark.positive_control
def test_layers_that_rotate_are_turned_back_where_the_logit_lens_fails() -> None:
    # The map of a layer must be the product of the rotations after it. Rules out maps of another layer's residual,
    # transposed maps, and maps whose whitening was not undone.
    turns = rotations()
    result, context = look(rotating(turns), steps=600, rate=1.0)
    expected = torch.stack([turns[0] @ turns[1] @ turns[2], turns[1] @ turns[2], turns[2]])
    assert (context.arrays["maps"].tensor - expected).abs().max() < 0.1
    assert context.arrays["bias"].tensor.abs().max() < 0.1
    assert min((result.kl.column(LOGIT) or ())[:3]) > 2.0  # type: ignore[type-var]
    assert max((result.kl.column(TUNED) or ())[:3]) < 0.02  # type: ignore[type-var]
    assert (result.kl.column(TUNED) or ())[3] == 0.0
    assert result.better == 3
    assert result.worse == 0
    assert result.bits.column(TUNED) == pytest.approx([result.model_bits] * 4, abs=0.05)


@pytest.mark.positive_control
def test_maps_of_an_earlier_run_give_the_same_figures() -> None:
    model = rotating(rotations())
    first, context = look(model, layers=(0, 1))

    def saved(run: str, name: str) -> KeptArray:
        assert run == "r-1"
        return context.arrays[name]

    again = Context(model, text=Corpus("texts", texts()), saved=saved)
    prompt = "t3 t4 t5"
    arguments = Arguments(model="m", text=texts(), layers=(0, 1), maps="r-1", prompt=prompt, **QUICK)
    second = tuned_lens.run(again, arguments)
    assert second.kl.column(TUNED) == pytest.approx(first.kl.column(TUNED), abs=1e-5)
    assert not again.arrays
    assert second.prompt[0].tuned_lens[0] == second.prompt[-1].logit_lens[0]  # turned back: the model's own top token
    with pytest.raises(BadArguments, match="no map for layers embed"):
        tuned_lens.run(again, arguments.model_copy(update={"layers": None}))


@pytest.mark.negative_control
def test_where_nothing_can_be_gained_the_identity_stays() -> None:
    # Layers that do nothing: the logit lens is right already, and no step on the way is better than the start.
    still = rotating([torch.eye(8)] * 3)
    result, context = look(still, steps=20)
    assert result.kl.column(GAIN) == pytest.approx([0.0] * 4, abs=1e-6)
    assert (context.arrays["maps"].tensor - torch.eye(8)).abs().max() < 1e-6
    assert result.better == 0
    assert any("No clear difference" in w for w in result.warnings)


def test_layers_in_groups_are_those_trained_together() -> None:
    # A small budget takes one layer at a time; the batches are the same, and so are the maps.
    model = rotating(rotations())
    context = Context(model, text=Corpus("texts", texts()), budget_bytes=800_000)
    arguments = Arguments(model="m", text=texts(), **(QUICK | {"steps": 40}))
    sites = [Site("resid_pre", 0), Site("resid_post", 0), Site("resid_post", 1)]
    assert len(groups_of(model.info, sites, 4020, 64, context.budget_bytes)) > 1
    result = tuned_lens.run(context, arguments)
    assert result.kl.column(TUNED) == pytest.approx(look(model, steps=40)[0].kl.column(TUNED), abs=1e-5)


def test_seeds_give_a_range_around_the_first() -> None:
    result, _ = look(rotating(rotations()), layers=(1,), steps=60, seeds=3)
    assert result.seeds is not None
    low, high = ((result.seeds.column(f"{end} seed") or ())[0] for end in ("lowest", "highest"))
    middle = (result.kl.column(TUNED) or ())[0]
    assert low is not None
    assert high is not None
    assert middle is not None
    assert low <= middle <= high
    assert low < high


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_other_architectures_train_and_do_not_get_worse(family: str) -> None:
    model = wrap_model(FAMILIES[family](), None, name=family)
    tokens = model.tokenize([[(7 * i + 3 * j) % 97 for j in range(24)] for i in range(40)])
    sites = [Site("resid_post", 0), Site("resid_post", model.info.n_layers - 1)]
    x = model.run(tokens, read=sites).reads
    early, final = (x[site][:, 1:].reshape(-1, model.info.d_model) for site in sites)
    (own,) = train(model, [early], final, torch.arange(100), Recipe(60, 32, 0.5, 0), lambda n: None)
    ids = torch.zeros(len(final), dtype=torch.long)
    before, after = (float(r.kl.mean()) for r in readings(model, [(early, None), (early, own)], final, ids, 64))
    assert after < 0.7 * before
    assert not own.weight.requires_grad


def test_training_can_be_cancelled_between_steps() -> None:
    calls = []

    def stop(done: float, total: float, what: str) -> None:
        if what.startswith("training"):
            calls.append(done)
            if done >= 5:
                raise Cancelled("stopped")

    context = Context(rotating(rotations()), text=Corpus("texts", texts()), progress=stop)
    with pytest.raises(Cancelled):
        tuned_lens.run(context, Arguments(model="m", text=texts(), **QUICK))
    assert [done for done in calls if done] == [1, 2, 3, 4, 5]
    assert not context.arrays


def test_sampled_positions_are_neither_first_nor_last(toy: Model) -> None:
    draw = sample_text(toy, Corpus("texts", tuple("t1 t2 t3 t4 t5 t6" for _ in range(99))), 12, 60, 5, 0, None)
    assert draw.n >= 60
    assert all(0 < p < 11 for places in draw.positions for p in places)
    ids, places = draw.tokens.ids[0], draw.positions[0]
    assert draw.following[:5] == [ids[p + 1] for p in places]


@pytest.mark.bad_input
def test_what_cannot_be_trained_is_refused(toy: Model) -> None:
    with pytest.raises(BadPrompts, match="there is no text"):
        tuned_lens.run(Context(toy), Arguments(model="m"))
    with pytest.raises(BadArguments, match="only the last layer was named"):
        look(toy, tuple("t1 t2 t3 " * 30 for _ in range(9)), layers=(1,))
    with pytest.raises(WouldNotFit, match="Give fewer tokens or a smaller batch"):
        groups_of(toy.info, [Site("resid_post", 0)], 1000, 64, 10_000)
    context = Context(rotating(rotations()), text=Corpus("texts", texts()), saved=lambda run, name: wide[name])
    wide = {
        "maps": KeptArray(torch.eye(3)[None], ("layer", "from", "to"), ""),
        "bias": KeptArray(torch.zeros(1, 3), ("layer", "d_model"), ""),
        "levels": KeptArray(torch.zeros(1), ("layer",), ""),
    }
    with pytest.raises(BadArguments, match="width 3, this model of 8"):
        tuned_lens.run(context, Arguments(model="m", maps="r-1", **QUICK))


@pytest.mark.slow
def test_smollm2_is_read_better_at_every_layer(smollm2: Model) -> None:
    """At the defaults, on documents kept back: at each of the 30 levels before the last layer the whole interval of the
    gain is above 0. Rules out maps that know the training text by heart, and layers near the end, which the logit lens
    reads well, spoilt by training."""
    from pydoc_data.topics import topics

    context = Context(smollm2, text=Corpus("topics", tuple(topics.values())))
    result = tuned_lens.run(context, Arguments(model="m", prompt="Paris is in"))
    tuned, logit = result.kl.column(TUNED) or (), result.kl.column(LOGIT) or ()
    assert len(tuned) == 31
    assert all(t < own for t, own in zip(tuned[:-1], logit[:-1], strict=True))  # type: ignore[operator]
    assert tuned[-1] == 0.0
    assert result.better == 30
    assert result.worse == 0


def test_the_picture_compares_the_lenses() -> None:
    figure = tuned_lens.plot(look(rotating(rotations()), steps=5)[0])
    assert [panel.kind for panel in figure.panels] == ["lines", "lines"]
