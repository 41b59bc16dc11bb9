"""Text to tokens: control tokens in users' text stay letters."""

import threading
from collections.abc import Callable
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


LONG = "one two three four " * 40_000


@pytest.mark.parametrize("call", ["encode", "encode_trusted", "spans", "decode"])
def test_other_threads_run_while_a_long_text_is_worked_on(tokenizer: Tokenizer, call: str) -> None:
    """A thread alone is not enough: the library must let go of the interpreter's lock."""
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: tokenizer.encode(LONG, add_special_tokens=True),
        "encode_trusted": lambda: tokenizer.encode_trusted(LONG),
        "spans": lambda: tokenizer.spans(LONG),
        "decode": lambda: tokenizer.decode([70] * 400_000, skip_special_tokens=False),
    }
    begun = threading.Event()

    def work() -> None:
        begun.set()
        works[call]()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    turns = 0
    while thread.is_alive():
        turns += 1
        thread.join(0.001)
    assert turns > 5, "the lock was held all the time"


def test_long_texts_have_the_tokens_of_their_parts(tokenizer: Tokenizer) -> None:
    part = "one two three four"
    one = tokenizer.encode(f" {part}", add_special_tokens=False)
    long = tokenizer.encode(f" {part}" * 1000, add_special_tokens=False)
    assert long == one * 1000
    assert tokenizer.decode(long, skip_special_tokens=True) == f" {part}" * 1000
    assert [id for id, _, _ in tokenizer.spans(f" {part}" * 1000)][-len(long) :] == long
