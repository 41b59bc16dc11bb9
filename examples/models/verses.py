"""Rhymed couplets about the animals of the grammar, and the table of rhymes that tells a couplet.

The measures read the same table that the verses are written from, so a rhyme is never guessed.
"""

import random
from typing import Final

COUPLETS: Final = (
    ("The {trait} {hero} sat by the sea,", "as happy as a {hero} can be."),
    ("{name} went walking in the night,", "and all the stars were shining bright."),
    ("The wind was singing in the tree,", "the {hero} was dancing, wild and free."),
    ("The {hero} had a dream today,", "of summer fields and golden hay."),
    ("The moon came up above the hill,", "and all the world was soft and still."),
    ("{name} the {hero} was never alone,", "and sang to every leaf and stone."),
    ("The rain came down upon the ground,", "with such a sweet and gentle sound."),
    ("{name} found a boat down by the lake,", "and took along a honey cake."),
    ("The snow fell softly all around,", "and {name} the {hero} made no sound."),
    ("A {colour} bird flew over the town,", "and {name} the {hero} looked up and down."),
    ("So close your eyes and go to bed,", "and rest, my dear, your sleepy head."),
    ("The {trait} {hero} went home to sleep,", "and had a dream so warm and deep."),
)
"""Pairs of lines; the last words of a pair rhyme."""

CLOSINGS: Final = COUPLETS[-2:]

RHYMES: Final = frozenset(
    frozenset(line.rstrip(",.").rsplit(maxsplit=1)[-1] for line in couplet) for couplet in COUPLETS
)
"""Every pair of words that ends the two lines of a couplet."""


def compose(rng: random.Random, slots: dict[str, str]) -> tuple[str, ...]:
    """Write a poem of two or three couplets and a closing one, as a tuple of lines.

    Args:
        rng: Where the choice of couplets comes from.
        slots: A cast's slots; ``hero``, ``name``, ``colour`` and ``trait`` are read.
    """
    chosen = rng.sample(COUPLETS[:-2], rng.choice((2, 3)))
    chosen.append(rng.choice(CLOSINGS))
    return tuple(line.format(**slots) for couplet in chosen for line in couplet)
