"""A conversation on its way through a chat template: what the template is given, and the tokens.

What users wrote is kept apart from what the template wrote, so that a control token in a message
stays letters. Where the template runs is no concern of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graft_runtime.errors import InvalidRequestError
from graft_runtime.text.disguise import Disguise
from graft_runtime.text.speech.reader import CallForm, call_form_of, thinks
from graft_runtime.text.speech.thoughts import is_opened_by
from graft_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Conversation:
    """What a template is applied to. Validated by the surface that built it."""

    messages: Sequence[Mapping[str, Any]]
    """Each with ``role`` and ``content``, which is text, or None beside ``tool_calls``."""
    tools: Sequence[Mapping[str, Any]] = ()
    documents: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    """More names for the template to read."""
    add_generation_prompt: bool = True
    """Whether the assistant's turn is opened at the end."""
    continues_last: bool = False
    """Whether the last message is left open, to be written on."""
    add_special_tokens: bool = False
    """Whether the tokenizer's own start and end tokens are put around it as well."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model reads it."""

    token_ids: list[int]
    is_in_thought: bool
    """Whether it leaves off amid a thought."""


@dataclass(frozen=True)
class TemplateTraits:
    """What a template's text tells of the model that it was written for."""

    reads: frozenset[str]
    """Names that it reads and does not set."""
    call_form: CallForm
    thinks: bool
    """Whether the model writes down its thoughts."""
    knows_developers: bool
    """Whether it has a place for messages of developers."""

    @classmethod
    def of(cls, source: str, reads: Iterable[str]) -> TemplateTraits:
        """Return the traits of a template that reads these names."""
        return cls(frozenset(reads), call_form_of(source), thinks(source), "developer" in source)


class Draft:
    """One conversation, hidden from the template's tokenizer until it has been rendered."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        conversation: Conversation,
        traits: TemplateTraits,
        named_tokens: Mapping[str, str],
    ) -> None:
        """Make a conversation ready for a template.

        Args:
            tokenizer: The base model's.
            conversation: What was asked.
            traits: The template's.
            named_tokens: What ``bos_token`` and its like stand for.
        """
        self._tokenizer = tokenizer
        self._conversation = conversation
        self._knows_developers = traits.knows_developers
        disguise = self._disguise = Disguise(tokenizer.special_texts)
        self.messages = [self._shown(dict(message)) for message in conversation.messages]
        """For the template to read, as its ``messages``."""
        self.variables = {
            **disguise.hide(dict(conversation.variables)),
            **named_tokens,
            "tools": disguise.hide(list(conversation.tools)) or None,
            "documents": disguise.hide(list(conversation.documents)) or None,
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        """More for it to read."""
        if conversation.continues_last:
            # The space tells whether the template trims what it writes.
            self.messages[-1]["content"] += f"{disguise.end_mark} "

    def prompt(self, rendered: str) -> ChatPrompt:
        """Return the tokens of what the template wrote.

        Raises:
            InvalidRequestError: The last message, which was to be continued, is not in it.
        """
        text = self._until_mark(rendered) if self._conversation.continues_last else rendered
        ids: list[int] = []
        for part, is_users in self._disguise.split(text):
            if is_users:
                ids += self._tokenizer.encode(part, add_special_tokens=False)
            else:
                ids += self._tokenizer.encode_trusted(part)
        if self._conversation.add_special_tokens:
            ids = self._tokenizer.surround(ids)
        return ChatPrompt(ids, is_opened_by(text))

    def _until_mark(self, rendered: str) -> str:
        head, found, tail = rendered.rpartition(self._disguise.end_mark)
        if not found:
            message = "the model's chat template does not write the last message"
            raise InvalidRequestError(message, param="continue_final_message")
        return head if tail.startswith(" ") else head.rstrip()

    def _shown(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and not self._knows_developers:
            message["role"] = "system"  # what the newer name stands for
        hidden: dict[str, Any] = self._disguise.hide(message)
        return hidden
