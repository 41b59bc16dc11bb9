"""What every client's script uses; runs in the client's environment, so it needs nothing else."""

import json
import os
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FACTS: dict[str, Any] = json.loads(os.environ["CONFORMANCE"])
URL: str = FACTS["url"]
BASE: str = FACTS["base"]
ADAPTER: str = FACTS["adapter"]
PROMPT = "Once upon a time"
CANCEL_SECONDS = 60.0

_checks: list[Callable[[], None]] = []


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Mark a function as a check; its name is its sentence."""
    _checks.append(function)
    return function


def run() -> None:
    """Run all checks and tell how each ended."""
    for function in _checks:
        result = {"check": function.__name__.replace("_", " ")}
        try:
            function()
        except Exception:
            result["reason"] = traceback.format_exc()
        print("CHECK " + json.dumps(result), flush=True)


def shouts(text: str) -> bool:
    """Tell whether the adapter wrote a text: it writes in capitals, nearly always."""
    letters = [letter for letter in text if letter.isalpha()]
    return len(letters) > 4 and sum(map(str.isupper, letters)) > 0.6 * len(letters)


@contextmanager
def abort_expected() -> Iterator[None]:
    """Wait, after the block, until the server has given up a request, and runs nothing."""
    before = _aborted()
    yield
    deadline = time.monotonic() + CANCEL_SECONDS
    while _aborted() <= before or _load():
        assert time.monotonic() < deadline, "the request was not given up"
        time.sleep(0.05)


def _aborted() -> float:
    name = 'graft_aborted_total{reason="client_disconnect"}'
    lines = _get("/metrics").decode().splitlines()
    values = [line.rpartition(" ")[2] for line in lines if line.startswith(name)]
    return float(values[0]) if values else 0.0


def _load() -> int:
    return int(json.loads(_get("/load"))["server_load"])


def _get(path: str) -> bytes:
    with urllib.request.urlopen(URL + path, timeout=30) as answer:
        return bytes(answer.read())


def raises(kind: type[BaseException], call: Callable[[], Any]) -> Any:
    """Return the error that a call raises; it must be of this kind."""
    try:
        result = call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {result!r}")
