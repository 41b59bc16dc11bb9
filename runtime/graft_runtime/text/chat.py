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
MORE_TEMPLATES: Final = "additional_chat_templates"
"""A folder of further ones, each called as its file."""
DEFAULT: Final = "default"
TOOL_USE: Final = "tool_use"
"""What transformers takes for chats with tools, where a model has it."""
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
    def load(cls, folder: Path, name: str = DEFAULT) -> ChatTemplate | None:
        """Read one of the templates of a model folder; None if the model has none of that name.

        Raises:
            ReasonedError: A file is malformed.
        """
        source = read_templates(folder).get(name)
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


def read_templates(folder: Path) -> dict[str, str]:
    """Return the templates of a model folder by name: those in files, or else the config's.

    Raises:
        ReasonedError: The config is malformed.
    """
    files = {file.stem: file for file in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    files[DEFAULT] = folder / TEMPLATE_FILE
    found = {
        name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()
    }
    return found or _inline_templates(_read_config(folder / CONFIG_FILE))


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


def _inline_templates(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates in a tokenizer's config: one text, or a list or an object of several."""
    value = config.get("chat_template")
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        entries = [each for each in value if isinstance(each, dict)]
        value = {each.get("name"): each.get("template") for each in entries}
    named = value if isinstance(value, dict) else {}
    return {name: text for name, text in named.items() if isinstance(text, str)}


def _token_text(token: Any) -> str:
    """Return the text of a token named in the config, as a string or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
