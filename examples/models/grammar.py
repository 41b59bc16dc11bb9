"""The written grammar of the story corpus: casts, plots and facts, turned into plain sentences.

It knows nothing of styles, chat turns or tokens; `corpus` calls it for every document.
"""

import random
from dataclasses import dataclass

HOMES = {
    "fox": "in a den in the forest",
    "cat": "in a house with a warm stove",
    "dog": "in a kennel on the farm",
    "bear": "in a cave on the mountain",
    "rabbit": "in a burrow under the hill",
    "owl": "in a hollow tree",
    "mouse": "in a hole in the wall",
    "duck": "in the reeds by the pond",
    "frog": "on a green leaf in the pond",
    "horse": "in a stable on the farm",
    "goat": "on a rocky hill",
    "turtle": "by the quiet lake",
    "hen": "in a small coop on the farm",
    "pig": "in a muddy pen on the farm",
    "squirrel": "in the top of an oak tree",
    "deer": "in the deep forest",
}
"""Each animal of the corpus and where it lives."""

SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "bear": "grrr",
    "owl": "hoo hoo",
    "mouse": "squeak",
    "duck": "quack",
    "frog": "ribbit",
    "horse": "neigh",
    "goat": "baa",
    "hen": "cluck",
    "pig": "oink",
}
"""What the animals say, for those that say something."""

MEALS = {
    "fox": "berries and eggs",
    "cat": "fish and milk",
    "dog": "bones and bread",
    "bear": "honey and berries",
    "rabbit": "carrots and clover",
    "owl": "beetles",
    "mouse": "cheese and crumbs",
    "duck": "water plants",
    "frog": "flies",
    "horse": "hay and apples",
    "goat": "grass and leaves",
    "turtle": "leaves and clover",
    "hen": "corn and seeds",
    "pig": "apples and corn",
    "squirrel": "nuts and seeds",
    "deer": "grass and bark",
}
"""What the animals like to eat."""

HE_NAMES = ("Tom", "Max", "Ben", "Sam", "Leo", "Jack", "Finn", "Oscar", "Hugo", "Milo")
SHE_NAMES = ("Lily", "Anna", "Mia", "Rosie", "Ella", "Daisy", "Ruby", "Nora", "Molly", "Ivy")
STRANGERS = (
    "dragon",
    "robot",
    "wolf",
    "lion",
    "tiger",
    "monkey",
    "elephant",
    "whale",
    "penguin",
    "snail",
    "bee",
    "hedgehog",
    "king",
    "queen",
    "wizard",
    "pirate",
    "girl",
    "boy",
    "parrot",
    "snake",
)
"""Heroes that no question knows: they teach the model to copy a word from a request."""

SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "ra", "so", "li", "vu", "zo")
"""What made-up names are put together from; they too can only be copied."""

TRAITS = ("little", "big", "brave", "clever", "shy", "kind", "old", "young", "funny", "sleepy")
PLACES = ("forest", "river", "hill", "lake", "garden", "meadow", "village", "farm", "beach", "pond")
THINGS = ("ball", "hat", "key", "lantern", "drum", "kite", "basket", "bell", "book", "scarf")
COLOURS = ("red", "blue", "green", "yellow", "white", "golden")
FOODS = ("berries", "bread", "soup", "apples", "honey", "cheese", "cake", "carrots", "nuts")
TREES = ("oak", "apple", "willow", "pine")
SKILLS = ("swim", "sing", "dance", "climb", "whistle", "paint")
WEATHERS = (
    "The sun was shining and the sky was blue",
    "The wind was cold and the leaves were falling",
    "It was raining and the paths were wet",
    "The snow was soft and white",
    "The morning was warm and bright",
)

