"""Prompts on which any model has a behaviour of one sign: one pair, and changes of it that keep its sign."""

from __future__ import annotations

from anatomist.measures.metrics import Metric
from anatomist.model.protocol import Model
from anatomist.prompts.given import inline_set
from anatomist.prompts.prompt_set import PromptSet
from torch import Tensor

CLEAN, OTHER = [1, 2, 3, 4, 5, 1], [6, 7, 8, 9, 10, 7]


def one_pair(model: Model, n: int = 8) -> PromptSet:
    """The answer is what the model says on the clean side, the wrong answer what it says on the other one; the first
    token varies, over those with the largest difference between the runs."""
    answer, wrong = (int(_logits(model, [ids])[0].argmax()) for ids in (CLEAN, OTHER))
    assert answer != wrong, "choose another pair for this model"
    firsts = range(model.info.d_vocab)
    clean, other = ([[i, *ids[1:]] for i in firsts] for ids in (CLEAN, OTHER))
    metric = Metric("logit_diff", [(answer,)] * len(firsts), [(wrong,)] * len(firsts))
    gaps = (metric(_logits(model, clean)) - metric(_logits(model, other))).tolist()
    kept = sorted(firsts, key=lambda i: -gaps[i])[:n]
    return inline_set([
        {"clean": clean[i], "corrupted": other[i], "answer": answer, "wrong": wrong, "cluster": str(i)} for i in kept
    ])  # fmt: skip


def _logits(model: Model, ids: list[list[int]]) -> Tensor:
    tokens = model.tokenize(ids, bos=False)
    logits = model.run(tokens, logits_at=tokens.last).logits
    assert logits is not None
    return logits
