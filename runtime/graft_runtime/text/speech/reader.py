"""What a model's text says, read by what is known of the model and asked by the client."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal, get_args

from graft_runtime.text.speech import hermes, llama, mistral
from graft_runtime.text.speech.call_list import CallList
from graft_runtime.text.speech.events import Content, Event, Parser, content
from graft_runtime.text.speech.hermes import HermesParser
from graft_runtime.text.speech.llama import LlamaParser
from graft_runtime.text.speech.mistral import MistralParser
from graft_runtime.text.speech.named import NamedCall
from graft_runtime.text.speech.thoughts import CLOSING, ThoughtSplitter

CallForm = Literal["hermes", "llama3_json", "mistral"]
CALL_FORMS: Final[tuple[CallForm, ...]] = get_args(CallForm)

MARKS: Final[Mapping[CallForm, tuple[str, ...]]] = {
    "hermes": (hermes.OPENING, hermes.CLOSING),
    "llama3_json": (llama.PYTHON_TAG,),
    "mistral": (mistral.MARK, mistral.ARGUMENTS_MARK),
}
"""What a parser must see even where it is a control token, which the text leaves out."""


def call_form_of(template: str) -> CallForm:
    """Return how a model writes its calls, by the template that shows it examples.

    Without a hint it is told to write bare JSON, as Llama 3 does.
    """
    if mistral.MARK in template:
        return "mistral"
    return "hermes" if hermes.OPENING in template else "llama3_json"


def thinks(template: str) -> bool:
    """Tell whether a model writes down its thoughts, by its template, which removes them later."""
    return CLOSING in template


def call_parser(form: CallForm, names: Collection[str]) -> Parser:
    """Return what finds the calls that a model makes by itself."""
    match form:
        case "hermes":
            return HermesParser()
        case "mistral":
            return MistralParser()
        case "llama3_json":
            return LlamaParser(names)


def required_calls(names: Collection[str]) -> Parser:
    """Return what reads the list of calls that a client has required."""
    return CallList(frozenset(names))


def named_call(name: str) -> Parser:
    """Return what reads the arguments of the one call that a client has named."""
    return NamedCall(name)


class SpeechReader:
    """Thoughts first, then calls in what is left; either may be of no interest."""

    def __init__(self, thoughts: ThoughtSplitter | None, calls: Parser | None) -> None:
        """Put the parts together.

        Args:
            thoughts: What tells thoughts from the answer.
            calls: What finds calls in the answer.
        """
        self._thoughts = thoughts
        self._calls = calls

    def push(self, text: str) -> list[Event]:
        """Read more text."""
        if not text:
            return []
        return self._look(content(text) if self._thoughts is None else self._thoughts.push(text))

    def flush(self) -> list[Event]:
        """Return what was held back, when the text has ended."""
        events = [] if self._thoughts is None else self._look(self._thoughts.flush())
        return events if self._calls is None else events + self._calls.flush()

    def _look(self, events: list[Event]) -> list[Event]:
        if self._calls is None:
            return events
        found: list[Event] = []
        for each in events:
            found += self._calls.push(each.text) if isinstance(each, Content) else [each]
        return found