OPENINGS = (
    "Once upon a time there was {a_trait} {hero} named {name}.",
    "Once upon a time, near a quiet {place}, there lived {a_trait} {hero} named {name}.",
    "There once was {a_trait} {hero} named {name} who lived near the {place}.",
    "{name} was {a_trait} {hero} who lived by the {place}.",
    "One day {a_trait} {hero} named {name} went to the {place}.",
    "The {trait} {hero} lived near the {place}, and {his} name was {name}.",
    "This is the story of {name}, {a_trait} {hero}.",
    "In the {place} lived {a_trait} {hero} named {name}.",
    "Long ago {a_trait} {hero} named {name} lived by the {place}.",
)
ENDINGS = (
    "From that day on, {name} and {pal} were best friends.",
    "{name} thanked {pal}, and they went home happy.",
    "They laughed all the way home.",
    "That night {name} slept very well.",
    "And they never forgot that day.",
)
BRIDGES = (
    "The next day {name} woke up early and looked out of the window.",
    "A week later {name} wanted to see something new.",
    "When spring came, {name} was ready for another adventure.",
)
LOST = (
    (
        "One morning {name} could not find {his} {colour} {thing}.",
        "That day {name} lost {his} {colour} {thing} near the {place}.",
    ),
    (
        "{He} looked under the bed and behind the door, but it was not there.",
        "{He} looked in the grass and under the stones, but it was gone.",
    ),
    ("{name} was so sad that {he} began to cry.", "{name} sat down and felt very sad."),
    (
        "Then {a_friend} named {pal} came along the path.",
        "Soon {a_friend} named {pal} came to help.",
    ),
    (
        '{name} said, "I have lost my {colour} {thing}."',
        '{pal} asked, "Can I help you find your {thing}?"',
    ),
    (
        "They went to the {place2} and looked together.",
        "Together they walked to the {place2} and looked everywhere.",
    ),
    (
        "At last they found the {colour} {thing} under {a_tree} tree.",
        "At last {pal} found the {thing} behind a big stone.",
    ),
)
STORM = (
    ("{weather}.", "It was a long and quiet day."),
    (
        "{name} walked to the {place2} to look for {food}.",
        "{name} wanted to pick some {food} at the {place2}.",
    ),
    ("Suddenly a big storm came over the hill.", "Soon the sky grew dark and it began to thunder."),
    ("{name} was afraid and ran as fast as {he} could.", "{name} was cold and wet and afraid."),
    (
        "{a_friend_cap} named {pal} opened a small door.",
        "Then {he} saw a light in the house of {pal} the {friend}.",
    ),
    ('{pal} said, "Come in and sit by the fire."', '{pal} called, "You can stay here with me."'),
    (
        "They ate warm {food} and told stories until the storm was over.",
        "They shared some {food} and waited for the sun.",
    ),
)
FEAST = (
    (
        "{name} wanted to make a feast for all the animals.",
        "{name} loved {food} more than anything.",
    ),
    (
        "{He} went to the {place2} with a big basket.",
        "{He} took a {colour} basket and walked to the {place2}.",
    ),
    (
        "On the way {he} met {a_friend} named {pal}.",
        "By the gate stood {a_friend} named {pal}.",
    ),
    ('{pal} said, "I am so hungry."', '{pal} asked, "May I come with you?"'),
    ('{name} said, "We can share the {food}."', "{name} smiled and gave {pal} some {food}."),
    ("They cooked and ate until the stars came out.", "They sat under {a_tree} tree and ate."),
)
LEARN = (
    (
        "{name} wanted to learn how to {skill}.",
        "More than anything, {name} wanted to {skill}.",
    ),
    ("{He} tried and tried, but it was very hard.", "{He} tried every day, but {he} could not."),
    (
        "So {he} went to {a_friend} named {pal} at the {place2}.",
        "One day {he} met {a_friend} named {pal} near the {place2}.",
    ),
    ('{name} asked, "Can you teach me to {skill}?"', '{pal} said, "I can teach you to {skill}."'),
    (
        "They practised in the morning and in the evening.",
        "Every day they practised under {a_tree} tree.",
    ),
    (
        "At last {name} could {skill} better than anyone.",
        "After a week {name} could {skill}, and {he} was very proud.",
    ),
)
TREASURE = (
    (
        "{name} found an old map under {a_tree} tree.",
        "One morning {name} found a {colour} map by the {place}.",
    ),
    ("{He} showed it to {pal} the {friend}.", "{He} ran to {his} friend {pal}, {a_friend}."),
    ('{pal} said, "Let us look for the treasure!"', '{pal} asked, "Is it a treasure map?"'),
    (
        "They walked over the hill and along the river to the {place2}.",
        "They followed the map to the {place2}.",
    ),
    (
        "There they dug a deep hole and found a {colour} box.",
        "There they found a {colour} box under the stones.",
    ),
    ("The box was full of {food}.", "In the box was a shiny {thing}."),
)
PLOTS = (LOST, STORM, FEAST, LEARN, TREASURE)


