"""Chat messages to tokens, through the base model's own template in a sandbox.

Only the model's folder brings templates, never a request. What users wrote is kept apart from what
the template wrote, so that a control token in a message stays letters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from graft_protocol.reasons import Reason
from graft_runtime.errors import InvalidRequestError, ReasonedError
from graft_runtime.text.disguise import Disguise
from graft_runtime.text.speech.reader import call_form_of, thinks
from graft_runtime.text.speech.thoughts import is_opened_by
from graft_runtime.text.tokenizer import Tokenizer

TEMPLATE_FILE: Final = "chat_template.jinja"
CONFIG_FILE: Final = "tokenizer_config.json"
_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")


class _GenerationBlock(Extension):
    """Lets ``{% generation %}`` be, with which trainers mark the assistant's words."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        text: str = caller()
        return text


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    """Like jinja2's filter, but for a model, not for a web page: nothing is escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _new_dict(*args: Any, **fields: Any) -> dict[Any, Any]:
    """Stand in for the type ``dict``, whose attributes lead out of a sandbox."""
    return dict(*args, **fields)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what Hugging Face templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _new_dict
    return environment


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
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self.reads = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except jinja2.TemplateError as error:
            message = f"the chat template cannot be parsed: {error}"
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
        self._named_tokens = dict(named_tokens)
        self.call_form = call_form_of(source)
        self.thinks = thinks(source)
        self._knows_developers = "developer" in source

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """Read the template of a model folder; None if the model has none.

        Raises:
            ReasonedError: A file is malformed.
        """
        config = _read_config(folder / CONFIG_FILE)
        file = folder / TEMPLATE_FILE
        source = file.read_text(encoding="utf-8") if file.is_file() else _inline_template(config)
        if source is None:
            return None
        named = {name: _token_text(config.get(name)) for name in _NAMED_TOKENS}
        return cls(source, {name: text for name, text in named.items() if text})

    def encode(self, tokenizer: Tokenizer, conversation: Conversation) -> ChatPrompt:
        """Return the tokens of a conversation.

        Raises:
            InvalidRequestError: The template refuses it.
        """
        disguise = Disguise(tokenizer.special_texts)
        text = self._render(conversation, disguise)
        ids: list[int] = []
        for part, is_users in disguise.split(text):
            if is_users:
                ids += tokenizer.encode(part, add_special_tokens=False)
            else:
                ids += tokenizer.encode_trusted(part)
        if conversation.add_special_tokens:
            ids = tokenizer.surround(ids)
        return ChatPrompt(ids, is_opened_by(text))

    def _render(self, conversation: Conversation, disguise: Disguise) -> str:
        messages = [self._shown(dict(message), disguise) for message in conversation.messages]
        variables = {
            **disguise.hide(dict(conversation.variables)),
            **self._named_tokens,
            "tools": disguise.hide(list(conversation.tools)) or None,
            "documents": disguise.hide(list(conversation.documents)) or None,
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        if not conversation.continues_last:
            return self._apply(messages, variables)
        # The space tells whether the template trims what it writes.
        mark = f"{disguise.end_mark} "
        messages[-1]["content"] += mark
        head, found, tail = self._apply(messages, variables).rpartition(disguise.end_mark)
        if not found:
            message = "the model's chat template does not write the last message"
            raise InvalidRequestError(message, param="continue_final_message")
        return head if tail.startswith(" ") else head.rstrip()

    def _shown(self, message: dict[str, Any], disguise: Disguise) -> dict[str, Any]:
        if message["role"] == "developer" and not self._knows_developers:
            message["role"] = "system"  # what the newer name stands for
        hidden: dict[str, Any] = disguise.hide(message)
        return hidden

    def _apply(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        try:
            return self._template.render(messages=messages, **variables)
        except jinja2.TemplateError as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequestError(message, param="messages") from error
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            message = "the model's chat template cannot be applied to these messages"
            raise InvalidRequestError(message, param="messages") from error


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
