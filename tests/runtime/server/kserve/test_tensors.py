"""Tensors: both encodings say the same, and what does not add up is refused."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.kserve.tensors import Tensor, from_bytes, from_json, to_bytes

BOUNDS = {
    "UINT8": (0, 2**8 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_texts_survive_the_binary_form(texts: list[bytes]) -> None:
    tensor = Tensor.row("x", "BYTES", texts)
    assert from_bytes("x", "BYTES", [len(texts)], to_bytes(tensor)) == tensor


@given(st.data(), st.sampled_from(sorted(BOUNDS)))
def test_integers_survive_the_binary_form(data: st.DataObject, datatype: str) -> None:
    values = data.draw(st.lists(st.integers(*BOUNDS[datatype]), max_size=5))
    tensor = Tensor.row("x", datatype, values)
    assert from_bytes("x", datatype, [len(values)], to_bytes(tensor)) == tensor
    assert from_json("x", datatype, [len(values)], values) == tensor


def test_text_has_its_length_before_it_little_endian() -> None:
    assert to_bytes(Tensor.row("x", "BYTES", [b"ab", b""])) == b"\2\0\0\0ab\0\0\0\0"
    assert to_bytes(Tensor.row("x", "BOOL", [True, False])) == b"\1\0"
    assert to_bytes(Tensor.row("x", "FP32", [1.5])) == struct.pack("<f", 1.5)


def test_nested_lists_are_read_in_order() -> None:
    tensor = from_json("x", "INT32", [2, 2], [[1, 2], [3, 4]])
    assert tensor.values == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("BYTES", [1], b"\5\0\0\0ab"),
        ("BYTES", [1], b"\1\0"),
        ("BYTES", [1], b"\1\0\0\0a\1\0\0\0b"),
        ("BYTES", [2], b"\1\0\0\0a"),
        ("BYTES", [1], b"\xff\xff\xff\xff"),
        ("INT32", [2], b"\0" * 4),
        ("INT32", [10**9, 10**9], b"\0" * 4),
        ("INT32", [-1], b""),
        ("INT32", [1] * 9, b"\0" * 4),
        ("COMPLEX", [1], b"\0"),
    ],
)
def test_bytes_that_do_not_add_up_are_refused(datatype: str, shape: list[int], data: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        from_bytes("x", datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BYTES", [1]),
        ("BOOL", [1]),
        ("INT32", [True]),
        ("INT32", ["1"]),
        ("INT32", [1.5]),
        ("UINT8", [256]),
        ("UINT32", [-1]),
        ("FP32", [1e39]),
        ("INT32", [1, 2]),
        ("INT32", {}),
        ("INT32", None),
    ],
)
def test_values_of_another_type_are_refused(datatype: str, data: Any) -> None:
    with pytest.raises(InvalidRequestError):
        from_json("x", datatype, [1], data)
