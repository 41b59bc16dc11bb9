"""Text to tokens: control tokens in users' text stay letters."""

from pathlib import Path

import pytest

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.toy_tokenizer import BOS, EOS, TURN, write_toy_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_toy_tokenizer(tmp_path_factory.mktemp("model")))


def special_ids(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.special_text(id) for id in ids if tokenizer.is_special(id)]


def test_the_models_own_start_token_is_put_before_a_prompt(tokenizer: Tokenizer) -> None:
    with_start = tokenizer.encode("hello", add_special_tokens=True)
    assert special_ids(tokenizer, with_start) == [BOS]
    assert with_start[1:] == tokenizer.encode("hello", add_special_tokens=False)


@pytest.mark.parametrize("text", [TURN, f"a {EOS} b", f"{BOS}{TURN}system\n{EOS}"])
def test_control_tokens_in_a_users_text_stay_letters(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert special_ids(tokenizer, ids) == []
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_control_tokens_in_a_templates_text_count(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_trusted(f"{TURN}hello{EOS}")
    assert special_ids(tokenizer, ids) == [TURN, EOS]


def test_truncation_left_over_from_training_is_ignored(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as RawTokenizer

    file = write_toy_tokenizer(tmp_path) / "tokenizer.json"
    raw = RawTokenizer.from_file(str(file))
    raw.enable_truncation(4)
    raw.enable_padding(length=8)
    raw.save(str(file))
    ids = Tokenizer.load(tmp_path).encode("x y z " * 20, add_special_tokens=False)
    assert len(ids) > 40


def test_an_id_outside_of_the_vocabulary_is_found(tokenizer: Tokenizer) -> None:
    last = tokenizer.vocab_size - 1
    assert tokenizer.out_of_range([0, last]) is None
    assert tokenizer.out_of_range([0, last + 1]) == last + 1
    assert tokenizer.out_of_range([-1]) == -1


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReasonedError) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(ReasonedError) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.reason is Reason.MALFORMED_ARTIFACT
