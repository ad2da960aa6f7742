"""The same weights through TransformerLens, through nnsight and through bare module hooks: one set of numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from anatomist.model.edits import Edit
from anatomist.model.loading import load_model, wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site, list_sites
from torch import Tensor

from tests.backends.families import FAMILIES

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
HEADS = ((20, 3), (23, 3), (4, 0), (29, 8))


@pytest.fixture(scope="module")
def traced() -> Iterator[Model]:
    model = load_model("smollm2-135m", backend="nnsight")
    yield model
    model.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_backends_declare_and_read_the_same(family: str) -> None:
    one, two = (wrap_model(FAMILIES[family](), name=family, backend=backend) for backend in ("local", "nnsight"))
    assert one.info.sites == two.info.sites
    assert one.info.weights_hash == two.info.weights_hash
    tokens = one.tokenize([(5, 6, 7, 8, 9, 10), (11, 12, 13)])
    sites = [site for site in list_sites(one.info.shape) if site.kind != "scores"]
    a, b = one.run(tokens, read=sites, logits_at="all"), two.run(tokens, read=sites, logits_at="all")
    for site in sites:
        scale = max(1.0, float(a.reads[site].abs().max()))
        for row, length in enumerate(tokens.lengths):
            x, y = a.reads[site][row], b.reads[site][row]
            x, y = (x[:, :length], y[:, :length]) if site.kind == "pattern" else (x[:length], y[:length])
            assert float((x - y).abs().max()) <= 1e-5 * scale, str(site)


@pytest.mark.slow
@pytest.mark.positive_control
def test_head_patching_on_a_language_model_is_the_same_three_ways(smollm2: Model, traced: Model) -> None:
    """z of one head, clean into corrupted, at the last position: logit difference ' Mary' - ' John'."""
    assert smollm2.info.weights_hash == traced.info.weights_hash
    answers = [smollm2.token_ids(" Mary")[0], smollm2.token_ids(" John")[0]]
    ways = [_through(model, answers) for model in (smollm2, traced)]
    ways.append(_by_hooks(traced, answers))
    for other in ways[1:]:
        assert other == pytest.approx(ways[0], abs=1e-4)
    assert max(ways[0]) - min(ways[0]) > 0.1, "the heads differ in effect, so that agreement means something"


def _through(model: Model, answers: list[int]) -> list[float]:
    clean, corrupted = model.tokenize([CLEAN]), model.tokenize([CORRUPTED])
    reads = model.run(clean, read=[Site("head", layer, head) for layer, head in HEADS]).reads
    found = []
    for layer, head in HEADS:
        site = Site("head", layer, head)
        edit = Edit(site=site, rule="resample", positions=corrupted.last, value=reads[site][:, -1:])
        run = model.run(corrupted, edits=[edit], logits_at=corrupted.last)
        assert run.logits is not None
        found.append(_difference(run.logits[0], answers))
    return found


def _by_hooks(model: Model, answers: list[int]) -> list[float]:
    """Bare hooks on the plain model's output matrices; shares nothing with the backends but the weights."""
    hf = model._hf  # type: ignore[attr-defined]
    width, kept = model.info.d_head, {}
    found = []
    for layer, head in HEADS:
        o_proj = hf.get_submodule(f"model.layers.{layer}.self_attn.o_proj")
        part = slice(head * width, (head + 1) * width)

        def keep(_module: object, args: tuple[Tensor, ...], part: slice = part) -> None:
            kept["z"] = args[0][0, -1, part].clone()

        def patch(_module: object, args: tuple[Tensor, ...], part: slice = part) -> tuple[Tensor, ...]:
            z = args[0].clone()
            z[0, -1, part] = kept["z"]
            return (z,)

        logits = None
        for text, hook in ((CLEAN, keep), (CORRUPTED, patch)):
            handle = o_proj.register_forward_pre_hook(hook)
            with torch.no_grad():
                logits = hf(torch.tensor(model.tokenize([text]).ids), use_cache=False).logits
            handle.remove()
        assert logits is not None
        found.append(_difference(logits[0, -1], answers))
    return found


def _difference(logits: Tensor, answers: list[int]) -> float:
    return float(logits[answers[0]] - logits[answers[1]])


def test_a_traced_gemma_stays_readable_when_another_gemma_is_bridged() -> None:
    """TransformerLens wraps the attention function of all Gemma models of the process; order must not matter."""
    place = Site("pattern", 0)
    first = wrap_model(FAMILIES["gemma3"](), name="first", backend="nnsight")
    tokens = first.tokenize([(5, 6, 7)])
    before = first.run(tokens, read=[place]).reads[place]
    wrap_model(FAMILIES["gemma3"](), name="bridged", backend="local")
    second = wrap_model(FAMILIES["gemma3"](), name="second", backend="nnsight")
    for model in (first, second):
        assert torch.equal(model.run(tokens, read=[place]).reads[place], before)
