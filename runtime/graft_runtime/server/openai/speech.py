"""What a choice of a chat says, in OpenAI's forms: deltas as it comes, a message in the end.

`chat_answer` feeds it pieces of text; the reading itself is `graft_runtime.text.speech`.
"""

from __future__ import annotations

import secrets
import string
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from graft_runtime.server.openai.tool_fields import Tools
from graft_runtime.text.chat import ChatTemplate
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
        cls, template: ChatTemplate, tools: Tools, *, is_in_thought: bool, shows_thoughts: bool
    ) -> SpeechPlan:
        """Return the plan for a model and a request."""
        # A call that is forced comes at once: the grammar leaves no room for thoughts.
        is_forced = tools.mode in ("required", "named")
        reads_thoughts = template.thinks and not is_forced
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


@dataclass
class _Call:
    """One call as it grows."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class Speech:
    """One choice, from its first piece of text to its last."""

    def __init__(self, plan: SpeechPlan) -> None:
        self._plan = plan
        self._reader = plan.reader()
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[_Call] = []
        self._is_dropping = False
        """Whether the call being written is one too many."""

    @property
    def ends_in_calls(self) -> bool:
        """Whether the answer's end is a request to run tools; a named one is the answer itself."""
        return bool(self._calls) and self._plan.tools.mode != "named"

    def push(self, text: str, *, is_last: bool) -> list[dict[str, Any]]:
        """Read more text and return the deltas that became certain."""
        events = self._reader.push(text)
        if is_last:
            events += self._reader.flush()
        return [delta for each in events for delta in self._deltas(each)]

    def message(self) -> dict[str, Any]:
        """Return the whole message."""
        text = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._thoughts:
            thoughts = "".join(self._thoughts)
            message |= {"reasoning_content": thoughts, "reasoning": thoughts}
        if self._calls:
            message["content"] = text or None
            message["tool_calls"] = [call.to_json() for call in self._calls]
        return message

    def _deltas(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case Content(text):
                self._content.append(text)
                return [{"content": text}]
            case Thought(text):
                if not self._plan.shows_thoughts:
                    return []
                self._thoughts.append(text)
                return [{"reasoning_content": text, "reasoning": text}]
            case CallBegun(name):
                return self._begin(name)
            case CallArguments(text):
                if self._is_dropping:
                    return []
                self._calls[-1].arguments.append(text)
                return [self._delta({"function": {"arguments": text}})]

    def _begin(self, name: str) -> list[dict[str, Any]]:
        self._is_dropping = bool(self._calls) and not self._plan.tools.is_parallel
        if self._is_dropping:
            return []
        call = _Call(_call_id(self._plan.form), name)
        self._calls.append(call)
        return [self._delta(call.to_json())]

    def _delta(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": len(self._calls) - 1, **call}]}


def _call_id(form: CallForm) -> str:
    if form == "mistral":
        letters = string.ascii_letters + string.digits
        return "".join(secrets.choice(letters) for _ in range(_MISTRAL_ID_CHARS))
    return f"call_{uuid.uuid4().hex[:24]}"
