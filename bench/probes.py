"""How long a probe takes to be answered while bodies of 5 MB are read: p50, p99 and the worst.

The front doors run in a process of their own, over a backend that computes nothing and has room for
any prompt, so that each body is parsed, checked, templated and tokenised to its end. Another
process posts bodies of one kind after the other on two connections; this one asks ``/livez`` as
fast as it is answered, with a short pause, and prints a line for each kind:

    python -m bench.probes              # all kinds
    python -m bench.probes --kind chat  # one of them

The promise is a p99 below 100 ms. Run it on a machine that does nothing else: what shares the two
cores with it is in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from graft_protocol.config import ServerSettings
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.listener import Listener, share_interpreter
from tests.support.any_backend import AnyBackend
from tests.support.fake_backend import BASE
from tests.support.toy_tokenizer import write_toy_tokenizer

BODY_BYTES: Final = 5 * 10**6
CONTEXT_TOKENS: Final = 10**8
CONNECTIONS: Final = 2
BODIES: Final = 2
"""Bodies of each kind on each connection."""
PAUSE_SECONDS: Final = 0.005
PROMISE_SECONDS: Final = 0.1
_WORDS: Final = "the quick brown fox jumps over the lazy dog, and "


def text(num_bytes: int = BODY_BYTES) -> str:
    """Return words of this length."""
    return (_WORDS * (num_bytes // len(_WORDS) + 1))[:num_bytes]


def message(content: str) -> dict[str, str]:
    """Return a user's message."""
    return {"role": "user", "content": content}


def many_messages() -> list[dict[str, str]]:
    """Return a conversation of short messages, as long as the body allows."""
    roles = ("user", "assistant")
    count = BODY_BYTES // 150
    return [{"role": roles[n % 2], "content": text(100)} for n in range(count)]


def tensor() -> dict[str, Any]:
    """Return the text as an input tensor."""
    return {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [text()]}


KINDS: Final[Mapping[str, tuple[str, Callable[[], dict[str, Any]]]]] = {
    "completion": ("/v1/completions", lambda: {"prompt": text()}),
    "tokens": ("/v1/completions", lambda: {"prompt": [101] * (BODY_BYTES // 5)}),
    "words": ("/v1/completions", lambda: {"prompt": ["a"] * (BODY_BYTES // 5)}),
    "escaped words": ("/v1/completions", lambda: {"prompt": ["\n"] * (BODY_BYTES // 6)}),
    "faults": ("/v1/completions", lambda: {"prompt": "a", "bad_words": [1] * (BODY_BYTES // 3)}),
    "prompts": ("/v1/completions", lambda: {"prompt": [text(BODY_BYTES // 32)] * 32}),
    "escapes": ("/v1/completions", lambda: {"prompt": "\u00e9" * (BODY_BYTES // 6)}),
    "chat": ("/v1/chat/completions", lambda: {"messages": [message(text())]}),
    "messages": ("/v1/chat/completions", lambda: {"messages": many_messages()}),
    "responses": ("/v1/responses", lambda: {"input": text()}),
    "anthropic": ("/v1/messages", lambda: {"messages": [message(text())], "max_tokens": 4}),
    "tgi": ("/generate", lambda: {"inputs": text()}),
    "tokenize": ("/tokenize", lambda: {"inputs": text()}),
    "embedding": ("/v1/embeddings", lambda: {"input": text()}),
    "triton": (f"/v2/models/{BASE}/generate", lambda: {"text_input": text()}),
    "tensor": (f"/v2/models/{BASE}/infer", lambda: {"inputs": [tensor()]}),
}
"""Kinds of bodies: path and content."""


@dataclass(frozen=True)
class Times:
    """What the probes of one kind took, in seconds, ascending."""

    probes: list[float]
    statuses: set[int]
    body_seconds: float
    """What one body took on average, two at a time."""

    def at(self, share: float) -> float:
        """Return the time that this share of the probes did not exceed."""
        return self.probes[min(len(self.probes) - 1, int(len(self.probes) * share))]


def serve(port_to: Connection) -> None:
    """Run the front doors until the process is ended; tell the port once they listen."""
    share_interpreter()

    async def run() -> None:
        folder = write_toy_tokenizer(Path(tempfile.mkdtemp(prefix="graft-probes-")))
        backend = AnyBackend(folder, limit=CONTEXT_TOKENS)
        settings = ServerSettings(max_body_bytes=2 * BODY_BYTES)
        app = create_app(backend, settings, metrics=Metrics(BASE))
        listener = Listener(app, host="127.0.0.1", port=0, drain_timeout_seconds=1)
        port_to.send(await listener.start())
        await listener.wait()

    asyncio.run(run())


def load(port: int, path: str, body: bytes, done_to: Connection) -> None:
    """Post a body again and again on a few connections; tell how that went."""
    statuses: list[int] = []

    def post() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        for _ in range(BODIES):
            connection.request("POST", path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=post) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done_to.send((time.perf_counter() - began, set(statuses)))


def measure(port: int, path: str, document: dict[str, Any]) -> Times:
    """Probe while bodies of one kind are read."""
    ours, theirs = multiprocessing.Pipe()
    body = json.dumps(document).encode()
    loader = multiprocessing.Process(target=load, args=(port, path, body, theirs))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    probes = []
    loader.start()
    while not ours.poll():
        began = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        probes.append(time.perf_counter() - began)
        time.sleep(PAUSE_SECONDS)
    seconds, statuses = ours.recv()
    loader.join()
    connection.close()
    return Times(sorted(probes), statuses, seconds / BODIES)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Probes while long bodies are read.")
    parser.add_argument("--kind", choices=sorted(KINDS), action="append")
    wanted = parser.parse_args().kind or list(KINDS)
    multiprocessing.set_start_method("spawn")
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    print("| body of 5 MB | answered | a body takes | probes | p50 | p99 | worst |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    late = []
    for kind in wanted:
        path, content = KINDS[kind]
        times = measure(port, path, content())
        figures = " | ".join(f"{1000 * times.at(share):.1f} ms" for share in (0.5, 0.99, 1.0))
        answered = ", ".join(map(str, sorted(times.statuses)))
        took = f"{times.body_seconds:.2f} s"
        print(f"| {kind} | {answered} | {took} | {len(times.probes)} | {figures} |", flush=True)
        if times.at(0.99) >= PROMISE_SECONDS:
            late.append(kind)
    server.terminate()
    server.join()
    print(f"p99 above {1000 * PROMISE_SECONDS:.0f} ms: {', '.join(late) or 'none'}")


if __name__ == "__main__":
    main()
