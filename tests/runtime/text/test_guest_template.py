"""Adapters' own templates: what they may do, and what becomes of those that do more."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from graft_runtime.ipc.trial import TrialFailedError, TrialProcesses
from graft_runtime.text.guest_template import (
    COMMAND,
    TemplateAnswer,
    TemplateQuestion,
    answer,
)

MESSAGES = [{"role": "user", "content": "hello"}]
PLAIN = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"


@pytest.fixture
async def processes() -> AsyncIterator[TrialProcesses[TemplateAnswer]]:
    processes = TrialProcesses(TemplateAnswer)
    yield processes
    await processes.close()


def test_a_template_writes_what_it_is_given() -> None:
    asked = TemplateQuestion(PLAIN, MESSAGES, {"bos_token": "<s>"})
    assert answer(asked) == TemplateAnswer("<s>[user] hello")


def test_without_messages_it_tells_what_it_reads() -> None:
    source = "{% set own = 1 %}{{ own }}{{ mood }}" + PLAIN
    assert answer(TemplateQuestion(source)).reads == ("bos_token", "messages", "mood")


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
        "{{ 'a'|nonsense }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].content + 1 }}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}",
        "{% extends 'base' %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ dict.mro() }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
    ],
)
def test_files_code_and_nonsense_are_errors(source: str) -> None:
    found = answer(TemplateQuestion(source, [dict(each) for each in MESSAGES]))
    assert found.error
    assert not found.text


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 4000000000 }}",
        "{{ 'a'|center(4000000000) }}",
        "{{ 9 ** 99999999 }}",
        "{% set n = namespace(x='a') %}{% for a in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}",
    ],
)
async def test_what_computes_without_end_or_takes_memory_fails_alone(
    processes: TrialProcesses[TemplateAnswer], source: str
) -> None:
    problem: str | None = None
    async with asyncio.timeout(60):
        for messages in (None, MESSAGES):
            try:
                found = await processes.ask(COMMAND, TemplateQuestion(source, messages))
                problem = found.error or problem
            except TrialFailedError as error:
                problem = str(error)
        assert problem
        good = await processes.ask(COMMAND, TemplateQuestion("ok", MESSAGES))
    assert good == TemplateAnswer("ok")
