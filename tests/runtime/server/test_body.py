"""Bodies as strict JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_runtime.errors import MalformedBodyError
from graft_runtime.server.body import MAX_DEPTH, parse_object

SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=10,
)


@given(value=st.dictionaries(st.text("abcü"), VALUES))
def test_what_json_can_say_is_read(value: dict[str, object]) -> None:
    data = json.dumps(value, ensure_ascii=False).encode()
    if b"\\u0000" in data:
        with pytest.raises(MalformedBodyError):
            parse_object(data)
    else:
        assert parse_object(data) == value


@given(data=st.binary(max_size=200))
def test_any_bytes_give_an_object_or_the_error_meant_for_them(data: bytes) -> None:
    try:
        value = parse_object(data)
    except MalformedBodyError:
        return
    assert isinstance(value, dict)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"a": "x\\u0000y"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_parsers_could_read_differently_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        parse_object(data)


def nested(depth: int) -> bytes:
    """Return an object with arrays in it, ``depth`` containers inside each other."""
    return b'{"a":' + b"[" * (depth - 1) + b"1" + b"]" * (depth - 1) + b"}"


def test_depth_is_limited_exactly() -> None:
    parse_object(nested(MAX_DEPTH))
    with pytest.raises(MalformedBodyError, match="inside each other"):
        parse_object(nested(MAX_DEPTH + 1))


def test_an_error_never_repeats_the_content() -> None:
    with pytest.raises(MalformedBodyError) as caught:
        parse_object(b'{"key": "my-secret" oops}')
    assert "my-secret" not in caught.value.message
