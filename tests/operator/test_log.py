"""Logs: the operator's own, one JSON object per line, and the end of others'."""

import json
import logging
import sys

from graft_operator.log import LAST_WORDS_MAX, JsonFormatter, last_words


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("graft_operator.x", logging.WARNING, "f", 1, message, args, None)
    vars(made).update(extra)
    return made


def test_a_record_is_one_line_of_json_with_what_was_added_to_it() -> None:
    line = JsonFormatter().format(record("cannot list %s\nat all", "pods", object="a/b"))
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"]) == ("warning", "graft_operator.x")
    assert found["message"] == "cannot list pods\nat all"
    assert found["object"] == "a/b"
    assert found["time"].endswith("+00:00")


def test_an_error_brings_its_traceback() -> None:
    made = record("failed")
    try:
        raise ValueError("of this")
    except ValueError:
        made.exc_info = sys.exc_info()
    found = json.loads(JsonFormatter().format(made))
    assert "ValueError: of this" in found["traceback"]


def test_the_last_words_of_a_log_are_its_last_line_or_the_message_in_it() -> None:
    record = json.dumps({"level": "error", "message": "it broke"})
    assert last_words(f"one\n{record}\nError: no room\n\n") == "Error: no room"
    assert last_words(f"one\n{record}\n") == "it broke"
    assert last_words('one\n{"a": 1}') == '{"a": 1}'
    assert last_words("one\n[1]") == "[1]"
    assert last_words("") == last_words(" \n\n") == ""
    assert len(last_words("x" * 1000)) == LAST_WORDS_MAX
