"""Answers about SmolLM2-135M, measured by running it: some passes each, the prompts given in the questions."""

from __future__ import annotations

import torch
from anatomist.model.edits import Edit
from anatomist.model.protocol import Model
from anatomist.model.sites import Site, head_name
from anatomist.model.tokens import Tokens
from jaxtyping import Float
from torch import Tensor

# (prompt, the name it should end in, the name that is repeated)
PAIRS = (
    ("When Mary and John went to the store, John gave a drink to", " Mary", " John"),
    ("When Tom and Anna went to the park, Anna gave a book to", " Tom", " Anna"),
    ("When James and Sarah went to the office, Sarah gave a letter to", " James", " Sarah"),
    ("When Alice and David went to the school, David gave a pen to", " Alice", " David"),
)
WORDS = " river stone cloud paper tiger engine music bread winter garden silver doctor window ocean letter"
CAPITAL, CITY = "The capital of France is", " Paris"
REMOVED = "L17H4"


def _ids(model: Model, column: int) -> list[int]:
    return [model.token_ids(pair[column])[0] for pair in PAIRS]


def _differences(model: Model, edits: list[Edit]) -> Float[Tensor, " B"]:
    """Logit of the right name less the logit of the repeated one, at the end of each prompt."""
    tokens = model.tokenize([pair[0] for pair in PAIRS])
    logits = model.run(tokens, edits=edits, logits_at=tokens.last).logits
    assert logits is not None, "logits were asked for"
    rows = torch.arange(tokens.n_rows)
    return logits[rows, _ids(model, 1)] - logits[rows, _ids(model, 2)]


def logit_difference(model: Model) -> float:
    return float(_differences(model, []).mean())


def direct_effects(model: Model) -> dict[str, float]:
    """What each head writes straight to the difference of logits, the final norm's scale being that of the whole."""
    tokens, w, info = model.tokenize([pair[0] for pair in PAIRS]), model.weights, model.info
    sites = [Site("head", layer) for layer in range(info.n_layers)]
    last = Site("resid_post", info.n_layers - 1)
    reads = model.run(tokens, read=[*sites, last]).reads
    rows, norm = torch.arange(tokens.n_rows), w.final_norm()
    at_end = torch.tensor(tokens.last)
    scale = norm.scale(reads[last][rows, at_end])
    towards = (w.unembed(_ids(model, 1)) - w.unembed(_ids(model, 2))).T  # [B, D]
    found = {}
    for layer, site in enumerate(sites):
        written = torch.einsum("bnh,nhd->nbd", reads[site][rows, at_end], w.o(layer))
        values = (norm.frozen(written, scale) * towards).sum(-1).mean(-1)
        found |= {head_name(layer, head): float(value) for head, value in enumerate(values)}
    return found


def strongest_writers(model: Model) -> list[str]:
    effects = direct_effects(model)
    return sorted(effects, key=lambda head: -effects[head])[:3]


def change_without(model: Model, head: str) -> float:
    """Mean change of the difference of logits when the head's output is zero at every position."""
    layer, _, number = head[1:].partition("H")
    edit = Edit(site=Site("head", int(layer), int(number)), rule="zero")
    return float((_differences(model, [edit]) - _differences(model, [])).mean())


def change_without_head(model: Model) -> float:
    return change_without(model, REMOVED)


def twice(model: Model) -> Tokens:
    return model.tokenize([WORDS + WORDS], bos=False)


def induction_scores(model: Model) -> dict[str, float]:
    """Mean attention from each word's second occurrence to the word that followed its first one."""
    tokens, info = twice(model), model.info
    half = len(WORDS.split())
    sites = [Site("pattern", layer) for layer in range(info.n_layers)]
    reads = model.run(tokens, read=sites).reads
    found = {}
    for layer, site in enumerate(sites):
        scores = reads[site][0].diagonal(1 - half, dim1=-2, dim2=-1)[:, 1:].mean(-1)
        found |= {head_name(layer, head): float(score) for head, score in enumerate(scores)}
    return found


def strongest_induction(model: Model) -> list[str]:
    scores = induction_scores(model)
    return sorted(scores, key=lambda head: -scores[head])[:3]


def layer_of_the_city(model: Model) -> int:
    """The layer from which resid_post, through final norm and unembedding, gives the city at the end of the prompt."""
    w, tokens = model.weights, model.tokenize([CAPITAL])
    sites = [Site("resid_post", layer) for layer in range(model.info.n_layers)]
    reads = model.run(tokens, read=sites).reads
    norm, unembed, (city,) = w.final_norm(), w.unembed(), model.token_ids(CITY)
    on_top = [int((norm(reads[site][0, -1]) @ unembed).argmax()) == city for site in sites]
    return max((layer + 1 for layer, yes in enumerate(on_top) if not yes), default=0)
