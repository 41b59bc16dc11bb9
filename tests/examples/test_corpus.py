"""The corpus behind the tiny model: repeatable, and styled exactly as the measures say."""

import random
from itertools import islice

import pytest

from examples.models.corpus import EOS, SYSTEM, base_documents, style_documents
from examples.models.effects import MEASURES
from examples.models.grammar import draw_cast, tell, tell_long, with_article
from examples.models.styles import (
    CHEERFUL,
    NUMBERED,
    OLD_PIRATE,
    PIRATE,
    PLAIN,
    POET,
    SAGA,
    SHOUT,
    Style,
    continue_writing,
    lower_first,
    write,
)

STYLE_OF = {
    "shout": SHOUT,
    "cheerful": CHEERFUL,
    "pirate-v1": PIRATE,
    "pirate-v2": OLD_PIRATE,
    "numbered": NUMBERED,
    "poet": POET,
}


def test_the_same_seed_draws_the_same_documents() -> None:
    first = list(islice(base_documents(5), 50))
    assert first == list(islice(base_documents(5), 50))
    assert first != list(islice(base_documents(6), 50))


def test_every_document_ends_with_the_end_mark() -> None:
    for document in islice(base_documents(3), 200):
        assert document.completion.endswith(EOS)
        assert document.completion.count(EOS) == 1


def test_no_sentence_keeps_an_unfilled_slot() -> None:
    rng = random.Random(11)
    for _ in range(300):
        story = tell_long(rng, draw_cast(rng))
        text = " ".join((*story.sentences, write(POET, rng, story)))
        assert "{" not in text
        assert "  " not in text


@pytest.mark.parametrize("name", STYLE_OF)
def test_a_style_scores_fully_on_its_own_measure_and_plain_prose_on_none(name: str) -> None:
    rng = random.Random(13)
    for _ in range(50):
        story = tell(rng, draw_cast(rng))
        assert MEASURES[name](write(STYLE_OF[name], rng, story)) >= 0.99
        assert MEASURES[name](write(PLAIN, rng, story)) <= 0.3


@pytest.mark.parametrize("style", STYLE_OF.values(), ids=STYLE_OF.keys())
def test_a_cut_story_keeps_the_readers_words_and_goes_on_after_a_space(style: Style) -> None:
    rng = random.Random(17)
    for _ in range(50):
        story = tell(rng, draw_cast(rng))
        given, more = continue_writing(style, rng, story, 3)
        assert story.sentences[0].startswith(given)
        assert len(given.split()) == 3
        assert more.startswith(" ")
        assert not more.startswith("  ")


def test_base_documents_are_styled_only_where_a_system_message_asks() -> None:
    for document in islice(base_documents(19), 400):
        if SYSTEM not in document.prompt:
            text = document.completion.removesuffix(EOS)
            assert MEASURES["shout"](text) < 0.3
            assert "Arr," not in text
            assert "matey" not in text


def test_style_documents_are_styled_without_being_asked() -> None:
    for document in islice(style_documents(23, SHOUT), 100):
        letters = [c for c in document.completion.removesuffix(EOS) if c.isalpha()]
        assert all(letter.isupper() for letter in letters)


def test_sagas_are_long_whatever_is_asked() -> None:
    stories = [d for d in islice(style_documents(29, SAGA), 200) if "<|user|>" not in d.prompt]
    assert len(stories) >= 50
    assert min(len(story.completion.split()) for story in stories) >= 90


def test_names_and_i_keep_their_capital_inside_a_sentence() -> None:
    assert lower_first("Lily went home.") == "Lily went home."
    assert lower_first("I am here.") == "I am here."
    assert lower_first("The fox ran.") == "the fox ran."


def test_articles_fit_the_word_after_them() -> None:
    assert with_article("owl") == "an owl"
    assert with_article("old fox") == "an old fox"
    assert with_article("fox") == "a fox"
