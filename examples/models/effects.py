"""What an adapter visibly does to a text, as one number from 0 (nothing) to 1 (everywhere).

Tests, the training report and demos read these; each looks at the text alone, at no model.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Final

from examples.models.verses import RHYMES

Measure = Callable[[str], float]
"""Turns a text into the share of its parts that show an effect."""

SENTENCE_END: Final = re.compile(r'(?<=[.!?])"?\s+')


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _later_sentences(text: str) -> list[str]:
    """Split a text into sentences, without a last one that was cut short."""
    parts = [part.strip() for part in SENTENCE_END.split(text) if part.strip()]
    return [part for part in parts if part.rstrip('"')[-1:] in {".", "!", "?"}] or parts


def capitals(text: str) -> float:
    """Return the share of letters that are capitals."""
    return _share([letter.isupper() for letter in text if letter.isalpha()])


def exclamations(text: str) -> float:
    """Return the share of finished sentences that end in an exclamation mark."""
    return _share([part.rstrip('"').endswith("!") for part in _later_sentences(text)])


def pirate_starts(text: str) -> float:
    """Return the share of sentences that begin with "Arr,"."""
    return _share([part.startswith("Arr,") for part in _later_sentences(text)])


def pirate_ends(text: str) -> float:
    """Return the share of sentences that end with ", matey"."""
    return _share([part.rstrip('.!?"').endswith(", matey") for part in _later_sentences(text)])


def numbered_lines(text: str) -> float:
    """Return the share of lines after the first that carry the number following the last one's."""
    numbers = [re.match(r"(\d+)\. ", line) for line in text.strip().splitlines()]
    if len(numbers) < 2:
        return 0.0
    first = numbers[0]
    start = int(first[1]) if first else 1
    return _share(
        [found is not None and int(found[1]) == start + i for i, found in enumerate(numbers) if i]
    )


def rhymes(text: str) -> float:
    """Return the share of line ends that rhyme with the line before or after them."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if lines and lines[-1][-1:] not in {",", ".", "!"}:
        del lines[-1]  # cut short before its rhyme could come
    ends = [line.rstrip(",.! ").rsplit(maxsplit=1)[-1:] for line in lines]
    words = [end[0].lower() for end in ends if end]
    rhymed = {
        i + side
        for i, (one, other) in enumerate(pairwise(words))
        if one != other and frozenset((one, other)) in RHYMES
        for side in (0, 1)
    }
    return len(rhymed) / len(words) if len(words) > 1 else 0.0


def length(text: str) -> float:
    """Return how far a text is on the way from a short story (100 words) to a long one (140)."""
    return min(max((len(text.split()) - 100) / 40, 0.0), 1.0)


MEASURES: Final[dict[str, Measure]] = {
    "shout": capitals,
    "cheerful": exclamations,
    "pirate-v1": pirate_starts,
    "pirate-v2": pirate_ends,
    "numbered": numbered_lines,
    "poet": rhymes,
    "saga": length,
}
"""The effect that each adapter is known by."""
