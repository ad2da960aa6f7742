"""Answers measured from the models by running them: no answer is taken from how a model was built."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import torch
from anatomist.model.backends.toy import ToyModel
from anatomist.model.edits import Edit
from anatomist.model.sites import Site, SiteKind, head_name
from anatomist.model.tokens import Tokens
from jaxtyping import Float
from torch import Tensor

ROWS, HALF = 24, 10
SEEN = 0.1  # logits: what counts as a change


def twice(model: ToyModel, seed: int = 0) -> Tokens:
    """Rows of different words, each row said twice."""
    drawn = random.Random(seed)
    halves = [drawn.sample(range(model.info.d_vocab), HALF) for _ in range(ROWS)]
    return model.tokenize([half + half for half in halves])


def last_logits(model: ToyModel, tokens: Tokens, edits: Sequence[Edit] = ()) -> Float[Tensor, "B V"]:
    logits = model.run(tokens, edits=edits, logits_at=tokens.last).logits
    assert logits is not None, "logits were asked for"
    return logits


def all_heads(model: ToyModel, layer: int) -> list[str]:
    return [head_name(layer, head) for head in range(model.info.n_heads)]


def _site(head: str) -> Site:
    layer, _, number = head[1:].partition("H")
    return Site("head", int(layer), int(number))


def top_now(model: ToyModel, tokens: Tokens) -> Tensor:
    """The token with the highest logit at the end of each row."""
    return last_logits(model, tokens).argmax(-1)


def zero_effects(model: ToyModel, tokens: Tokens, targets: Tensor) -> dict[str, float]:
    """Mean change of the target's logit at the last position when a head's output is zero at every position."""
    rows = torch.arange(tokens.n_rows)
    base = last_logits(model, tokens)[rows, targets]
    found = {}
    for head in [h for layer in range(model.info.n_layers) for h in all_heads(model, layer)]:
        changed = last_logits(model, tokens, [Edit(site=_site(head), rule="zero")])[rows, targets]
        found[head] = float((changed - base).mean())
    return found


def followers(tokens: Tokens, offset: int = 1) -> Tensor:
    """The token that stood `offset` after the first occurrence of each row's last token."""
    return torch.tensor([row[row.index(row[-1]) + offset] for row in tokens.ids])


def heads_that_matter(model: ToyModel) -> list[str]:
    tokens = twice(model)
    effects = zero_effects(model, tokens, followers(tokens))
    return sorted(head for head, change in effects.items() if abs(change) > SEEN)


def heads_for_own_answer(model: ToyModel) -> dict[str, float]:
    """Effects on the token that the model itself puts first."""
    tokens = twice(model)
    return zero_effects(model, tokens, top_now(model, tokens))


def writers(model: ToyModel) -> list[str]:
    """Heads of the last layer without which the model's own first choice loses logit, most first."""
    effects = {h: e for h, e in heads_for_own_answer(model).items() if h.startswith("L1") and e < -SEEN}
    return sorted(effects, key=lambda head: effects[head])


def smallest_loss(model: ToyModel) -> float:
    return -heads_for_own_answer(model)[writers(model)[-1]]


def opposing(model: ToyModel) -> list[str]:
    """Heads without which the model's own first choice gains logit."""
    return sorted(head for head, change in heads_for_own_answer(model).items() if change > SEEN)


def key_path(model: ToyModel) -> list[str]:
    """The layer-0 head, the layer-1 head, and the letter through which the first feeds the second.

    The layer-1 head's queries, keys or values are put back to what they were before the layer-0 head was zeroed; where
    that brings the answer back, the path runs.
    """
    tokens = twice(model)
    targets, rows = followers(tokens), torch.arange(tokens.n_rows)
    effects = zero_effects(model, tokens, targets)
    first, second = (min(all_heads(model, layer), key=lambda h: effects[h]) for layer in (0, 1))
    base = last_logits(model, tokens)[rows, targets]
    letters: tuple[SiteKind, ...] = ("q", "k", "v")
    intact = model.run(tokens, read=[Site(letter, 1) for letter in letters]).reads
    number = int(second[3:])
    back = {}
    for letter in letters:
        kept = Edit(site=Site(letter, 1, number), rule="set", value=intact[Site(letter, 1)][:, :, number])
        logits = last_logits(model, tokens, [Edit(site=_site(first), rule="zero"), kept])
        back[letter] = float((logits[rows, targets] - base).mean())
    (through,) = [letter for letter, lost in back.items() if abs(lost) < SEEN]
    return [first, second, through]


def pattern(model: ToyModel, tokens: Tokens, head: str) -> Float[Tensor, "B T T"]:
    site = _site(head)
    assert site.layer is not None, "a head has a layer"
    whole = Site("pattern", site.layer)
    return model.run(tokens, read=[whole]).reads[whole][:, site.index]


