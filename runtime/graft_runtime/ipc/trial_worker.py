"""The inner side of a trial: a process that runs what outsiders wrote, under limits it sets itself.

Frames on its standard input and output: four bytes of length, then a msgpack struct. The outer side
is `graft_runtime.ipc.trial`, which starts another one whenever a question has killed it.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

CPU_SECONDS: Final = 2
"""What one question may take. The kernel counts whole seconds, so it can become one more."""
MEMORY_BYTES: Final = 256 * 2**20
"""What all questions together may add to the process."""
LENGTH_BYTES: Final = 4

Q = TypeVar("Q", bound=msgspec.Struct)


def serve_trials(
    kind: type[Q], greeting: msgspec.Struct, answer: Callable[[Q], msgspec.Struct]
) -> None:
    """Answer questions until the input ends.

    Args:
        kind: Of the questions.
        greeting: Said once, when everything is ready.
        answer: What is run under the limits.
    """
    _limit_memory()
    say(greeting)
    while (question := _read(kind)) is not None:
        _limit_cpu()
        say(answer(question))


def say(message: msgspec.Struct) -> None:
    """Send one message to the outer side."""
    sys.stdout.buffer.write(frame(message))
    sys.stdout.buffer.flush()


def frame(message: msgspec.Struct) -> bytes:
    """Return a message as it goes through the pipe."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES) + body


def _read(kind: type[Q]) -> Q | None:
    source = sys.stdin.buffer
    header = source.read(LENGTH_BYTES)
    if len(header) < LENGTH_BYTES:
        return None
    return msgspec.msgpack.decode(source.read(int.from_bytes(header)), type=kind)


def _limit_memory() -> None:
    """Let the kernel refuse more memory; the library in use then ends the process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError):  # the pod has a tighter limit already
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _limit_cpu() -> None:
    """Let the kernel end the process when it has computed for too long from now on."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = math.ceil(usage.ru_utime + usage.ru_stime)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, hard))
