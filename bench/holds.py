"""How long reading a body of 5 MB keeps the interpreter to itself, in processor time.

`probes` shows what a client feels, and with it whatever else the machine does. Here one thread
reads a body as the front door does, from bytes to checked fields, while another only asks for the
interpreter and notes how much processor time the first has used meanwhile:

    python -m bench.holds

The longest of these is what one body can hold up a probe, on a machine that does nothing else.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Self

from graft_runtime.errors import RequestError
from graft_runtime.server.body import parse_object
from graft_runtime.server.listener import share_interpreter
from graft_runtime.server.openai.completions import _read as read_completion

BODY_BYTES: Final = 5 * 10**6
ROUNDS: Final = 5


def many(value: Any, key: str = "prompt") -> bytes:
    """Return a body whose field is a list of this value, as long as a body may be."""
    count = BODY_BYTES // (len(json.dumps(value)) + 1)
    body = {"prompt": "a", key: [value] * count}
    return json.dumps(body, separators=(",", ":")).encode()


def names() -> bytes:
    """Return an object of as many keys as fit."""
    keys = {f"{number:06x}": 1 for number in range(BODY_BYTES // 11)}
    return json.dumps({"prompt": "a", **keys}, separators=(",", ":")).encode()


KINDS: Final[dict[str, Callable[[], bytes]]] = {
    "a text": lambda: json.dumps({"prompt": "word " * (BODY_BYTES // 5)}).encode(),
    "escapes": lambda: json.dumps({"prompt": "\u00e9" * (BODY_BYTES // 6)}).encode(),
    "tokens of 3 digits": lambda: many(101),
    "tokens of 1 digit": lambda: many(1),
    "words": lambda: many("a"),
    "escaped words": lambda: many("\n"),
    "lists": lambda: many([]),
    "objects": lambda: many({}),
    "names": names,
    "faulty `bad_words`": lambda: many(1, "bad_words"),
}


class Watch:
    """Asks for the interpreter in a thread of its own, again and again."""

    def __init__(self, watched: int) -> None:
        """Watch a thread, by its identity."""
        self._clock = time.pthread_getcpuclockid(watched)
        self._ended = False
        self.longest = 0.0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._ended = True
        self._thread.join()

    def _run(self) -> None:
        last = time.clock_gettime(self._clock)
        while not self._ended:
            time.sleep(0)  # lets go of the interpreter, and has to ask for it
            now = time.clock_gettime(self._clock)
            self.longest = max(self.longest, now - last)
            last = now


def read(data: bytes) -> None:
    """Read a body as completions do."""
    try:
        read_completion(parse_object(data))
    except RequestError:
        return  # which is an answer, too


def measure(data: bytes) -> tuple[float, float]:
    """Return the longest hold and all the processor time, in seconds."""
    with Watch(threading.get_ident()) as watch:
        began = time.thread_time()
        read(data)
        used = time.thread_time() - began
    return watch.longest, used


def main() -> None:
    """Measure and print."""
    share_interpreter()
    print("| body of 5 MB | longest hold (median) | worst | processor time |")
    print("| --- | --- | --- | --- |")
    for kind, content in KINDS.items():
        data = content()
        rounds = [measure(data) for _ in range(ROUNDS)]
        holds = [1000 * hold for hold, _ in rounds]
        used = statistics.median(1000 * each for _, each in rounds)
        middle = statistics.median(holds)
        print(f"| {kind} | {middle:.1f} ms | {max(holds):.1f} ms | {used:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
