"""A prompt set as tokens of one model: aligned, with answers as token ids and roles as positions.

Whatever a prompt gives is checked, needed or not: a counterfactual of another length or an answer of several tokens
would make silent errors in the next technique that does need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

from ..errors import BadPrompts
from ..model.protocol import Model
from ..model.tokens import PositionSpec, Tokens, first_difference
from .columns import Column, resolve
from .prompt_set import Answers, Prompt, PromptSet

Part = Literal["corrupted", "answer", "wrong"]
Ids = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EncodedPrompts:
    """Rows of a prompt set for one model; B rows."""

    clean: Tokens
    corrupted: Tokens | None  # same lengths as clean, row by row
    answers: Ids | None  # per row, the ids of the answer set
    wrongs: Ids | None
    roles: Mapping[str, tuple[int, ...]]  # role -> position per row (BOS counted); only roles that every row has
    templates: tuple[str, ...]
    clusters: tuple[str, ...]  # one label per row: rows with the same label are resampled together
    warnings: tuple[str, ...] = ()  # what a careful reader must know; techniques pass them on

    @property
    def n(self) -> int:
        return self.clean.n_rows

    @cached_property
    def first_differences(self) -> tuple[int | None, ...]:
        """Per row, the first position where clean and corrupted differ; None where they are the same."""
        if self.corrupted is None:
            return (None,) * self.n
        pairs = zip(self.clean.ids, self.corrupted.ids, strict=True)
        return tuple(d if (d := first_difference(a, b)) < len(a) else None for a, b in pairs)

    def columns(self, positions: Sequence[PositionSpec] | PositionSpec = "all") -> tuple[Column, ...]:
        """Positions as labelled columns with one absolute position (BOS counted) per row.

        Integers, 'last', roles and token texts, one or several; or 'all'. Integers and 'all' need prompts of one
        length. The positions hold for clean and corrupted alike.

        Raises:
            BadPosition: outside a prompt, ambiguous, unknown, or named twice.
        """
        return resolve(self.clean, self.roles, positions)

    def rows(self, index: Iterable[int]) -> EncodedPrompts:
        """Some of the rows."""
        chosen = list(index)
        pick: Callable = lambda values: None if values is None else tuple(values[i] for i in chosen)  # noqa: E731
        return EncodedPrompts(
            clean=self.clean.rows(chosen),
            corrupted=None if self.corrupted is None else self.corrupted.rows(chosen),
            answers=pick(self.answers),
            wrongs=pick(self.wrongs),
            roles={role: pick(places) for role, places in self.roles.items()},
            templates=pick(self.templates),
            clusters=pick(self.clusters),
            warnings=self.warnings,
        )

    def swapped(self) -> EncodedPrompts:
        """The same rows seen from the other side: corrupted as clean, wrong as answer.

        Raises:
            BadPrompts: there is no corrupted side.
        """
        if self.corrupted is None:
            raise BadPrompts("these prompts have no corrupted side to look at; give each a `corrupted` text.")
        return EncodedPrompts(
            self.corrupted, self.clean, self.wrongs, self.answers, self.roles, self.templates, self.clusters,
            self.warnings,
        )  # fmt: skip


def encode(
    prompt_set: PromptSet, model: Model, *, bos: bool | None = None, need: Sequence[Part] = ()
) -> EncodedPrompts:
    """Tokenise a prompt set for a model and check it.

    `need` names the parts that every prompt must have. A part that only some prompts have counts as absent. Roles are
    given without BOS and come back with it counted.

    Raises:
        BadPrompts: no prompts, a needed part is absent, clean and corrupted differ in length, an answer is not one
            token, an id is in both answer and wrong, or a role lies outside its prompt.
    """
    prompts = prompt_set.prompts
    if not prompts:
        raise BadPrompts(f"the prompt set {prompt_set.handle!r} holds no prompts; give at least one.")
    for part in need:
        _check_present(prompts, part)
    clean = model.tokenize([p.clean for p in prompts], bos=bos)
    ids_of = cache(model.token_ids)
    answers, wrongs = _id_sets(prompts, "answer", model, ids_of), _id_sets(prompts, "wrong", model, ids_of)
    if answers and wrongs:
        _check_disjoint(answers, wrongs, model)
    return EncodedPrompts(
        clean=clean,
        corrupted=_corrupted(prompts, clean, model, bos),
        answers=answers,
        wrongs=wrongs,
        roles=_roles(prompts, clean),
        templates=tuple(p.template for p in prompts),
        clusters=tuple(p.cluster or f"prompt {row}" for row, p in enumerate(prompts)),
        warnings=_space_warnings(prompts, ids_of),
    )


def _check_present(prompts: Sequence[Prompt], part: Part) -> None:
    absent = [row for row, p in enumerate(prompts) if getattr(p, part) is None]
    if absent:
        raise BadPrompts(
            f"{len(absent)} of {len(prompts)} prompts have no `{part}` (first: prompt {absent[0]}); what was asked for "
            f"needs it. Give each prompt a `{part}`, or make prompts with make_prompts."
        )


def _corrupted(prompts: Sequence[Prompt], clean: Tokens, model: Model, bos: bool | None) -> Tokens | None:
    texts = [p.corrupted for p in prompts if p.corrupted is not None]
    if len(texts) < len(prompts):
        return None
    corrupted = model.tokenize(texts, bos=bos)
    _check_aligned(clean, corrupted)
    return corrupted


def _check_aligned(clean: Tokens, corrupted: Tokens) -> None:
    uneven = [row for row in range(clean.n_rows) if clean.lengths[row] != corrupted.lengths[row]]
    if not uneven:
        return
    row = uneven[0]
    place = first_difference(clean.ids[row], corrupted.ids[row])
    sides = "; ".join(
        f"{side} ({t.lengths[row]}): {' '.join(map(repr, t.strings[row]))}"
        for side, t in (("clean", clean), ("corrupted", corrupted))
    )
    raise BadPrompts(
        f"clean and corrupted must be aligned token for token, but {len(uneven)} of {clean.n_rows} prompts differ in "
        f"length. Prompt {row} diverges at position {place}: {sides}. Choose words with as many tokens as those "
        "they replace."
    )


def _id_sets(prompts: Sequence[Prompt], part: Part, model: Model, ids_of: Callable) -> Ids | None:
    if any(getattr(p, part) is None for p in prompts):
        return None
    return tuple(_id_set(getattr(p, part), part, row, model, ids_of) for row, p in enumerate(prompts))


def _id_set(given: Answers, part: Part, row: int, model: Model, ids_of: Callable) -> tuple[int, ...]:
    several = given if isinstance(given, tuple) else (given,)
    if not several:
        raise BadPrompts(f"the `{part}` of prompt {row} is an empty set; give at least one token.")
    return tuple(dict.fromkeys(_one_id(token, part, row, model, ids_of) for token in several))


def _one_id(token: str | int, part: Part, row: int, model: Model, ids_of: Callable) -> int:
    if isinstance(token, int):
        if not 0 <= token < model.info.d_vocab:
            raise BadPrompts(
                f"the `{part}` id {token} of prompt {row} is outside the vocabulary (0 to {model.info.d_vocab - 1})."
            )
        return token
    ids = ids_of(token)
    if len(ids) == 1:
        return ids[0]
    shown = " ".join(map(repr, model.token_strings(ids))) or "none"
    spaced = " " + token.lstrip(" ")
    hint = f" {spaced!r} with its leading space is a single token." if _single(spaced, ids_of) else ""
    raise BadPrompts(
        f"the `{part}` {token!r} of prompt {row} is {len(ids)} tokens ({shown}); it must be exactly one.{hint} Answers "
        "are never shortened to their first token: choose another word, or give the token you mean."
    )


def _single(text: str, ids_of: Callable) -> bool:
    return bool(text.strip()) and len(ids_of(text)) == 1


def _check_disjoint(answers: Ids, wrongs: Ids, model: Model) -> None:
    for row, (right, wrong) in enumerate(zip(answers, wrongs, strict=True)):
        if both := sorted(set(right) & set(wrong)):
            raise BadPrompts(
                f"prompt {row} has {', '.join(map(repr, model.token_strings(both)))} in `answer` and in `wrong`; "
                "a token can be in one of them only."
            )


def _roles(prompts: Sequence[Prompt], clean: Tokens) -> dict[str, tuple[int, ...]]:
    shared = [role for role in prompts[0].roles if all(role in p.roles for p in prompts)]
    return {role: tuple(_place(p, role, row, clean) for row, p in enumerate(prompts)) for role in shared}


def _place(prompt: Prompt, role: str, row: int, clean: Tokens) -> int:
    """A role's position with BOS counted; negative ones count from the end."""
    length = clean.lengths[row] - clean.bos
    position = prompt.roles[role]
    if not -length <= position < length:
        raise BadPrompts(
            f"role {role!r} of prompt {row} is at {position}, but the prompt has {length} tokens without BOS "
            f"(0 to {length - 1}): {' '.join(map(repr, clean.strings[row]))}."
        )
    return position % length + clean.bos


def _space_warnings(prompts: Sequence[Prompt], ids_of: Callable) -> tuple[str, ...]:
    """An answer whose leading space was lost is a token too, of another meaning: the commonest silent error."""
    bare = {token: row for row, p in enumerate(prompts) for token in _texts(p) if _lost_its_space(p, token, ids_of)}
    return tuple(
        f"Answer {token!r} of prompt {row} has no leading space though the prompt does not end in one, and "
        f"{' ' + token!r} is a token too: check which is meant."
        for token, row in list(bare.items())[:3]
    )


def _texts(prompt: Prompt) -> list[str]:
    sets = (s if isinstance(s, tuple) else (s,) for s in (prompt.answer, prompt.wrong) if s is not None)
    return [token for s in sets for token in s if isinstance(token, str)]


def _lost_its_space(prompt: Prompt, token: str, ids_of: Callable) -> bool:
    if not isinstance(prompt.clean, str) or not prompt.clean[-1:].isalpha() or not token[:1].isalpha():
        return False
    spaced = ids_of(" " + token)
    return len(spaced) == 1 and spaced != ids_of(token)