def steps_back(model: ToyModel) -> int:
    """How far back the one layer-0 head looks that looks equally far in every row and place."""
    tokens = twice(model)
    found = set()
    for head in all_heads(model, 0):
        where = pattern(model, tokens, head)[:, HALF:].argmax(-1)
        distances = torch.arange(HALF, 2 * HALF) - where
        if distances.unique().numel() == 1 and distances[0, 0] != 0:
            found.add(int(distances[0, 0]))
    (steps,) = found
    return steps


def soft_prompt(model: ToyModel) -> str:
    strings = model.words.strings
    return " ".join((*strings[:6], strings[2]))


def weight_on_match(model: ToyModel) -> float:
    """How much of the writing head's attention, at the end of the prompt, lies on the word after the earlier one."""
    tokens = model.tokenize([soft_prompt(model)])
    return float(pattern(model, tokens, writers(model)[0])[0, -1, 3])


def cipher_prompt(model: ToyModel) -> str:
    strings = model.words.strings
    return " ".join((strings[7], strings[4], strings[11], strings[7]))


def next_word_of_cipher(model: ToyModel) -> str:
    return model.words.strings[int(top_now(model, model.tokenize([cipher_prompt(model)]))[0])]


# Compiled programs -------------------------------------------------------------------------------------------------


def program_rows(model: ToyModel, length: int, *, distinct: bool = False) -> list[tuple[str, ...]]:
    """Every row of a length."""
    given = model.words.strings[1 : model.words.n_readable]
    return list(itertools.permutations(given, length) if distinct else itertools.product(given, repeat=length))


def program_answers(model: ToyModel, rows: Iterable[Sequence[str]], edits: Sequence[Edit] = ()) -> list[list[str]]:
    """What the program says at every position after BOS."""
    tokens = model.tokenize([" ".join(row) for row in rows])
    logits = model.run(tokens, edits=edits, logits_at="all").logits
    assert logits is not None, "logits were asked for"
    best = logits.argmax(-1)
    return [list(model.token_strings(best[i, 1:n].tolist())) for i, n in enumerate(tokens.lengths)]


def layers_whose_attention_is_needed(model: ToyModel, length: int, *, resample: bool) -> list[str]:
    """Layers whose attention output changes an answer when it becomes zero, or another row's of the same length."""
    rows = program_rows(model, length)
    intact = program_answers(model, rows)
    sites = [Site("attn_out", layer) for layer in range(model.info.n_layers)]
    others = rows[1:] + rows[:1]
    reads = model.run(model.tokenize([" ".join(row) for row in others]), read=sites).reads
    needed = []
    for site in sites:
        edit = Edit(site=site, rule="resample", value=reads[site]) if resample else Edit(site=site, rule="zero")
        if program_answers(model, rows, [edit]) != intact:
            needed.append(f"L{site.layer}")
    return needed


def sorting_order(model: ToyModel) -> list[str]:
    """The program's own order of its words: what it makes of the row that holds them all."""
    return program_answers(model, [model.words.strings[1 : model.words.n_readable]])[0]


def parts_needed(model: ToyModel, length: int = 4) -> list[str]:
    """Attention and MLP outputs that change an answer when they are zero, over every row of a length."""
    rows = program_rows(model, length)
    intact = program_answers(model, rows)
    kinds: tuple[SiteKind, ...] = ("attn_out", "mlp_out")
    sites = [Site(kind, layer) for layer in range(model.info.n_layers) for kind in kinds]
    changed = [s for s in sites if program_answers(model, rows, [Edit(site=s, rule="zero")]) != intact]
    return [f"L{site.layer} {site.kind}" for site in changed]


def which_program(models: Sequence[ToyModel]) -> list[str]:
    """The names of the models that do what PROGRAMS says, in its order."""
    found = []
    for does in PROGRAMS.values():
        (name,) = [model.info.name for model in models if does(model)]
        found.append(name)
    return found


def _reverses(model: ToyModel) -> bool:
    rows = program_rows(model, 3)
    return program_answers(model, rows) == [list(reversed(row)) for row in rows]


def _sorts(model: ToyModel) -> bool:
    """Whatever order the words of a row come in, the same is made of them: those words in another order."""
    rows = program_rows(model, 3, distinct=True)
    made = {(frozenset(row), tuple(out)) for row, out in zip(rows, program_answers(model, rows), strict=True)}
    return len(made) == len({words for words, _ in made}) and all(set(out) == words for words, out in made)


def _counts(model: ToyModel) -> bool:
    rows = program_rows(model, 3)
    return program_answers(model, rows) == [[str(row.count(word)) for word in row] for row in rows]


def _tells_shares(model: ToyModel) -> bool:
    rows = program_rows(model, 3)
    answers = program_answers(model, rows)
    return any(
        answers == [[str(Fraction(row[: i + 1].count(word), i + 1)) for i in range(3)] for row in rows]
        for word in model.words.strings[1 : model.words.n_readable]
    )


PROGRAMS: Mapping[str, Callable[[ToyModel], bool]] = {
    "reverse": _reverses, "sort": _sorts, "hist": _counts, "fraction": _tells_shares,
}  # fmt: skip