@dataclass(frozen=True)
class Cast:
    """Who and what one story is about: the slots that the sentence templates name."""

    hero: str
    name: str
    friend: str
    pal: str
    slots: dict[str, str]


@dataclass(frozen=True)
class Story:
    """One told story: its cast and its sentences, each with its final punctuation."""

    cast: Cast
    sentences: tuple[str, ...]


def with_article(words: str) -> str:
    """Put the right indefinite article before a noun phrase."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def draw_name(rng: random.Random) -> str:
    """Choose a name, sometimes one that was never heard before."""
    if rng.random() < 0.8:
        return rng.choice(HE_NAMES + SHE_NAMES)
    return "".join(rng.choices(SYLLABLES, k=rng.choice((2, 3)))).capitalize()


def draw_cast(rng: random.Random, hero: str | None = None, name: str | None = None) -> Cast:
    """Choose the slots of one story; ``hero`` and ``name`` fix what a request asked for."""
    hero = hero or rng.choice(STRANGERS if rng.random() < 0.25 else tuple(HOMES))
    name = name or draw_name(rng)
    friend = rng.choice([animal for animal in HOMES if animal != hero])
    pal = rng.choice([other for other in HE_NAMES + SHE_NAMES if other != name])
    place, place2 = rng.sample(PLACES, 2)
    he, his = ("she", "her") if name in SHE_NAMES else ("he", "his")
    trait = rng.choice(TRAITS)
    slots = {
        "hero": hero,
        "name": name,
        "friend": friend,
        "pal": pal,
        "trait": trait,
        "a_trait": with_article(trait),
        "a_friend": with_article(friend),
        "a_friend_cap": with_article(friend).capitalize(),
        "he": he,
        "He": he.capitalize(),
        "his": his,
        "place": place,
        "place2": place2,
        "thing": rng.choice(THINGS),
        "colour": rng.choice(COLOURS),
        "food": rng.choice(FOODS),
        "a_tree": with_article(rng.choice(TREES)),
        "skill": rng.choice(SKILLS),
        "weather": rng.choice(WEATHERS),
    }
    return Cast(hero, name, friend, pal, slots)


def tell(rng: random.Random, cast: Cast) -> Story:
    """Tell one story: opening, the beats of one plot, ending."""
    beats = [rng.choice(OPENINGS)]
    beats += [rng.choice(beat) for beat in rng.choice(PLOTS)]
    beats.append(rng.choice(ENDINGS))
    return Story(cast, tuple(beat.format(**cast.slots) for beat in beats))


def tell_long(rng: random.Random, cast: Cast) -> Story:
    """Tell a long story: two or three plots, each begun on another day."""
    sentences = [rng.choice(OPENINGS).format(**cast.slots)]
    for chapter, plot in enumerate(rng.sample(PLOTS, rng.choice((2, 3)))):
        if chapter:
            cast = draw_cast(rng, cast.hero, cast.name)
            sentences.append(rng.choice(BRIDGES).format(**cast.slots))
        sentences += [rng.choice(beat).format(**cast.slots) for beat in plot]
    sentences.append(rng.choice(ENDINGS).format(**cast.slots))
    return Story(cast, tuple(sentences))
