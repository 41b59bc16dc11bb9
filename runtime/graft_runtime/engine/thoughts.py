"""How long an output has thought, and the end of the thought where its limit is reached.

Read off the tokens alone, as they are known when the next one is chosen: so a request thinks as
long in any company, and after it was preempted. The engine keeps one per request that has a limit.
"""

from __future__ import annotations

from collections.abc import Callable

from graft_runtime.ipc.messages import ThoughtLimit
from graft_runtime.sampling.grammar import Vocabulary


class ThoughtWatch:
    """One output's thought, from its opening mark to its closing one.

    A thought is what `graft_runtime.text.speech.thoughts` takes for one: only what the output
    begins with, or what the prompt has left open.
    """

    def __init__(self, limit: ThoughtLimit, text_of: Callable[[int], bytes]) -> None:
        """Stand before the first token.

        Args:
            limit: What was asked.
            text_of: What a token adds to the text, in UTF-8; control tokens are spelled out.
        """
        self._limit = limit
        self._text_of = text_of
        self._opening, self._closing = limit.opening.encode(), limit.closing.encode()
        self._held = b""
        """Text that a mark may still come of."""
        self._thought: list[int] = []
        """Tokens of the thought."""
        self._place = 0
        """How many tokens of the closing mark have been written."""
        self._state = "undecided"
        if limit.is_open:
            self._begin()

    @classmethod
    def of(cls, limit: ThoughtLimit | None, vocabulary: Vocabulary | None) -> ThoughtWatch | None:
        """Return what watches over a limit; None where there is none, or nothing to read it by."""
        if limit is None or vocabulary is None:
            return None
        return cls(limit, vocabulary.text_of)

    @property
    def forced(self) -> int | None:
        """The token that must come next, if the thought has to end."""
        return self._limit.closing_ids[self._place] if self._state == "closing" else None

    def add(self, token_id: int) -> None:
        """Take the next token of the output."""
        match self._state:
            case "undecided":
                self._decide(token_id)
            case "thinking":
                self._think(token_id)
            case "closing":
                self._place += 1
                if self._place == len(self._limit.closing_ids):
                    self._state = "over"

    def _decide(self, token_id: int) -> None:
        """See whether the output begins with a thought, as soon as that is certain."""
        self._held += self._text_of(token_id)
        start = self._held.lstrip()
        if start.startswith(self._opening):
            self._held = start[len(self._opening) :]
            self._begin()
        elif not self._opening.startswith(start):
            self._state = "over"

    def _begin(self) -> None:
        self._state = "over" if self._closing in self._held else "thinking"
        self._end_if_due()

    def _think(self, token_id: int) -> None:
        self._held += self._text_of(token_id)
        if self._closing in self._held:
            self._state = "over"
            return
        self._held = self._held[-len(self._closing) :]
        self._thought.append(token_id)
        self._end_if_due()

    def _end_if_due(self) -> None:
        """Close a thought that is as long as it may be; go on with a mark that is begun already."""
        if self._state != "thinking" or len(self._thought) < self._limit.max_tokens:
            return
        self._state = "closing"
        mark = self._limit.closing_ids
        begun = range(min(len(mark) - 1, len(self._thought)), 0, -1)
        whole = tuple(self._thought)
        self._place = next((size for size in begun if whole[-size:] == mark[:size]), 0)
