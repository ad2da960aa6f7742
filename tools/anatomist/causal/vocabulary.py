"""Tokens of a vocabulary as they are asked for and shown: exact texts or ids in, readable labels out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..errors import BadArguments
from ..model.protocol import Model


def token_choice(model: Model, tokens: Sequence[str | int], what: str) -> tuple[int, ...]:
    """Ids of tokens given as exact texts (leading space included) or as ids, each once.

    Raises:
        BadArguments: none, one twice, an id outside the vocabulary, or a text that is not exactly one token.
    """
    ids = tuple(_id(model, token, what) for token in tokens)
    if not ids or len(set(ids)) < len(ids):
        raise BadArguments(f"{what} {list(tokens)}: name at least one token, each once.")
    return ids


def _id(model: Model, token: str | int, what: str) -> int:
    last = model.info.d_vocab - 1
    if isinstance(token, int):
        if not 0 <= token <= last:
            raise BadArguments(f"{what}: id {token} is outside the vocabulary; ids are 0 to {last}.")
        return token
    ids = model.token_ids(token)
    if len(ids) != 1:
        shown = " ".join(map(repr, model.token_strings(ids))) or "none"
        raise BadArguments(
            f"{what}: {token!r} is {len(ids)} tokens ({shown}); each must be exactly one. Mind the leading space, or "
            "give the token's id."
        )
    return ids[0]


def token_labels(model: Model, ids: Sequence[int]) -> tuple[str, ...]:
    """One readable label per id; different ids whose strings look the same carry their number."""
    distinct = list(dict.fromkeys(ids))
    shown = dict(zip(distinct, map(_readable, model.token_strings(distinct)), strict=True))
    times = Counter(shown.values())
    return tuple(shown[i] if times[shown[i]] == 1 else f"{shown[i]} #{i}" for i in ids)


def _readable(string: str) -> str:
    return string if string.isprintable() and string.strip() and "\ufffd" not in string else repr(string)
