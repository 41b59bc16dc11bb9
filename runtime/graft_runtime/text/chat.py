"""Chat messages to tokens, through the base model's own template in a sandbox.

Only the model's folder brings templates, never a request. What users wrote is kept apart from what
the template wrote, so that a control token in a message stays letters.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from graft_protocol.reasons import Reason
from graft_runtime.errors import InvalidRequestError, ReasonedError
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
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            message = f"the chat template cannot be parsed: {error}"
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
        self._named_tokens = dict(named_tokens)

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

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Return the tokens of a conversation.

        Args:
            tokenizer: The same model's.
            messages: Validated messages, each with ``role`` and a string ``content``.
            add_generation_prompt: Whether the assistant's turn is opened at the end.

        Raises:
            InvalidRequestError: The template refuses these messages.
        """
        disguise = _Disguise(tokenizer.special_texts)
        hidden = [{key: disguise.hide(value) for key, value in each.items()} for each in messages]
        text = self._render(hidden, add_generation_prompt=add_generation_prompt)
        ids: list[int] = []
        for part, is_users in disguise.split(text):
            if is_users:
                ids += tokenizer.encode(part, add_special_tokens=False)
            else:
                ids += tokenizer.encode_trusted(part)
        return ids

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **self._named_tokens,
            )
        except jinja2.TemplateError as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequestError(message, param="messages") from error
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            message = "the model's chat template cannot be applied to these messages"
            raise InvalidRequestError(message, param="messages") from error


class _Disguise:
    """Hides control tokens in users' text from the tokenizer while a template runs.

    Each is replaced by a mark nobody can guess; after rendering, the marks become parts of their
    own. Text without control tokens, which is nearly all text, passes unchanged in one part.
    """

    def __init__(self, special_texts: Sequence[str]) -> None:
        self._nonce = secrets.token_hex(8)
        longest_first = sorted(filter(None, special_texts), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._mark = re.compile(rf"<{self._nonce}:(\d+)>")
        self._hidden: list[str] = []

    def hide(self, value: Any) -> Any:
        """Return a message's field with its control tokens replaced by marks."""
        return self._special.sub(self._replace, value) if isinstance(value, str) else value

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Split rendered text into parts; the second value tells whether it was a hidden one."""
        pieces = self._mark.split(text)
        parts = [
            (self._hidden[int(piece)], True) if index % 2 else (piece, False)
            for index, piece in enumerate(pieces)
        ]
        return [part for part in parts if part[0]]

    def _replace(self, match: re.Match[str]) -> str:
        self._hidden.append(match[0])
        return f"<{self._nonce}:{len(self._hidden) - 1}>"


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
