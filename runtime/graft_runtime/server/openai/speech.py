"""What one choice says: its text read for thoughts and calls, by what was asked and is known.

The surfaces feed it pieces of text and put what it says into their own forms; the reading itself is
`graft_runtime.text.speech`.
"""

from __future__ import annotations

import secrets
import string
import uuid
from dataclasses import dataclass
from typing import Final

from graft_runtime.server.openai.tool_fields import Tools
from graft_runtime.text.conversation import TemplateTraits
from graft_runtime.text.speech.events import (
    CallArguments,
    CallBegun,
    Content,
    Event,
    Parser,
    Thought,
)
from graft_runtime.text.speech.reader import (
    MARKS,
    CallForm,
    SpeechReader,
    call_parser,
    named_call,
    required_calls,
)
from graft_runtime.text.speech.thoughts import CLOSING, OPENING, ThoughtSplitter
from graft_runtime.text.tokenizer import Tokenizer

_MISTRAL_ID_CHARS: Final = 9
"""Mistral's templates take no other ids back."""


@dataclass(frozen=True)
class Called:
    """A call that the client will hear of; its arguments follow."""

    id: str
    name: str


Said = Content | Thought | Called | CallArguments


@dataclass(frozen=True)
class SpeechPlan:
    """How the choices of one request are read."""

    tools: Tools
    form: CallForm
    reads_thoughts: bool
    is_in_thought: bool
    """Whether the prompt leaves off amid a thought."""
    shows_thoughts: bool

    @classmethod
    def of(
        cls,
        template: TemplateTraits,
        tools: Tools,
        *,
        is_in_thought: bool,
        shows_thoughts: bool,
        is_constrained: bool,
    ) -> SpeechPlan:
        """Return the plan for a model and a request.

        Args:
            template: The model's.
            tools: What may or must be called.
            is_in_thought: Whether the prompt leaves off amid a thought.
            shows_thoughts: Whether the client wants to hear of thoughts.
            is_constrained: Whether a grammar rules the output, which leaves no room for thoughts.
        """
        reads_thoughts = template.thinks and not is_constrained
        return cls(tools, template.call_form, reads_thoughts, is_in_thought, shows_thoughts)

    def marks(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the control tokens that the reading needs to see."""
        texts: tuple[str, ...] = (OPENING, CLOSING) if self.reads_thoughts else ()
        if self.tools.mode == "auto":
            texts += MARKS[self.form]
        return tokenizer.special_ids(texts)

    def reader(self) -> SpeechReader:
        """Return what reads one choice."""
        thoughts = ThoughtSplitter(is_open=self.is_in_thought) if self.reads_thoughts else None
        return SpeechReader(thoughts, self._calls())

    def _calls(self) -> Parser | None:
        match self.tools.mode:
            case "auto":
                return call_parser(self.form, self.tools.names)
            case "required":
                return required_calls(self.tools.names)
            case "named":
                return named_call(self.tools.named)
            case _:
                return None


class Speech:
    """One choice, from its first piece of text to its last."""

    def __init__(self, plan: SpeechPlan) -> None:
        self._plan = plan
        self._reader = plan.reader()
        self._num_calls = 0
        self._is_dropping = False
        """Whether the call being written is one too many."""

    @property
    def has_calls(self) -> bool:
        """Whether the client has heard of a call."""
        return self._num_calls > 0

    @property
    def ends_in_calls(self) -> bool:
        """Whether the answer's end is a request to run tools; a named one is the answer itself."""
        return self.has_calls and self._plan.tools.mode != "named"

    def push(self, text: str, *, is_last: bool) -> list[Said]:
        """Read more text and return what became certain."""
        events = self._reader.push(text)
        if is_last:
            events += self._reader.flush()
        said = map(self._said, events)
        return [each for each in said if each is not None]

    def _said(self, event: Event) -> Said | None:
        """Return an event, unless the client does not want to hear of it."""
        match event:
            case Content():
                return event
            case Thought():
                return event if self._plan.shows_thoughts else None
            case CallBegun(name):
                self._is_dropping = self.has_calls and not self._plan.tools.is_parallel
                if self._is_dropping:
                    return None
                self._num_calls += 1
                return Called(_call_id(self._plan.form), name)
            case CallArguments():
                return None if self._is_dropping else event


def _call_id(form: CallForm) -> str:
    if form == "mistral":
        letters = string.ascii_letters + string.digits
        return "".join(secrets.choice(letters) for _ in range(_MISTRAL_ID_CHARS))
    return f"call_{uuid.uuid4().hex[:24]}"
