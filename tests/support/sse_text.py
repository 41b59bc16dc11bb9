"""Reads a stream of server-sent events as its clients do."""

import json
from typing import Any


def events(text: str) -> list[Any]:
    """Return the events of a whole stream; ``[DONE]`` stays a string, comments are dropped."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks), blocks
    data = [block.removeprefix("data: ") for block in blocks]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def named_events(text: str) -> list[tuple[str, Any]]:
    """Return the events of a stream that names them; every one has a name and one line of data."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    pairs = [block.split("\n") for block in blocks]
    assert all(len(pair) == 2 for pair in pairs), blocks
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in pairs
    ]
