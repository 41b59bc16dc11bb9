"""The base model's own chat template, which its service's owner picked: it runs in this process.

Only folders bring templates, never a request. An adapter's own is a `guest_template`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2

from graft_protocol.reasons import Reason
from graft_runtime.errors import InvalidRequestError, ReasonedError, TemplateRefusalError
from graft_runtime.text.conversation import ChatPrompt, Conversation, Draft, TemplateTraits
from graft_runtime.text.sandbox import SandboxedTemplate
from graft_runtime.text.tokenizer import Tokenizer

TEMPLATE_FILE: Final = "chat_template.jinja"
CONFIG_FILE: Final = "tokenizer_config.json"
_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """One model's template and the control tokens it names."""

    def __init__(self, source: str, named_tokens: Mapping[str, str]) -> None:
        """Compile a template.

        Args:
            source: Jinja text.
            named_tokens: What ``bos_token`` and its like stand for.

        Raises:
            ReasonedError: The template does not compile.
        """
        try:
            self._template = SandboxedTemplate(source)
        except jinja2.TemplateError as error:
            message = f"the chat template cannot be parsed: {error}"
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
        self._named_tokens = dict(named_tokens)
        self.traits = TemplateTraits.of(source, self._template.reads)

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """Read the template of a model folder; None if the model has none.

        Raises:
            ReasonedError: A file is malformed.
        """
        file = folder / TEMPLATE_FILE
        if file.is_file():
            source: str | None = file.read_text(encoding="utf-8")
        else:
            source = _inline_template(_read_config(folder / CONFIG_FILE))
        return None if source is None else cls(source, read_named_tokens(folder))

    def encode(self, tokenizer: Tokenizer, conversation: Conversation) -> ChatPrompt:
        """Return the tokens of a conversation.

        Raises:
            InvalidRequestError: The template refuses it.
        """
        draft = Draft(tokenizer, conversation, self.traits, self._named_tokens)
        try:
            rendered = self._template.render(draft.messages, draft.variables)
        except TemplateRefusalError as error:
            raise InvalidRequestError(str(error), param="messages") from error
        return draft.prompt(rendered)


def read_named_tokens(folder: Path) -> dict[str, str]:
    """Return what a model folder says ``bos_token`` and its like stand for.

    Raises:
        ReasonedError: Its file is malformed.
    """
    config = _read_config(folder / CONFIG_FILE)
    named = {name: _token_text(config.get(name)) for name in _NAMED_TOKENS}
    return {name: text for name, text in named.items() if text}


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{CONFIG_FILE} is not JSON: {error}"
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
    return config if isinstance(config, dict) else {}


def _inline_template(config: Mapping[str, Any]) -> str | None:
    """Return the template in a tokenizer's config: a string, or "default" in a named list."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {
            each.get("name"): each.get("template") for each in template if isinstance(each, dict)
        }
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(token: Any) -> str:
    """Return the text of a token named in the config, as a string or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
