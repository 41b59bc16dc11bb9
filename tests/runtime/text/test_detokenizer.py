"""Tokens to text, one at a time: no character is cut, nothing is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from graft_runtime.text.detokenizer import LONGEST_CHARACTER_BYTES, REPLACEMENT, Detokenizer
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.toy_tokenizer import write_toy_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_toy_tokenizer(tmp_path_factory.mktemp("model")))


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(id) for id in ids), detokenizer.flush()]


@given(text=st.text(max_size=60))
def test_any_text_comes_back_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in part for part in parts)


@settings(max_examples=300)
@given(data=st.data())
def test_any_tokens_give_the_text_of_a_whole_decode(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces(tokenizer, ids)) == whole


def test_a_character_is_held_back_until_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f600!", add_special_tokens=False)
    assert len(ids) == 5
    assert pieces(tokenizer, ids) == ["", "", "", "\U0001f600", "!", ""]


def test_an_unfinished_character_at_the_end_is_given_as_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001f600", add_special_tokens=False)[:-1]
    assert pieces(tokenizer, ids) == ["a", "", "", "", REPLACEMENT]


def test_bytes_that_are_no_text_do_not_pile_up(tokenizer: Tokenizer) -> None:
    garbage = tokenizer.encode("\u0080", add_special_tokens=False)[-1]  # a continuation byte
    detokenizer = Detokenizer(tokenizer)
    given_out = "".join(detokenizer.push(garbage) for _ in range(500))
    assert len(given_out) >= 500 - LONGEST_CHARACTER_BYTES - 1
    assert len(given_out + detokenizer.flush()) == 500


def test_control_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode("hello", add_special_tokens=False)
    assert "".join(pieces(tokenizer, [0, *hello, 1, 2])) == "hello"


def test_tokens_without_text_do_not_pile_up(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    beyond = tokenizer.vocab_size + 7  # a padded row of the model's embedding
    for _ in range(200):
        assert detokenizer.push(beyond) == ""
    assert len(detokenizer._window) <= LONGEST_CHARACTER_BYTES + 1
    hello = tokenizer.encode("hello", add_special_tokens=False)
    assert "".join(detokenizer.push(id) for id in hello) + detokenizer.flush() == "hello"


def sentencepiece_like() -> Tokenizer:
    vocabulary = {"<unk>": 0, "▁the": 1, "▁fox": 2, "es": 3, "<0xE4>": 4, "<0xBD>": 5, "<0xA0>": 6}
    raw = RawTokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(raw.to_str())


def test_words_of_a_sentencepiece_vocabulary_keep_their_spaces() -> None:
    assert pieces(sentencepiece_like(), [1, 2, 3, 1]) == ["the", " fox", "es", " the", ""]


def test_bytes_of_a_sentencepiece_vocabulary_become_one_character() -> None:
    assert pieces(sentencepiece_like(), [1, 4, 5, 6, 2]) == ["the", "", "", "你", " fox", ""]
