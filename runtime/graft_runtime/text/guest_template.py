"""An adapter's own chat template: written by a tenant, so it runs in a trial process alone.

The loader asks once whether it can be used, the server for each chat; neither ever compiles it.
A template that computes without end or takes memory ends its process, and the question has failed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import jinja2
import msgspec

from graft_runtime.errors import TemplateRefusalError
from graft_runtime.ipc.trial_worker import serve_trials
from graft_runtime.text.sandbox import SandboxedTemplate

COMMAND: Final = ("template",)
"""Arguments of ``graft-runtime`` for a process that answers."""
MAX_BYTES: Final = 128 * 1024
"""Longest template; the longest ones of known models have a tenth of it."""
_MAX_COMPILED: Final = 64


class TemplateQuestion(msgspec.Struct, frozen=True):
    """What a template writes for messages; without messages, whether it can be used at all."""

    source: str
    messages: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = {}


class TemplateAnswer(msgspec.Struct, frozen=True):
    """What became of it."""

    text: str = ""
    reads: tuple[str, ...] = ()
    """Names that the template reads and does not set."""
    error: str | None = None


def run_template_worker() -> None:
    """Answer questions until the input ends."""
    serve_trials(TemplateQuestion, TemplateAnswer(), answer)


def answer(question: TemplateQuestion) -> TemplateAnswer:
    """Compile a template, and apply it if there is something to apply it to."""
    try:
        template = _compiled(question.source)
        if question.messages is None:
            return TemplateAnswer(reads=tuple(sorted(template.reads)))
        return TemplateAnswer(template.render(question.messages, question.variables))
    except jinja2.TemplateError as error:
        return TemplateAnswer(error=f"the chat template cannot be parsed: {error}")
    except TemplateRefusalError as error:
        return TemplateAnswer(error=str(error))
    except (MemoryError, RecursionError):
        return TemplateAnswer(error="it needs too much memory, or is nested too deeply")
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        # What a template computes from constants is computed while it is compiled.
        kind = type(error).__name__
        return TemplateAnswer(error=f"the chat template cannot be compiled ({kind})")


@lru_cache(_MAX_COMPILED)
def _compiled(source: str) -> SandboxedTemplate:
    return SandboxedTemplate(source)
