"""Outputs that follow a grammar, drawn without a model; and the toy tokenizer for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from graft_runtime.sampling.constraint import Constraint, ConstraintKind, grammar_text
from graft_runtime.sampling.grammar import GrammarState, Vocabulary
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.toy_tokenizer import EOS, write_toy_tokenizer

CLOSERS = frozenset('"]}')
"""What a drawn output is drawn toward, or strings and lists would go on for ever."""


@cache
def toy() -> tuple[Vocabulary, Tokenizer]:
    """Return the toy tokenizer as grammars and as text see it."""
    with TemporaryDirectory() as folder:
        serialized = (write_toy_tokenizer(Path(folder)) / "tokenizer.json").read_text()
    tokenizer = Tokenizer(serialized)
    return Vocabulary(serialized, eos_ids=[eos_id()]), tokenizer


@cache
def eos_id() -> int:
    with TemporaryDirectory() as folder:
        tokenizer = Tokenizer.load(write_toy_tokenizer(Path(folder)))
    return tokenizer.encode_trusted(EOS)[0]


def compiled(kind: ConstraintKind, value: str) -> GrammarState:
    vocabulary, tokenizer = toy()
    text = grammar_text(Constraint(kind=kind, value=value), tokenizer.special_texts)
    return vocabulary.compile(text).start()


def allowed(state: GrammarState) -> list[int]:
    """Return the tokens that may come next."""
    words = state.vocabulary.fill([state])
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return [int(token) for token in bits.nonzero()[0]]


def accepts(kind: ConstraintKind, value: str, text: str) -> bool:
    """Tell whether a text is a whole output of a grammar."""
    state = compiled(kind, value)
    for token in toy()[1].encode(text, add_special_tokens=False):
        if token not in allowed(state):
            return False
        state.advance(token)
    return state.may_end


def draw(state: GrammarState, chance: random.Random, max_tokens: int = 400) -> str | None:
    """Return a random output as text, or None when it was not whole in time."""
    tokenizer = toy()[1]
    tokens: list[int] = []
    while not state.is_complete:
        if len(tokens) == max_tokens:
            return None
        options = allowed(state)
        assert options, state.error
        token = _choose(options, chance, len(tokens), _closers())
        if token == eos_id():
            break
        tokens.append(token)
        state.advance(token)
    return tokenizer.decode(tokens, skip_special_tokens=False)


def _choose(
    options: list[int], chance: random.Random, so_far: int, is_closer: Callable[[int], bool]
) -> int:
    """Choose any token; the longer the output the rather one that brings it to its end."""
    closing = [token for token in options if token == eos_id() or is_closer(token)]
    if closing and chance.random() < min(0.9, 0.2 + so_far / 50):
        return chance.choice(closing)
    return chance.choice(options)


@cache
def _closers() -> Callable[[int], bool]:
    tokenizer = toy()[1]
    texts = {
        id: tokenizer.decode([id], skip_special_tokens=False) for id in range(tokenizer.vocab_size)
    }
    closers = frozenset(id for id, text in texts.items() if text in CLOSERS)
    return closers.__contains__
