"""The grammar checker's process: tries constraints out under limits that it sets itself.

Started by `graft_runtime.server.grammars`, which restarts it whenever a constraint has killed it.
Frames on its standard input and output: four bytes of length, then a msgpack struct.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec

from graft_runtime.errors import GrammarError
from graft_runtime.sampling.constraint import Constraint, grammar_text
from graft_runtime.sampling.grammar import Vocabulary

CPU_SECONDS: Final = 2
"""What one constraint may take. The kernel counts whole seconds, so it can become one more."""
TOKEN_CPU_SECONDS: Final = 0.025
"""What its first tokens may take to find. That is done in a step, where others wait for it."""
MEMORY_BYTES: Final = 256 * 2**20
"""What all constraints together may add to the process."""
LENGTH_BYTES: Final = 4

T = TypeVar("T")


class Verdict(msgspec.Struct, frozen=True):
    """What became of a constraint; the first one says whether the process can check any."""

    text: str = ""
    """The grammar for the engine."""
    error: str | None = None


def run_grammar_worker(folder: Path) -> None:
    """Check constraints until the input ends.

    Args:
        folder: Where the model's tokenizer lies.
    """
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    try:
        vocabulary, special_texts = _read_tokenizer(folder)
    except (GrammarError, OSError, ValueError, KeyError) as error:
        _write(sink, Verdict(error=str(error)))
        return
    _limit_memory()
    _write(sink, Verdict())
    while (constraint := _read(source, Constraint)) is not None:
        _limit_cpu()
        _write(sink, check(constraint, vocabulary, special_texts))


def check(
    constraint: Constraint, vocabulary: Vocabulary, special_texts: tuple[str, ...]
) -> Verdict:
    """Make a constraint's grammar, compile it and ask for its first tokens."""
    try:
        text = grammar_text(constraint, special_texts)
        state = vocabulary.compile(text).start()
    except GrammarError as error:
        return Verdict(error=str(error))
    began = time.thread_time()
    allowed = vocabulary.fill([state])
    if time.thread_time() - began > TOKEN_CPU_SECONDS:
        return Verdict(error="it has too many alternatives: finding a token takes too long")
    if not allowed.any():
        return Verdict(error=state.error or "no output can have this form")
    return Verdict(text)


def frame(message: msgspec.Struct) -> bytes:
    """Return a message as it goes through the pipe."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES) + body


def _read_tokenizer(folder: Path) -> tuple[Vocabulary, tuple[str, ...]]:
    serialized = (folder / "tokenizer.json").read_text(encoding="utf-8")
    added = json.loads(serialized).get("added_tokens") or ()
    return Vocabulary(serialized), tuple(each["content"] for each in added if each["special"])


def _read(source: BinaryIO, kind: type[T]) -> T | None:
    header = source.read(LENGTH_BYTES)
    if len(header) < LENGTH_BYTES:
        return None
    return msgspec.msgpack.decode(source.read(int.from_bytes(header)), type=kind)


def _write(sink: BinaryIO, verdict: Verdict) -> None:
    sink.write(frame(verdict))
    sink.flush()


def _limit_memory() -> None:
    """Let the kernel refuse more memory; the library then ends the process."""
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
