"""Text to tokens and back, the same for every backend that has a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import BadPrompts, Unsupported
from ..tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "\u2581"  # how sentencepiece writes a leading space


class TextCodec:
    """A tokenizer with an explicit BOS policy, or none at all for models that take ids only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, *, d_vocab: int, n_ctx: int) -> None:
        self.tokenizer = tokenizer
        self.d_vocab = d_vocab
        self.n_ctx = n_ctx
        bos = None if tokenizer is None else tokenizer.bos_token_id
        self._bos_id = bos if isinstance(bos, int) else None

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself puts a BOS token first."""
        if self.tokenizer is None or self._bos_id is None:
            return False
        return list(self.tokenizer("a")["input_ids"])[:1] == [self._bos_id]

    def tokenize(self, prompts: Sequence[str | Sequence[int]], *, bos: bool | None = None) -> Tokens:
        """See `Model.tokenize`."""
        if bos and self._bos_id is None:
            raise BadPrompts("bos=True was asked for, but this tokenizer has no BOS token; leave bos out.")
        rows = tuple(self._row(i, prompt, bos) for i, prompt in enumerate(prompts))
        starts = bool(rows) and self._bos_id is not None and all(row[0] == self._bos_id for row in rows)
        return Tokens(rows, tuple(self.strings(row) for row in rows), starts)

    def _row(self, row: int, prompt: str | Sequence[int], bos: bool | None) -> tuple[int, ...]:
        ids = self._encode(prompt, bos) if isinstance(prompt, str) else tuple(int(i) for i in prompt)
        if bos and ids[:1] != (self._bos_id,):
            assert self._bos_id is not None
            ids = (self._bos_id, *ids)
        if not ids:
            raise BadPrompts(f"prompt {row} is empty; give at least one token.")
        for i in ids:
            if not 0 <= i < self.d_vocab:
                raise BadPrompts(f"prompt {row} has token id {i}; ids are 0 to {self.d_vocab - 1} for this model.")
        if len(ids) > self.n_ctx:
            raise BadPrompts(
                f"prompt {row} has {len(ids)} tokens; this model's context holds {self.n_ctx}. Shorten the prompt."
            )
        return ids

    def _encode(self, text: str, bos: bool | None) -> tuple[int, ...]:
        tokenizer = self._required(text)
        # A text that already spells out its BOS (a chat template does) must not get a second one.
        spelled = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
        special = bos is not False and not spelled
        ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
        ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token))
        if special and ended:
            ids = ids[:-1]  # an end-of-text marker that the tokenizer appends is not part of the prompt
        return tuple(int(i) for i in ids)

    def _required(self, text: str) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise BadPrompts(
                f"{text!r} is text, but this model has no tokenizer; give token ids (0 to {self.d_vocab - 1})."
            )
        return self.tokenizer

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids of a text as it stands (leading space kept, no BOS)."""
        return tuple(int(i) for i in self._required(text)(text, add_special_tokens=False)["input_ids"])

    def strings(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of every single token, leading space kept."""
        return tuple(self._string(i) for i in ids)

    def _string(self, i: int) -> str:
        piece = None if self.tokenizer is None else self.tokenizer.convert_ids_to_tokens(int(i))
        if piece is None:
            return f"<{i}>"
        if isinstance(piece, str) and SPACE in piece:  # decoding one sentencepiece token drops its leading space
            return piece.replace(SPACE, " ")
        assert self.tokenizer is not None
        return str(self.tokenizer.decode([int(i)], clean_up_tokenization_spaces=False))

    def chat(self, text: str) -> str:
        """See `Model.chat`."""
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise Unsupported("this model's tokenizer has no chat template; give the text as a plain prompt.")
        message = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
