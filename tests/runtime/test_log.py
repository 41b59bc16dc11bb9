"""Logs as one JSON object per line."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from graft_runtime.log import configure_logging


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("server", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_with_its_extra_fields(stream: io.StringIO) -> None:
    logging.getLogger("graft.x").warning("two\nlines %d", 7, extra={"revision": "a/b@c", "n": 1})
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "warning",
        "process": "server",
        "logger": "graft.x",
        "message": "two\nlines 7",
        "revision": "a/b@c",
        "n": 1,
    }


def test_an_exception_stays_in_its_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("graft.x").exception("failed", extra={"level": "spoofed"})
    (line,) = lines(stream)
    assert "ValueError: broken" in line["exception"]
    assert line["level"] == "error"


def test_uvicorn_writes_through_the_same_handler(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").error("bad")
    logging.getLogger("graft.x").debug("quiet")
    assert [line["logger"] for line in lines(stream)] == ["uvicorn.error"]
