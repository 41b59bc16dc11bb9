"""JSON of many values, parsed in pieces."""

import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graft_runtime.server.body import parse_object
from graft_runtime.server.json_pieces import MANY, PieceDecoder, has_many

COUNT = 300_000
ATOMS = [
    *("1", "-1", "1.5", "1e9", "01", "1.", "-", "9" * 70, "9" * 5000, "\u0663", "1\u0663"),
    *("true", "null", "NaN", "Infinity", "-Infinity", "x", "\u00a0", "\x0b", " ", "\n"),
    *('"a"', '"\\n"', '"', '"\\x"', '"\t"', '"' + "s" * 70 + '"', '"k":'),
    *("[", "]", "{", "}", ",", ":"),
]
ELEMENTS = [atom for atom in ATOMS if atom not in "[]{},"]


def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(found)) != len(found):
        message = "twice"
        raise RuntimeError(message)
    return dict(found)


def constant(name: str) -> Any:
    raise RuntimeError(name)


def outcome(read: Callable[[], Any]) -> tuple[str, str]:
    """Return a value, or what is told of the fault."""
    try:
        return "value", repr(read())
    except (ValueError, RuntimeError) as error:
        return type(error).__name__, str(error)


ANY_TEXT = st.lists(st.sampled_from(ATOMS), max_size=12).map("".join)
ARRAYS = st.tuples(
    st.lists(st.sampled_from(ELEMENTS)).map(",".join), st.sampled_from(["]", ",]", " ,]", ""])
).map(lambda parts: "[" + "".join(parts))


@given(text=ANY_TEXT | ARRAYS)
@example(text="[1,2,]")
@example(text="[1,[2,],3]")
@example(text="[1 2,3]")
@example(text='[1,{"a":2,"a":3}]')
def test_values_and_faults_are_those_of_the_standard_parser(text: str) -> None:
    in_pieces = outcome(lambda: PieceDecoder(pairs, constant).decode(text))
    at_once = outcome(lambda: json.loads(text, object_pairs_hook=pairs, parse_constant=constant))
    assert in_pieces == at_once


@pytest.mark.parametrize("value", [101, "a", "\n", None, [], {}, [1, "a"]])
def test_a_long_body_means_what_a_short_one_means(value: object) -> None:
    body = {"prompt": [value] * COUNT, "end": 1}
    text = json.dumps(body)
    assert has_many(text)
    assert parse_object(text.encode()) == body


def test_only_many_values_are_parsed_in_pieces() -> None:
    assert not has_many(json.dumps({"prompt": "a" * 100 * MANY}))
    assert not has_many("[" + "1," * 100 + "1]")
    assert has_many("[" * (MANY + 1))


@pytest.mark.parametrize(
    "value", [101, "a", "\n", None], ids=["numbers", "texts", "escapes", "nulls"]
)
def test_python_runs_between_short_pieces(value: object) -> None:
    """Where Python runs, another thread may: nowhere inside of C."""
    text = json.dumps([value] * COUNT)
    num_calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal num_calls
        num_calls += event == "call"

    sys.setprofile(count)
    try:
        PieceDecoder(pairs, constant).decode(text)
    finally:
        sys.setprofile(None)
    assert num_calls > COUNT / 5000
