"""Where chat templates run: Jinja without files, code or attributes that lead out of it.

Nothing loads other templates, so `include` and `import` find nothing. What a template may compute
is not bounded here: `guest_template` does that for templates that the service's owner did not pick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from graft_runtime.errors import TemplateRefusalError

_WRONG_DATA = (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError)


class SandboxedTemplate:
    """One compiled template."""

    def __init__(self, source: str) -> None:
        """Compile a template.

        Args:
            source: Jinja text.

        Raises:
            jinja2.TemplateError: It cannot be parsed.
        """
        environment = _environment()
        self._template = environment.from_string(source)
        self.reads = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        """Names that it reads and does not set."""

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Return what it writes.

        Raises:
            TemplateRefusalError: It refuses the messages, or cannot be applied to them.
        """
        try:
            return self._template.render(messages=messages, **variables)
        except jinja2.TemplateError as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise TemplateRefusalError(message) from error
        except _WRONG_DATA as error:
            message = "the model's chat template cannot be applied to these messages"
            raise TemplateRefusalError(message) from error


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
