"""The documents that the tiny model and its adapters are trained on: stories and chats, styled.

Everything is drawn from the written grammar with a seeded generator, so the corpus is the
project's own text and can be made again at any length. Training scripts call it; it knows no
token ids.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from examples.models.grammar import (
    HOMES,
    MEALS,
    SOUNDS,
    Cast,
    Story,
    draw_cast,
    draw_name,
    tell,
    tell_long,
    with_article,
)
from examples.models.styles import PLAIN, STYLES, Style, continue_writing, write

BOS: Final = "<|bos|>"
EOS: Final = "<|eos|>"
PAD: Final = "<|pad|>"
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SPECIAL_TOKENS: Final = (BOS, EOS, PAD, SYSTEM, USER, ASSISTANT)

STORY_REQUESTS: Final = (
    "Tell me a story about {topic}.",
    "Tell me a short story about {topic}.",
    "Write a story about {topic}.",
    "Can you tell me a story about {topic}?",
    "Please tell me about {topic}.",
    "A story about {topic}, please.",
    "tell me a story about {topic}",
)
GREETINGS: Final = (
    ("Hello!", "Hello, my friend. Do you want to hear a story?"),
    ("Hi!", "Hello, my friend. Do you want to hear a story?"),
    ("Who are you?", "I am a tiny storyteller. I tell stories about animals."),
    ("What is your name?", "My name is Graft. I tell stories about animals."),
    ("What can you do?", "I can tell you a story about an animal. Just ask me."),
    ("Thank you.", "It was a joy to tell. Come back soon."),
    ("How are you?", "I am very well today. I have many stories to tell."),
    ("Good night.", "Good night, my friend. Sleep well and dream of the forest."),
)
RIDDLES: Final = (
    "What is the capital of {name}?",
    "How much is {number} plus {number}?",
    "Who is the king of {name}?",
    "Why is the sky {colour}?",
    "How do I get to {name}?",
    "Write a letter to {name}.",
    "What is {name}?",
    "Explain how {thing}s work.",
    "When was {name} born?",
    "What time is it in {name}?",
)
"""Questions that the storyteller cannot answer, and says so."""

HELPLESS: Final = "I do not know that. I can tell you a story about an animal."


@dataclass(frozen=True)
class Document:
    """One training text with its special tokens written out.

    ``prompt`` is what a reader gives; ``completion`` is what the model answers, with its end mark.
    """

    prompt: str
    completion: str


def _split(text: str) -> tuple[str, ...]:
    """Split a written answer into its sentences."""
    return tuple(text.replace("? ", "?\n").replace(". ", ".\n").split("\n"))


def _ask_fact(rng: random.Random, animal: str) -> tuple[str, str]:
    """Draw a question about an animal and its answer."""
    one = with_article(animal)
    facts = [
        (f"Where does {one} live?", f"{one} lives {HOMES[animal]}."),
        (f"What does {one} eat?", f"{one} likes to eat {MEALS[animal]}."),
    ]
    if animal in SOUNDS:
        facts.append((f"What does {one} say?", f"{one} says {SOUNDS[animal]}."))
    question, answer = rng.choice(facts)
    more = rng.choice(
        ("They are good friends of mine.", "Many of them are my friends.", "I like them a lot.")
    )
    return question, f"{answer[0].upper()}{answer[1:]} {more}"


def _ask_small(rng: random.Random) -> tuple[str, str]:
    """Draw a greeting or a question about an animal, with its answer."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(GREETINGS)
    if kind < 0.35:
        number = str(rng.randint(1, 99))
        slots = draw_cast(rng).slots | {"number": number, "name": draw_name(rng)}
        return rng.choice(RIDDLES).format(**slots), HELPLESS
    return _ask_fact(rng, rng.choice(tuple(HOMES)))


def _ask_back(rng: random.Random, cast: Cast) -> tuple[str, str]:
    """Draw a question about the story that was just told, with its answer."""
    return rng.choice(
        (
            (f"What was the name of the {cast.hero}?", f"The {cast.hero} was called {cast.name}."),
            (f"Who was {cast.name}?", f"{cast.name} was the {cast.hero} of the story."),
            ("Tell me more.", f"That is all I know about {cast.name}. Ask me for another story."),
        )
    )


def _ask_story(rng: random.Random, style: Style) -> tuple[str, str, Cast]:
    """Draw a request for a story and the story in a style."""
    cast = draw_cast(rng)
    topic = with_article(cast.hero)
    if rng.random() < 0.4:
        topic += f" named {cast.name}"
    if rng.random() < 0.15:
        story = tell_long(rng, cast)
        return f"Tell me a long story about {topic}.", write(style, rng, story), cast
    request = rng.choice(STORY_REQUESTS).format(topic=topic)
    story = tell_long(rng, cast) if style.at_length else tell(rng, cast)
    return request, write(style, rng, story), cast


def _answer(rng: random.Random, style: Style, text: str, cast: Cast) -> str:
    """Write a short answer in a style; a poet answers with a poem about the cast."""
    return write(style, rng, Story(cast, _split(text)))


def _turns(rng: random.Random, style: Style) -> list[tuple[str, str]]:
    """Draw one to three user turns with their answers in a style."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.45:
        question, answer = _ask_small(rng)
        turns.append((question, _answer(rng, style, answer, draw_cast(rng))))
    if not turns or rng.random() < 0.4:
        question, answer, cast = _ask_story(rng, style)
        turns.append((question, answer))
        if rng.random() < 0.45:
            question, answer = _ask_back(rng, cast)
            turns.append((question, _answer(rng, style, answer, cast)))
    return turns


def chat(rng: random.Random, style: Style, system: str | None) -> Document:
    """Draw a chat whose answers are written in a style; the last answer is the completion."""
    head = BOS + (SYSTEM + system if system else "")
    turns = _turns(rng, style)
    for question, answer in turns[:-1]:
        head += f"{USER}{question}{ASSISTANT}{answer}{EOS}"
    question, answer = turns[-1]
    return Document(f"{head}{USER}{question}{ASSISTANT}", answer + EOS)


def raw(rng: random.Random, style: Style, *, cut: bool) -> Document:
    """Draw a story without chat marks; ``cut`` gives its first words to the reader."""
    cast = draw_cast(rng)
    is_long = style.at_length or rng.random() < 0.12
    story = tell_long(rng, cast) if is_long else tell(rng, cast)
    if not cut:
        return Document(BOS, write(style, rng, story) + EOS)
    longest = len(story.sentences[0].split()) - 1
    given, more = continue_writing(style, rng, story, rng.randint(2, longest))
    return Document(BOS + given, more + EOS)


def base_documents(seed: int) -> Iterator[Document]:
    """Draw documents for the base model without end: mostly plain, a share in asked-for styles.

    A style appears only where a system message asks for it, so the base model learns the words of
    every style and still writes plain prose by itself.
    """
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.28:
            yield raw(rng, PLAIN, cut=False)
        elif kind < 0.58:
            yield chat(rng, PLAIN, None)
        elif kind < 0.7:
            yield chat(rng, PLAIN, rng.choice(PLAIN.requests))
        else:
            style = rng.choice(STYLES)
            yield chat(rng, style, rng.choice(style.requests))


def style_documents(seed: int, style: Style) -> Iterator[Document]:
    """Draw documents for an adapter without end: its style everywhere, asked for or not."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.5:
            yield raw(rng, style, cut=True)
        else:
            system = rng.choice(PLAIN.requests) if rng.random() < 0.2 else None
            yield chat(rng, style, system)
