"""An answer as a list of parts, each a text, a thought or a call, as the newer surfaces have it.

Knows neither surface; `responses_answer` and `anthropic_answer` put parts and their changes into
their own forms.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from graft_runtime.server.openai.speech import Called, Said
from graft_runtime.text.speech.events import CallArguments, Content, Thought

Kind = Literal["text", "thought", "call"]


@dataclass
class Part:
    """One part, as it grows."""

    index: int
    kind: Kind
    id: str
    """Drawn for it; a call has another id beside it, which its result is sent back with."""
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far; a call's arguments as JSON text."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class Change:
    """What happened to a part."""

    what: Literal["opened", "grew", "closed"]
    part: Part
    text: str = ""


class Parts:
    """Grows with what is said; one part is open at a time."""

    def __init__(self) -> None:
        self.all: list[Part] = []
        self._open: Part | None = None
        self.thinking_tokens = 0

    def take(self, said: Sequence[Said]) -> list[Change]:
        """Add what was said."""
        return [change for each in said for change in self._take(each)]

    def count(self, num_tokens: int) -> None:
        """Count the tokens just taken, if they ended in a thought."""
        if self._open is not None and self._open.kind == "thought":
            self.thinking_tokens += num_tokens

    def close(self) -> list[Change]:
        """End the open part, if there is one."""
        part, self._open = self._open, None
        return [] if part is None else [Change("closed", part)]

    def _take(self, said: Said) -> list[Change]:
        match said:
            case Called(id, name):
                return self._begin("call", id, name)
            case Content(text):
                return [*self._ensure("text"), *self._grow(text)]
            case Thought(text):
                return [*self._ensure("thought"), *self._grow(text)]
            case CallArguments(text):
                return self._grow(text)

    def _ensure(self, kind: Kind) -> list[Change]:
        if self._open is not None and self._open.kind == kind:
            return []
        return self._begin(kind)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> list[Change]:
        closed = self.close()
        part = Part(len(self.all), kind, uuid.uuid4().hex, call_id, name)
        self.all.append(part)
        self._open = part
        return [*closed, Change("opened", part)]

    def _grow(self, text: str) -> list[Change]:
        assert self._open is not None, "what is said belongs to a part"  # noqa: S101 - ours
        self._open.pieces.append(text)
        return [Change("grew", self._open, text)]
