"""Views that are read when asked for and remembered for a while."""

from __future__ import annotations

from collections import Counter

import pytest

from graft_operator.reconcile.read_through import ReadThrough

LONG_SECONDS = 3600.0


class Source:
    """Counts what is read of it."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()

    async def fetch(self, name: str) -> str:
        if name == "broken":
            raise ConnectionError(name)
        self.reads[name] += 1
        return f"{name}, read {self.reads[name]}"


async def test_a_name_asked_for_twice_is_read_once() -> None:
    source = Source()
    reader = ReadThrough(source.fetch, LONG_SECONDS)
    assert await reader.read_all(["a", "b", "a"]) == {"a": "a, read 1", "b": "b, read 1"}
    assert await reader.read_all(["a"]) == {"a": "a, read 1"}
    assert source.reads == {"a": 1, "b": 1}


async def test_a_view_that_is_too_old_is_read_again() -> None:
    reader = ReadThrough(Source().fetch, 0)
    await reader.read_all(["a"])
    assert await reader.read_all(["a"]) == {"a": "a, read 2"}


async def test_a_forgotten_view_is_read_again_and_others_are_not() -> None:
    reader = ReadThrough(Source().fetch, LONG_SECONDS)
    await reader.read_all(["a", "b"])
    reader.invalidate("a")
    reader.invalidate("never read")
    assert await reader.read_all(["a", "b"]) == {"a": "a, read 2", "b": "b, read 1"}


async def test_a_view_that_is_not_kept_is_read_each_time() -> None:
    reader = ReadThrough(Source().fetch, LONG_SECONDS, keeps=lambda view: "read 1" not in view)
    views = [(await reader.read_all(["a"]))["a"] for _ in range(3)]
    assert views == ["a, read 1", "a, read 2", "a, read 2"]


async def test_a_name_that_cannot_be_read_leaves_nothing_remembered_of_it() -> None:
    reader = ReadThrough(Source().fetch, LONG_SECONDS)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await reader.read_all(["broken"])
