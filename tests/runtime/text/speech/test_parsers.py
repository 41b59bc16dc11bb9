"""Calls and thoughts in models' texts: whatever the pieces they arrive in, they say the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_runtime.text.speech.events import (
    CallArguments,
    CallBegun,
    Content,
    Event,
    Parser,
    Thought,
)
from graft_runtime.text.speech.hermes import HermesParser
from graft_runtime.text.speech.llama import LlamaParser
from graft_runtime.text.speech.mistral import MistralParser
from graft_runtime.text.speech.named import NamedCall
from graft_runtime.text.speech.reader import call_form_of, required_calls
from graft_runtime.text.speech.thoughts import ThoughtSplitter, is_opened_by

WEATHER = '{"city": "Par\\"is}{", "days": [1, 2.5e3, null]}'
TIME = "{}"


def said(parser: Parser, pieces: Iterable[str]) -> list[Event]:
    """Return all events, neighbours of one kind joined."""
    events = [event for piece in pieces for event in parser.push(piece)]
    joined: list[Event] = []
    for event in events + parser.flush():
        last = joined[-1] if joined else None
        if isinstance(last, Content) and isinstance(event, Content):
            joined[-1] = Content(last.text + event.text)
        elif isinstance(last, Thought) and isinstance(event, Thought):
            joined[-1] = Thought(last.text + event.text)
        elif isinstance(last, CallArguments) and isinstance(event, CallArguments):
            joined[-1] = CallArguments(last.text + event.text)
        else:
            joined.append(event)
    return joined


def llama() -> Parser:
    return LlamaParser({"weather", "time"})


TWO: list[Event] = [
    CallBegun("weather"),
    CallArguments(WEATHER),
    CallBegun("time"),
    CallArguments(TIME),
]

CASES: list[tuple[Callable[[], Parser], str, list[Event]]] = [
    (HermesParser, "plain <tool answer", [Content("plain <tool answer")]),
    (HermesParser, "  two  spaces  ", [Content("  two  spaces  ")]),
    (
        HermesParser,
        (
            f'See.\n<tool_call>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_call>\n'
            '<tool_call>{"arguments": {}, "name": "time"}</tool_call>\n'
        ),
        [Content("See."), *TWO],
    ),
    (
        HermesParser,  # with text after the call
        '<tool_call>{"name": "time"}</tool_call> Done. ',
        [CallBegun("time"), CallArguments("{}"), Content("Done. ")],
    ),
    (
        HermesParser,  # arguments inside a string
        '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [CallBegun("time"), CallArguments('{"a": 1}')],
    ),
    (
        HermesParser,  # the object's last brace is missing
        '<tool_call>{"name": "time", "arguments": {}</tool_call>',
        [CallBegun("time"), CallArguments("{}")],
    ),
    (
        HermesParser,  # cut off by the end of the output
        '<tool_call>{"name": "weather", "arguments": {"city": "P',
        [CallBegun("weather"), CallArguments('{"city": "P')],
    ),
    (
        HermesParser,  # no call at all
        "<tool_call><function=x></tool_call>",
        [Content("<tool_call><function=x></tool_call>")],
    ),
    (
        HermesParser,
        '<tool_call>{"title": "x"}</tool_call>',
        [Content('<tool_call>{"title": "x"}</tool_call>')],
    ),
    (llama, "It is {warm}.", [Content("It is {warm}.")]),
    (llama, ' {"name": "Bob", "age": 3} and', [Content(' {"name": "Bob", "age": 3} and')]),
    (llama, '[{"a": 1}, 2]', [Content('[{"a": 1}, 2]')]),
    (llama, "[1, 2]", [Content("[1, 2]")]),
    (llama, '{"a": [', [Content('{"a": [')]),
    (
        llama,
        f'{{"name": "weather", "parameters": {WEATHER}}}; {{"name": "time", "parameters": {{}}}}',
        list(TWO),
    ),
    (
        llama,
        (
            f'<|python_tag|>[{{"type": "function", "name": "weather", "parameters": {WEATHER}}},'
            '{"name": "time", "parameters": null}]'
        ),
        list(TWO),
    ),
    (
        llama,  # the second object is no call
        '{"name": "time", "parameters": {}}; {"x": 1}',
        [CallBegun("time"), CallArguments("{}"), Content('{"x": 1}')],
    ),
    (MistralParser, "No [TOOL call", [Content("No [TOOL call")]),
    (
        MistralParser,
        (
            f'Wait.\n[TOOL_CALLS] [{{"name": "weather", "arguments": {WEATHER}}}, '
            '{"name": "time", "arguments": {}}]'
        ),
        [Content("Wait."), *TWO],
    ),
    (
        MistralParser,
        f"[TOOL_CALLS]weather[ARGS]{WEATHER}[TOOL_CALLS]time[CALL_ID]abc[ARGS]{{}}",
        list(TWO),
    ),
    (MistralParser, f"[TOOL_CALLS]weather{WEATHER}\n[TOOL_CALLS] time {{}} ", list(TWO)),
    (
        lambda: required_calls({"weather", "time"}),
        f'[{{"name": "weather", "parameters": {WEATHER}}}, {{"name": "time", "parameters": {{}}}}]',
        list(TWO),
    ),
    (lambda: NamedCall("weather"), WEATHER, [CallBegun("weather"), CallArguments(WEATHER)]),
    (
        lambda: ThoughtSplitter(is_open=False),
        "\n<think>\nhm <b>\n\n</think>\n\nYes. ",
        [Thought("hm <b>"), Content("Yes. ")],
    ),
    (lambda: ThoughtSplitter(is_open=False), "<think></think>Yes", [Content("Yes")]),
    (lambda: ThoughtSplitter(is_open=False), " <th> Yes", [Content(" <th> Yes")]),
    (lambda: ThoughtSplitter(is_open=False), " <thi", [Content(" <thi")]),
    (
        lambda: ThoughtSplitter(is_open=True),
        "hm\n</think>Yes</think>",
        [Thought("hm"), Content("Yes</think>")],
    ),
    (lambda: ThoughtSplitter(is_open=True), "cut off </thi", [Thought("cut off </thi")]),
]


@pytest.mark.parametrize(("parser", "text", "expected"), CASES)
def test_a_text_is_read_for_what_it_says(
    parser: Callable[[], Parser], text: str, expected: list[Event]
) -> None:
    assert said(parser(), [text]) == expected
    assert said(parser(), text) == expected, "one character at a time"


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 200)))
def test_the_pieces_do_not_matter(
    case: tuple[Callable[[], Parser], str, list[Event]], cuts: list[int]
) -> None:
    parser, text, expected = case
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert said(parser(), pieces) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), json_values), st.sampled_from([None, 2]), st.booleans())
def test_any_arguments_come_through_unchanged(
    arguments: dict[str, object], indent: int | None, is_ascii: bool
) -> None:
    raw = json.dumps(arguments, indent=indent, ensure_ascii=is_ascii)
    call = f'{{"name": "weather", "arguments": {raw}}}'
    expected = [CallBegun("weather"), CallArguments(raw)]
    assert said(HermesParser(), f"<tool_call>{call}</tool_call>") == expected
    assert said(llama(), call) == expected
    assert said(MistralParser(), f"[TOOL_CALLS][{call}]") == expected
    assert said(MistralParser(), f"[TOOL_CALLS]weather{raw}") == expected


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet='<tool_call>{}[]":,n/TOLCAS \\think1', max_size=60))
def test_no_text_breaks_a_parser(text: str) -> None:
    for parser in (HermesParser, llama, MistralParser, lambda: ThoughtSplitter(is_open=False)):
        assert said(parser(), [text]) == said(parser(), text)


def test_the_first_argument_is_told_before_the_last_is_written() -> None:
    parser = HermesParser()
    parser.push('<tool_call>{"name": "weather", ')
    assert parser.push('"arguments": {"city": "Pa') == [CallArguments('{"city": "Pa')]


def test_the_form_is_read_off_the_template() -> None:
    assert call_form_of("{{ '[TOOL_CALLS]' }}") == "mistral"
    assert call_form_of("{{ '<tool_call>' }}") == "hermes"
    assert call_form_of("{{ messages }}") == "llama3_json"


def test_a_prompt_may_leave_off_amid_a_thought() -> None:
    assert is_opened_by("<|assistant|>\n<think>\n")
    assert not is_opened_by("<think>\n\n</think>\n\n")
