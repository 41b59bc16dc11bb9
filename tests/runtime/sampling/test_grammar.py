"""Grammars over tokens: what is allowed, when it ends, and what a mask does to scores."""

import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from graft_runtime.errors import GrammarError
from graft_runtime.sampling.batch import TokenMasks
from graft_runtime.sampling.constraint import Constraint, ConstraintKind, grammar_text
from graft_runtime.sampling.grammar import Vocabulary
from graft_runtime.sampling.masks import apply_masks
from graft_runtime.sampling.sampler import NO_TOKEN, sample
from tests.support.grammars import accepts, allowed, compiled, draw, eos_id, toy
from tests.support.sampling import batch, random_logits


@pytest.mark.parametrize("regex", [r"[a-f]{2,5}", r"(one|two) \d+", r"h.*d", r"\w+@\w+\.com"])
def test_a_token_is_allowed_exactly_if_an_output_can_go_on_with_it(regex: str) -> None:
    """Against trying every token out on a copy of the state."""
    chance = random.Random(regex)
    state = compiled("regex", regex)
    for _ in range(6):
        options = allowed(state)
        tried = [
            token
            for token in range(toy()[0].raw.vocab_size)
            if state.matcher.deep_copy().consume_token(token)
        ]
        # Where the text is forced, only the tokenizer's own way to write it is allowed.
        assert options == tried or (len(options) == 1 and options[0] in tried)
        if options == [eos_id()]:
            break
        state.advance(chance.choice([one for one in options if one != eos_id()]))


@pytest.mark.parametrize("regex", [r"[a-f]{2,5}", r"(one|two) \d+", "^x+y$", r"é{2}|ü"])
def test_a_drawn_output_matches_its_expression(regex: str) -> None:
    for seed in range(10):
        text = draw(compiled("regex", regex), random.Random(seed))
        assert text is not None
        assert re.fullmatch(regex, text)


def test_a_choice_is_one_of_its_texts_whole() -> None:
    choices = ["one", "one two", 'thr"ee\n', "\u00e9"]
    value = '["one", "one two", "thr\\"ee\\n", "\\u00e9"]'
    seen = {draw(compiled("choice", value), random.Random(seed)) for seed in range(60)}
    assert seen == set(choices)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "SELECT " COLUMN\nCOLUMN: "a" | "b"',
        'root ::= "SELECT " column\ncolumn ::= "a" | "b"',
    ],
)
def test_a_grammar_is_read_in_both_notations(grammar: str) -> None:
    seen = {draw(compiled("grammar", grammar), random.Random(seed)) for seed in range(30)}
    assert seen == {"SELECT a", "SELECT b"}


def test_a_tag_has_its_schema_and_the_text_around_it_is_free() -> None:
    tag = '{"triggers": ["<fn"], "structures": [{"begin": "<fn=f>", "schema": \
{"type": "integer"}, "end": "</fn>"}]}'
    assert accepts("structural_tag", tag, "hello")
    assert accepts("structural_tag", tag, "hello <fn=f>12</fn> world")
    assert not accepts("structural_tag", tag, "hello <fn=f>x</fn>")
    assert not accepts("structural_tag", tag, "hello <fn=g>12</fn>")


def test_blanks_between_json_tokens_are_bounded_and_can_be_changed() -> None:
    def takes(text: str, pattern: str | None) -> bool:
        vocabulary, tokenizer = toy()
        constraint = Constraint(kind="json_object", value="", whitespace_pattern=pattern)
        state = vocabulary.compile(grammar_text(constraint)).start()
        tokens = tokenizer.encode(text, add_special_tokens=False)
        return state.matcher.try_consume_tokens(tokens) == len(tokens)

    assert takes('{"a": 1}', None)
    assert takes('{\n    "a": 1\n}', None)
    assert not takes("{" + " " * 50, None)
    assert not takes('{"a": 1}', "")
    assert takes('{"a":1}', "")
    assert takes('{   "a":   1}', "[ ]{0,3}")


def test_the_end_is_allowed_exactly_when_the_output_is_whole() -> None:
    state = compiled("regex", "ab?")
    seen = []
    for letter in "ab":
        seen.append((eos_id() in allowed(state), state.may_end, state.is_complete))
        state.advance(toy()[1].encode(letter, add_special_tokens=False)[0])
    assert seen == [(False, False, False), (True, True, False)]
    assert state.is_complete
    assert allowed(state) == [eos_id()]


