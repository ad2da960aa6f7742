"""Training: the cache, the order of tokens, SAELens's own steps, checkpoints, and the folder that is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from anatomist.dictionaries.baselines import for_inference
from anatomist.dictionaries.hooks import place_of
from anatomist.dictionaries.saelens import load_dictionary
from anatomist.dictionaries.training.cache import cached
from anatomist.dictionaries.training.folder import TRAINABLE, hook_name, write
from anatomist.dictionaries.training.order import InMemory, Shuffled, ordinary
from anatomist.dictionaries.training.recipe import Recipe
from anatomist.dictionaries.training.trainer import Keeping, _start, _trainer, train
from anatomist.errors import BadPrompts, Cancelled, CorruptFile, NotFinite
from anatomist.model.sites import Site, parse_site
from pydantic import ValidationError

from tests.dictionaries.words import reader

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu", "matryoshka", "gated")
SITE = parse_site("blocks.1.resid_post")
BUDGET = 2**26


@pytest.fixture(scope="module")
def llama() -> Model:
    return reader()


def recipe(**more: object) -> Recipe:
    told = {"d_dict": 24, "k": 3, "batch": 32, "steps": 40, "lr": 3e-3, "penalty": 0.5, **more}
    return Recipe(**told)  # type: ignore[arg-type]


def points(n: int = 256, d: int = 12) -> InMemory:
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(24, d, generator=draw)
    return InMemory((torch.rand(n, 24, generator=draw) < 0.1).float() @ directions + 2.0)


def batches(of: Recipe, source: InMemory | None = None) -> Shuffled:
    source = source or points()
    return Shuffled(source, np.arange(source.tokens), batch=of.batch, seed=of.seed, device="cpu")


def numbers(sae: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for _, value in sorted(sae.state_dict().items())])


@pytest.mark.hand_worked
def test_the_order_goes_through_every_token_once_and_depends_on_the_step_alone() -> None:
    # 10 tokens in batches of 3: three batches an epoch, one token left over; steps 0-2 are one epoch, 3-5 the next.
    source = InMemory(torch.arange(10.0)[:, None])
    order = Shuffled(source, np.arange(10), batch=3, seed=1, device="cpu")
    epochs = [torch.cat([order.at(s) for s in steps]).flatten().tolist() for steps in ((0, 1, 2), (3, 4, 5))]
    assert [len(set(seen)) for seen in epochs] == [9, 9]
    assert sorted(epochs[0]) != sorted(epochs[1]) or epochs[0] != epochs[1]
    later = Shuffled(source, np.arange(10), batch=3, seed=1, device="cpu")
    assert torch.equal(next(later.since(4)), order.at(4))


@pytest.mark.hand_worked
def test_massive_tokens_are_those_over_so_many_times_the_median() -> None:
    # median of 1, 2, 3, 4, 16 is 3: five times that is 15
    assert ordinary(np.array([1.0, 2.0, 3.0, 4.0, 16.0]), 5.0).tolist() == [0, 1, 2, 3]


@pytest.mark.positive_control
def test_the_cache_holds_what_the_model_computes_and_is_read_again(llama: Model, tmp_path: Path) -> None:
    tokens = llama.tokenize([[3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14]])
    found = cached(llama, SITE, tokens, tmp_path, budget=BUDGET)
    expected = llama.run(tokens, read=[SITE]).reads[SITE].flatten(0, 1)
    assert torch.equal(found.some(found.open(), np.arange(12)), expected)
    assert found.norms == pytest.approx(expected.norm(dim=-1).numpy(), rel=1e-6)
    told: list[float] = []
    cached(llama, SITE, tokens, tmp_path, budget=BUDGET, progress=lambda done, total, what: told.append(done))
    assert told == []  # nothing was computed


@pytest.mark.positive_control
def test_a_cache_that_was_stopped_goes_on_where_it_was(llama: Model, tmp_path: Path) -> None:
    tokens = llama.tokenize([[(i + j) % 97 for j in range(4)] for i in range(200)])

    def stop(done: float, total: float, what: str) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        cached(llama, SITE, tokens, tmp_path, budget=BUDGET, progress=stop)
    (place,) = tmp_path.iterdir()
    done = json.loads((place / "rows.json").read_text())["rows"]
    assert 0 < done < 200
    seen: list[float] = []
    found = cached(llama, SITE, tokens, tmp_path, budget=BUDGET, progress=lambda d, t, w: seen.append(d))
    assert min(seen) > done
    expected = llama.run(tokens, read=[SITE]).reads[SITE].flatten(0, 1)
    assert torch.allclose(found.some(found.open(), np.arange(800)), expected, atol=1e-6)


@pytest.mark.positive_control
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_are_those_of_saelens_s_own_loop(architecture: str) -> None:
    # Rules out a step that is left out, repeated or counted wrongly: SAELens's `fit` on the same batches.
    settings = recipe(architecture=architecture, normalise=False)
    ours = train(settings, batches(settings)).sae
    theirs = _trainer(settings, batches(settings))
    _start(theirs, batches(settings), settings)
    theirs.fit()
    if not getattr(theirs.sae.cfg, "rescale_acts_by_decoder_norm", False):
        theirs.sae.fold_W_dec_norm()
    assert torch.equal(numbers(ours), numbers(theirs.sae))


@pytest.mark.positive_control
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_training_that_was_stopped_ends_as_one_that_was_not(architecture: str, tmp_path: Path) -> None:
    settings = recipe(architecture=architecture)
    whole = train(settings, batches(settings))

    def stop(done: float, total: float, what: str) -> None:
        if done >= 26:
            raise Cancelled("enough")

    keeping = Keeping(tmp_path, every=10)
    with pytest.raises(Cancelled):
        train(settings, batches(settings), keeping=keeping, progress=stop)
    resumed = train(settings, batches(settings), keeping=keeping)
    assert resumed.resumed_at is not None
    assert 20 <= resumed.resumed_at < 40
    assert torch.equal(numbers(resumed.sae), numbers(whole.sae))
    assert [line["step"] for line in resumed.history] == [line["step"] for line in whole.history]
    assert resumed.history[-1] == whole.history[-1]


@pytest.mark.negative_control
def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path: Path) -> None:
    settings = recipe()
    train(settings, batches(settings), keeping=Keeping(tmp_path, 10), until=20)
    other = recipe(lr=1e-3)
    assert train(other, batches(other), keeping=Keeping(tmp_path, 10)).resumed_at is None


@pytest.mark.bad_input
def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    settings = recipe()
    train(settings, batches(settings), keeping=Keeping(tmp_path, 10), until=20)
    (tmp_path / "step-00000020" / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptFile, match="train from the start"):
        train(settings, batches(settings), keeping=Keeping(tmp_path, 10))


@pytest.mark.positive_control
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_folder_encodes_as_the_trained_one_did(architecture: str, llama: Model, tmp_path: Path) -> None:
    # In the units of the activations, though it was trained on scaled ones, and with unit decoder rows.
    settings = recipe(architecture=architecture, d_dict=48)
    tokens = llama.tokenize([[i % 97, (7 * i) % 97, (3 * i) % 97, (11 * i) % 97] for i in range(64)])
    x = llama.run(tokens, read=[SITE]).reads[SITE].flatten(0, 1)
    trained = train(settings, batches(settings, InMemory(x)))
    write(trained.sae, tmp_path / "d", model=llama.info, site=SITE, text="words", width=4, bos=False)
    found = load_dictionary(str(tmp_path / "d"), model=llama)
    assert (found.info.reads, found.info.model, found.info.bos, found.info.context_size) == (SITE, "llama", False, 4)
    assert found.directions.norm(dim=-1) == pytest.approx(torch.ones(48), abs=1e-4)
    kept = for_inference(trained.sae)
    with torch.no_grad():
        assert torch.allclose(found.encode(x), kept.encode(x), atol=1e-5)
        left = (x - found.decode(found.encode(x))).square().sum() / (x - x.mean(0)).square().sum()
    assert float(left) < 1.0  # it was trained in these units


@pytest.mark.positive_control
def test_half_the_bytes_still_encode_alike(llama: Model, tmp_path: Path) -> None:
    settings = recipe(architecture="topk", d_dict=48)
    trained = train(settings, batches(settings, points(d=32)))
    for name, dtype in (("full", None), ("half", "float16")):
        write(trained.sae, tmp_path / name, model=llama.info, site=SITE, text="", width=4, bos=False, dtype=dtype)
    sizes = [(tmp_path / name / "sae_weights.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    full, half = (load_dictionary(str(tmp_path / name), model=llama) for name in ("full", "half"))
    x = points(d=32).x
    assert torch.allclose(full.decode(full.encode(x)), half.decode(half.encode(x)), atol=0.05)


@pytest.mark.negative_control
def test_a_frozen_decoder_stays_as_it_was_drawn() -> None:
    settings = recipe(architecture="topk", freeze_decoder=True)
    before = _trainer(settings, batches(settings)).sae.W_dec.detach().clone()
    after = train(settings, batches(settings)).sae
    cosine = torch.nn.functional.cosine_similarity(before, after.W_dec.detach(), dim=-1)
    assert cosine == pytest.approx(torch.ones(24), abs=1e-5)
    assert not torch.equal(after.W_enc.detach().T, before)


@pytest.mark.parametrize("kind", TRAINABLE)
def test_the_hook_that_is_written_is_the_site_that_is_read(kind: str) -> None:
    site = Site(kind) if kind == "embed" else Site(kind, 3)  # type: ignore[arg-type]
    assert place_of(hook_name(site)).site == site


@pytest.mark.bad_input
def test_settings_and_text_that_cannot_be_trained_with_are_told() -> None:
    with pytest.raises(ValidationError, match="k is 30, but there are 24 features"):
        recipe(architecture="topk", k=30)
    with pytest.raises(ValidationError, match="must rise and end with d_dict"):
        recipe(architecture="matryoshka", widths=(8, 4, 24))
    with pytest.raises(BadPrompts, match="less than one batch of 32"):
        batches(recipe(), points(16))
    broken = InMemory(points().x.clone())
    broken.x[:] = float("nan")
    with pytest.raises(NotFinite, match="the loss is NaN"):
        train(recipe(), batches(recipe(), broken))
