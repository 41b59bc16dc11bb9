"""Reads a stream of server-sent events as its clients do."""

import json
from typing import Any


def events(text: str) -> list[Any]:
    """Return the events of a whole stream; ``[DONE]`` stays a string, comments are dropped."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks), blocks
    data = [block.removeprefix("data: ") for block in blocks]
    return [each if each == "[DONE]" else json.loads(each) for each in data]
