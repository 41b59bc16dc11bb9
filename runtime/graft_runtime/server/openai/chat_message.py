"""The assistant's message in OpenAI's chat form: deltas as it grows, and the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graft_runtime.server.openai.speech import Called, Said
from graft_runtime.text.speech.events import CallArguments, Content, Thought


@dataclass
class _Call:
    """One call as it grows."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class ChatMessage:
    """Grows with what is said."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[_Call] = []

    def take(self, said: Sequence[Said]) -> list[dict[str, Any]]:
        """Add what was said and return it as deltas."""
        return [self._delta(each) for each in said]

    def to_json(self) -> dict[str, Any]:
        """Return the whole message."""
        text = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._thoughts:
            message |= _thought("".join(self._thoughts))
        if self._calls:
            message["content"] = text or None
            message["tool_calls"] = [call.to_json() for call in self._calls]
        return message

    def _delta(self, said: Said) -> dict[str, Any]:
        match said:
            case Content(text):
                self._content.append(text)
                return {"content": text}
            case Thought(text):
                self._thoughts.append(text)
                return _thought(text)
            case Called(id, name):
                self._calls.append(_Call(id, name))
                return self._of_call(self._calls[-1].to_json())
            case CallArguments(text):
                self._calls[-1].arguments.append(text)
                return self._of_call({"function": {"arguments": text}})

    def _of_call(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": len(self._calls) - 1, **call}]}


def _thought(text: str) -> dict[str, Any]:
    """Return a thought under both of the names that clients read."""
    return {"reasoning_content": text, "reasoning": text}
