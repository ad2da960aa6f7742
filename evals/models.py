"""Models whose workings are known and whose names are not: hand-set circuits and compiled programs under renamings.

A circuit's heads stand at places drawn by a seed, its tokens bear words drawn by the seed, and so does the folder. What
is written about the model therefore does not answer a question about it; only running it does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from anatomist.model.backends.toy_circuits import INDUCTION, PREVIOUS_TOKEN, Blocks, induction
from anatomist.model.backends.toy_file import Form, load_toy, named_tensors, save_toy
from anatomist.model.programs import program_file
from anatomist.model.trained import TOY_FILE
from torch import Tensor

VOCABULARY, N_CTX, JUNK, N_HEADS = 20, 40, 8, 4
SPARE_HEADS = (3, 0, 1)  # of layer 1, before they are moved: they do nothing until they are made copies


@dataclass(frozen=True)
class Circuit:
    """How a circuit departs from the hand-set induction circuit."""

    offset: int = 1  # the layer-0 head attends so many positions back
    sharpness: float = 40.0  # attention score of a match
    copies: tuple[float, ...] = ()  # more heads attending like the induction head, and the share each writes
    cipher: bool = False  # the token answered is a fixed other one than the token copied
    answers_itself: bool = False  # the layer-1 head looks at its own position: no circuit for repetition


@dataclass(frozen=True)
class Truth:
    """What is true by construction."""

    previous: str
    inducer: str
    copies: tuple[str, ...] = ()
    cipher: tuple[int, ...] = tuple(range(VOCABULARY))


@dataclass(frozen=True)
class Built:
    """A model to be written: its weights, its form, and what is true of it."""

    tensors: Mapping[str, Tensor]
    form: Form
    truth: Truth | None = None  # programs: their answers are said in Python

    def save(self, parent: Path) -> Path:
        """The model's folder, as `load_model` reads it; nothing in it says what is true."""
        save_toy(parent / self.form.name / TOY_FILE, self.tensors, self.form)
        return parent / self.form.name


def words(drawn: random.Random, n: int) -> tuple[str, ...]:
    """Different words without meaning."""
    pool = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in "bdfgklmnprstvz"]
    return tuple(drawn.sample(pool, n))


def circuit(spec: Circuit, seed: int, name: str) -> Built:
    """The circuit with heads moved and tokens renamed by the seed."""
    drawn = random.Random(f"{seed} {name}")
    base = induction(
        sharpness=spec.sharpness, vocabulary=VOCABULARY, n_ctx=N_CTX, junk=JUNK, seed=drawn.randrange(10**6)
    )
    w = {key: x.clone() for key, x in named_tensors(base.weights).items()}
    where = Blocks.of(VOCABULARY, N_CTX, VOCABULARY, VOCABULARY, JUNK)
    _look_back(w, where, spec.offset)
    if spec.answers_itself:
        _look_at_itself(w, where)
    for head, share in zip(SPARE_HEADS, spec.copies, strict=False):
        _copy_head(w, head, share)
    cipher = _derangement(drawn) if spec.cipher else tuple(range(VOCABULARY))
    w["unembedding"][where.output] = w["unembedding"][where.output][:, _inverse(cipher)]
    places = [_moved(w, layer, home, drawn) for layer, home in (PREVIOUS_TOKEN, INDUCTION)]
    truth = Truth(
        previous=f"L0H{places[0][PREVIOUS_TOKEN[1]]}",
        inducer=f"L1H{places[1][INDUCTION[1]]}",
        copies=tuple(f"L1H{places[1][head]}" for head in SPARE_HEADS[: len(spec.copies)]),
        cipher=cipher,
    )
    form = Form(name=name, source="evaluation model", n_ctx=N_CTX, strings=words(drawn, VOCABULARY))
    return Built(w, form, truth)


