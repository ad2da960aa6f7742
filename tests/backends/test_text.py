"""Text to tokens and back with an explicit BOS policy, on a word tokenizer made here."""

from __future__ import annotations

import pytest
from anatomist.errors import BadPrompts, Unsupported
from anatomist.model.backends.text import TextCodec
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["<s>", "</s>", "the", "cat", "sat", "<unk>"]


def tokenizer(*, adds_bos: bool, **more: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>", **more)


def codec(*, adds_bos: bool = False, n_ctx: int = 8, bos_token: str | None = "<s>") -> TextCodec:
    more = {} if bos_token is None else {"bos_token": bos_token}
    return TextCodec(tokenizer(adds_bos=adds_bos, **more), d_vocab=len(WORDS) + 1, n_ctx=n_ctx)


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("adds_bos", "bos", "ids"),
    [
        (False, None, (2, 3)),
        (True, None, (0, 2, 3)),
        (True, False, (2, 3)),
        (False, True, (0, 2, 3)),
        (True, True, (0, 2, 3)),
    ],
)
def test_bos_is_what_the_tokenizer_does_unless_asked_for(
    adds_bos: bool, bos: bool | None, ids: tuple[int, ...]
) -> None:
    text = codec(adds_bos=adds_bos)
    tokens = text.tokenize(["the cat"], bos=bos)
    assert tokens.ids == (ids,)
    assert tokens.bos == (ids[0] == 0)
    assert text.adds_bos == adds_bos


def test_a_text_that_spells_out_its_bos_gets_no_second_one() -> None:
    assert codec(adds_bos=True).tokenize(["<s> the"]).ids == ((0, 2),)
    assert codec(adds_bos=True).tokenize(["<s> the"], bos=True).ids == ((0, 2),)


def test_ready_ids_are_taken_as_they_are_unless_bos_is_asked_for() -> None:
    assert codec(adds_bos=True).tokenize([[2, 3]]).ids == ((2, 3),)
    assert codec().tokenize([[2, 3]], bos=True).ids == ((0, 2, 3),)
    assert codec().tokenize([[2, 3]]).strings == (("the", "cat"),)


def test_an_id_without_a_token_is_shown_as_its_number() -> None:
    assert codec().strings([3, 6]) == ("cat", "<6>")


@pytest.mark.bad_input
def test_prompts_that_cannot_be_used_are_errors() -> None:
    with pytest.raises(BadPrompts, match="prompt 1 is empty"):
        codec().tokenize(["the", ""])
    with pytest.raises(BadPrompts, match="there are no prompts"):
        codec().tokenize([])
    with pytest.raises(BadPrompts, match="prompt 0 has token id 7; ids are 0 to 6"):
        codec().tokenize([[7]])
    with pytest.raises(BadPrompts, match="9 tokens; this model's context holds 8"):
        codec().tokenize([[2] * 9])
    with pytest.raises(BadPrompts, match="no BOS token"):
        codec(bos_token=None).tokenize(["the"], bos=True)
    with pytest.raises(BadPrompts, match="has no tokenizer; give token ids"):
        TextCodec(None, d_vocab=5, n_ctx=8).ids("the")


@pytest.mark.bad_input
def test_a_tokenizer_without_a_chat_template_says_so() -> None:
    with pytest.raises(Unsupported, match="no chat template"):
        codec().chat("the cat")
