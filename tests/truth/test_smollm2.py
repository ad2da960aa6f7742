"""A real model against what is known of it, and against independent implementations on the same weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from anatomist.model.edits import Edit
from anatomist.model.loading import load_model
from anatomist.model.offline import offline_folder
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from torch import Tensor

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
HEADS = ((0, 8), (17, 4), (20, 0), (23, 3), (29, 0))


@pytest.mark.positive_control
def test_loss_on_random_tokens_falls_when_they_come_a_second_time(smollm2: Model) -> None:
    """About 14 nats on tokens that nothing foretells (worse than even odds over the vocabulary, 10.8), under 3 on their
    second copy: 8 rows of 50 tokens twice, no BOS. Rules out targets that are off by one, which would stay at 14."""
    draw = random.Random(0)
    rows = [[draw.randrange(smollm2.info.d_vocab) for _ in range(50)] * 2 for _ in range(8)]
    logits = smollm2.run(smollm2.tokenize(rows), logits_at="all").logits
    assert logits is not None
    ids = torch.tensor(rows)
    loss = -logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].mean(0)
    first, second = float(loss[:49].mean()), float(loss[50:].mean())
    assert 13 < first < 16
    assert second < 3


@contextmanager
def head_put(output: Any, head: int, value: Tensor) -> Iterator[None]:
    """One head's part of what enters an output matrix, by a bare hook."""
    part = slice(head * 64, head * 64 + 64)

    def put(_: object, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        changed = given[0].clone()
        changed[..., part] = value[..., part]
        return (changed,)

    hook = output.register_forward_pre_hook(put)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.slow
@pytest.mark.positive_control
def test_heads_patched_by_bare_hooks_by_the_bridge_and_by_nnsight_are_the_same_to_the_bit(smollm2: Model) -> None:
    """All logits of all positions. Three ways that share no code around the model, on the same weights."""
    from transformers import AutoModelForCausalLM

    folder = offline_folder("smollm2-135m")
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    outputs = [layer.self_attn.o_proj for layer in plain.model.layers]
    clean, corrupted = (smollm2.tokenize([text]) for text in (CLEAN, CORRUPTED))
    z: dict[int, Tensor] = {}
    hooks = [o.register_forward_pre_hook(lambda _, x, i=i: z.update({i: x[0]})) for i, o in enumerate(outputs)]
    with torch.no_grad():
        plain(torch.tensor(clean.ids))
    for hook in hooks:
        hook.remove()
    nnsight = load_model("smollm2-135m", backend="nnsight")
    for layer, head in HEADS:
        with torch.no_grad(), head_put(outputs[layer], head, z[layer]):
            expected = plain(torch.tensor(corrupted.ids)).logits
        for model in (smollm2, nnsight):
            site = Site("head", layer, head)
            value = model.run(clean, read=[site]).reads[site]
            run = model.run(corrupted, edits=[Edit(site=site, rule="set", value=value)], logits_at="all")
            assert run.logits is not None
            assert torch.equal(run.logits, expected), model.info.backend