def program(original: str, seed: int, name: str) -> Built:
    """A compiled program whose input words are renamed."""
    drawn = random.Random(f"{seed} {name}")
    model = load_toy(program_file(original))
    strings, last = list(model.words.strings), model.words.n_readable
    strings[1:last] = words(drawn, last - 1)
    form = Form(
        name=name, source="evaluation model", n_ctx=model.n_ctx, strings=tuple(strings), bos=model.words.bos,
        readable=model.words.readable, activation=model.weights.activation, causal=model.weights.causal,
    )  # fmt: skip
    return Built(named_tensors(model.weights), form)


def _look_back(w: dict[str, Tensor], where: Blocks, offset: int) -> None:
    """Positions that have none so far before them get queries of zero."""
    queries = w["blocks.0.q"][PREVIOUS_TOKEN[1], where.position, :N_CTX]
    queries.copy_(queries.roll(1 - offset, dims=1))
    queries[:offset] = 0


def _look_at_itself(w: dict[str, Tensor], where: Blocks) -> None:
    """The layer-1 head's query of position i is the key of position i."""
    q, k = (w[f"blocks.1.{letter}"][INDUCTION[1]] for letter in "qk")
    scale = q.max()
    q.zero_()
    k.zero_()
    q[where.position, :N_CTX] = scale * torch.eye(N_CTX)
    k[where.position, :N_CTX] = torch.eye(N_CTX)


def _copy_head(w: dict[str, Tensor], head: int, share: float) -> None:
    """A head that attends as the induction head does; with a share of 0 it goes on writing where nobody reads."""
    for letter in "qkv":
        w[f"blocks.1.{letter}"][head] = w[f"blocks.1.{letter}"][INDUCTION[1]]
    if share:
        w["blocks.1.o"][head] = share * w["blocks.1.o"][INDUCTION[1]]


def _moved(w: dict[str, Tensor], layer: int, home: int, drawn: random.Random) -> dict[int, int]:
    """Heads of a layer in another order, the head of that number never at its own place: old number -> new number."""
    order = list(range(N_HEADS))
    while order[home] == home:
        drawn.shuffle(order)
    for letter in "qkvo":
        w[f"blocks.{layer}.{letter}"] = w[f"blocks.{layer}.{letter}"][order]
    return {old: new for new, old in enumerate(order)}


def _derangement(drawn: random.Random) -> tuple[int, ...]:
    """Token copied -> token answered, never the same."""
    ring = drawn.sample(range(VOCABULARY), VOCABULARY)
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return tuple(following[i] for i in range(VOCABULARY))


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=lambda i: order[i])


def specs(seed: int) -> dict[str, Circuit | str]:
    """What each model is; its sizes are drawn too, so that numbers do not carry over from one seed to the next."""
    drawn = random.Random(f"sizes {seed}")
    return {
        "plain": Circuit(),
        "offset": Circuit(offset=drawn.choice((2, 3, 4, 5))),
        "look-alike": Circuit(copies=(0.0, 0.0)),
        "shares": Circuit(copies=(drawn.randint(55, 80) / 100, drawn.randint(15, 45) / 100)),
        "soft": Circuit(sharpness=drawn.randint(30, 50) / 10),
        "cipher": Circuit(cipher=True),
        "negative": Circuit(copies=(-0.4,)),
        "itself": Circuit(answers_itself=True),
        "reverse": "tracr-reverse",
        "sort": "tracr-sort-unique",
        "hist": "tracr-hist",
        "fraction": "tracr-frac-prevs",
    }


def build_models(seed: int) -> dict[str, Built]:
    """Every model by what it is; the names they go by are drawn by the seed."""
    wanted = specs(seed)
    names = words(random.Random(f"names {seed}"), len(wanted))
    made = {}
    for (what, spec), name in zip(wanted.items(), names, strict=True):
        make = program(spec, seed, f"model-{name}") if isinstance(spec, str) else circuit(spec, seed, f"model-{name}")
        made[what] = make
    return made
