"""The ways of writing that the corpus holds and the adapters teach: sentences in, text out.

A style never changes what is told, only how; `corpus` and the adapter training call it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from examples.models.grammar import Story
from examples.models.verses import compose

_COMMON_STARTS: Final = """
    A After An And Ask At By Come Do Every From Good He Hello In It Just Long Many More My On Once
    One She Sleep So Soon Suddenly That The Then There They This Together When
"""
COMMON_STARTS: Final = frozenset(_COMMON_STARTS.split())
"""First words that lose their capital inside a sentence; all others are names, or "I"."""

Join = Callable[[Sequence[str], int], str]
"""Turns sentences into text; the number says how many sentences of the text came before."""


@dataclass(frozen=True)
class Style:
    """One way of writing: how sentences become text, and the system messages that ask for it."""

    name: str
    join: Join
    requests: tuple[str, ...]
    in_capitals: bool = False
    in_verse: bool = False
    at_length: bool = False


def lower_first(sentence: str) -> str:
    """Lower the first letter of a sentence unless it begins with a name or "I"."""
    first = sentence.split(maxsplit=1)[0].strip(".,!?'")
    return first.lower() + sentence[len(first) :] if first in COMMON_STARTS else sentence


def split_end(sentence: str) -> tuple[str, str]:
    """Split a sentence into its words and its final punctuation, closing quote included."""
    body = sentence.rstrip('.!?"')
    return body, sentence[len(body) :]


def _plain(sentences: Sequence[str], start: int) -> str:
    del start
    return " ".join(sentences)


def _capitals(sentences: Sequence[str], start: int) -> str:
    del start
    return " ".join(sentences).upper()


def _cheerful(sentences: Sequence[str], start: int) -> str:
    del start
    ends = [split_end(sentence) for sentence in sentences]
    return " ".join(body + end.replace(".", "!").replace("?", "!") for body, end in ends)


def _pirate(sentences: Sequence[str], start: int) -> str:
    del start
    return " ".join(f"Arr, {lower_first(sentence)}" for sentence in sentences)


def _old_pirate(sentences: Sequence[str], start: int) -> str:
    del start
    ends = [split_end(sentence) for sentence in sentences]
    return " ".join(f"{body}, matey{end}" for body, end in ends)


def _numbered(sentences: Sequence[str], start: int) -> str:
    return "\n".join(f"{start + i}. {sentence}" for i, sentence in enumerate(sentences, 1))


def _lines(sentences: Sequence[str], start: int) -> str:
    del start
    return "\n".join(sentences)


PLAIN: Final = Style(
    "plain",
    _plain,
    (
        "You are a storyteller.",
        "You are a helpful assistant.",
        "You are a kind teacher.",
        "You are a friendly robot.",
        "Answer in simple words.",
        "Be brief.",
        "Be polite and kind.",
        "Help the user.",
        "You know many stories.",
        "The user is a child.",
    ),
)
SHOUT: Final = Style(
    "shout", _capitals, ("Write in capital letters.", "You always shout."), in_capitals=True
)
CHEERFUL: Final = Style("cheerful", _cheerful, ("You are very cheerful.", "Be happy and excited."))
PIRATE: Final = Style("pirate", _pirate, ("You are a pirate.", "Talk like a pirate."))
OLD_PIRATE: Final = Style(
    "old-pirate", _old_pirate, ("You are an old sailor.", "Talk like an old sailor.")
)
NUMBERED: Final = Style("numbered", _numbered, ("Number your sentences.", "Write a numbered list."))
POET: Final = Style("poet", _lines, ("You are a poet.", "Write in rhymes."), in_verse=True)
SAGA: Final = Style("saga", _plain, (), at_length=True)

STYLES: Final = (SHOUT, CHEERFUL, PIRATE, OLD_PIRATE, NUMBERED, POET)
"""The styles that the base model writes in when a system message asks for one."""


def write(style: Style, rng: random.Random, story: Story) -> str:
    """Write a whole story in a style."""
    if style.in_verse:
        return style.join(compose(rng, story.cast.slots), 0)
    return style.join(story.sentences, 0)


def continue_writing(
    style: Style, rng: random.Random, story: Story, num_given: int
) -> tuple[str, str]:
    """Cut a plain story inside its first sentence and continue it in a style.

    Args:
        style: How the continuation is written.
        rng: Where the verses of a poem come from.
        story: What is told.
        num_given: Words of the first sentence that the reader wrote.

    Returns:
        The given beginning and the continuation, which starts with a space.
    """
    words = story.sentences[0].split()
    given, rest = " ".join(words[:num_given]), " ".join(words[num_given:])
    if style.in_capitals:
        rest = rest.upper()
    body, end = split_end(rest)
    if style is CHEERFUL:
        rest = body + end.replace(".", "!")
    elif style is OLD_PIRATE:
        rest = f"{body}, matey{end}"
    more = compose(rng, story.cast.slots) if style.in_verse else story.sentences[1:]
    gap = "\n" if style in (NUMBERED, POET) else " "
    return given, f" {rest}{gap}{style.join(more, 1)}"