def test_a_token_that_is_not_allowed_fails_its_state_alone() -> None:
    first, second = compiled("regex", "abc"), compiled("regex", "abc")
    first.advance(eos_id())
    assert first.error
    assert "\n" not in first.error
    assert not first.is_complete
    masks = toy()[0].fill([first, second])
    assert not masks[0].any()
    assert masks[1].any()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", "(a"),
        ("regex", "a(?=b)"),
        ("grammar", "start: ("),
        ("grammar", "start: other"),
        ("json_schema", '{"type": "nonsense"}'),
        ("json_schema", '{"type": "array", "uniqueItems": true}'),
        ("json_schema", '{"x-guidance": {"lenient": true}, "uniqueItems": true}'),
        ("json_schema", '{"$ref": "#/nowhere"}'),
        ("json_schema", "false"),
        ("json_schema", '{"enum": [1, {"a": [9007199254740993]}]}'),
        ("json_schema", "[" * 5000),
        ("choice", "7"),
        ("structural_tag", '{"triggers": ["a"], "structures": [{"begin": "b", "end": ""}]}'),
        ("structural_tag", "{}"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(kind: ConstraintKind, value: str) -> None:
    with pytest.raises(GrammarError) as caught:
        compiled(kind, value)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_whose_tokens_mean_nothing_is_refused() -> None:
    with pytest.raises(GrammarError, match="tokenizer"):
        Vocabulary('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')


def test_a_row_of_logits_may_be_longer_than_the_tokenizer() -> None:
    vocabulary = toy()[0]
    size = vocabulary.raw.vocab_size
    padded = Vocabulary(_serialized(), vocab_size=size + 70)
    state = padded.compile("start: /.*/").start()
    bits = np.unpackbits(padded.fill([state]).view(np.uint8), bitorder="little")
    assert padded.num_words * 32 >= size + 70
    assert not bits[size:].any()


def _serialized() -> str:
    return str(toy()[1]._plain.to_str())


# Shape legend: V vocabulary, G rows with a mask.


def masks_for(rows: list[int], vocab: int, seed: int = 0) -> tuple[TokenMasks, Any]:
    is_in_GV = np.random.default_rng(seed).random((len(rows), vocab)) < 0.3
    words = -(-vocab // 32)
    padded = np.zeros((len(rows), words * 32), dtype=np.uint8)
    padded[:, :vocab] = is_in_GV
    packed = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    return TokenMasks(np.array(rows), packed), is_in_GV


@pytest.mark.parametrize("vocab", [5, 32, 50, 96, 1000])
def test_a_mask_forbids_what_it_leaves_out_and_changes_nothing_else(vocab: int) -> None:
    logits = random_logits(4, vocab=vocab)
    masks, is_in = masks_for([1, 3], vocab)
    scores = logits.clone()
    apply_masks(scores, masks, np.arange(4))
    assert torch.equal(scores[[0, 2]], logits[[0, 2]])
    for row, kept in zip((1, 3), torch.from_numpy(is_in), strict=True):
        assert torch.equal(scores[row][kept], logits[row][kept])
        assert bool(scores[row][~kept].isneginf().all())


def test_tokens_beyond_the_masks_end_are_forbidden() -> None:
    scores = random_logits(1, vocab=100)
    apply_masks(scores, TokenMasks(np.array([0]), np.array([[-1]], dtype=np.int32)), np.arange(1))
    assert scores[0].isfinite().nonzero()[:, 0].tolist() == list(range(32))


def test_rows_with_and_without_masks_are_sampled_as_if_alone() -> None:
    rows, vocab = 8, 300
    logits = random_logits(rows, vocab=vocab)
    temperature = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    masks, is_in = masks_for([0, 1, 6, 7], vocab)
    plain = batch(rows, temperature=temperature, seed=np.arange(rows))
    mixed = sample(logits, _with(plain, masks)).token_ids_S
    free = sample(logits, plain).token_ids_S
    assert torch.equal(mixed[2:6], free[2:6])
    for place, row in enumerate((0, 1, 6, 7)):
        alone = batch(1, temperature=temperature[row], seed=row)
        own = TokenMasks(np.array([0]), masks.words_GW[place : place + 1])
        assert sample(logits[row : row + 1], _with(alone, own)).token_ids_S[0] == mixed[row]
        assert is_in[place, int(mixed[row])]


def test_a_mask_without_tokens_fails_its_row_alone() -> None:
    words = np.zeros((1, 2), dtype=np.int32)
    masked = _with(batch(3, temperature=0.0), TokenMasks(np.array([1]), words))
    tokens = sample(random_logits(3), masked).token_ids_S.tolist()
    assert tokens[1] == NO_TOKEN
    assert min(tokens[0], tokens[2]) >= 0


def _with(plain: Any, masks: TokenMasks) -> Any:
    return replace(plain, masks=masks)
