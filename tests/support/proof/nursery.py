"""Forks operators from a process that has imported everything: an operator in milliseconds.

Importing costs seconds, and what is killed a hundred times is started a hundred times. A forked
operator is a process like any other, with its own log, signals and exit code. As a program
this file is the nursery; tests hold a `Nursery`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass
class Operator:
    """A forked operator."""

    pid: int
    log: Path
    nursery: Nursery

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.nursery.codes.get(self.pid)

    def kill(self) -> None:
        """End it without a word."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> int:
        """Return its exit code."""
        end = time.monotonic() + seconds
        while self.code is None:
            assert time.monotonic() < end, f"the operator does not end\n{self.tail()}"
            time.sleep(0.02)
        return self.code

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text()[-3000:]


@dataclass
class Nursery:
    """The process that forks, as tests see it."""

    process: subprocess.Popen[str]
    codes: dict[int, int] = field(default_factory=dict)
    _born: list[int] = field(default_factory=list)
    _is_told: threading.Condition = field(default_factory=threading.Condition)

    def start(self, settings: Mapping[str, Any], log: Path) -> Operator:
        """Start an operator; settings are those of `OperatorSettings`, as JSON."""
        assert self.process.stdin is not None
        with self._is_told:
            before = len(self._born)
            self.process.stdin.write(json.dumps({"settings": settings, "log": str(log)}) + "\n")
            self.process.stdin.flush()
            is_born = self._is_told.wait_for(lambda: len(self._born) > before, START_SECONDS)
        assert is_born, "the nursery does not answer"
        return Operator(self._born[before], log, self)

    def listen(self) -> None:
        """Take in what the nursery tells until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            with self._is_told:
                if "code" in told:
                    self.codes[told["pid"]] = told["code"]
                else:
                    self.codes.pop(told["pid"], None)  # of an earlier one with the number
                    self._born.append(told["pid"])
                self._is_told.notify_all()


@contextmanager
def nursery() -> Iterator[Nursery]:
    """Run a nursery; whatever it has forked ends with it."""
    command = [sys.executable, "-m", "tests.support.proof.nursery"]
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    found = Nursery(process)
    thread = threading.Thread(target=found.listen, name="nursery", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(START_SECONDS)
        thread.join(START_SECONDS)
        process.stdout.close()


def main() -> None:
    """Fork what standard input asks for, and tell of births and deaths."""
    import graft_operator.handlers.operator  # noqa: F401 - so that no child has to

    gc.freeze()
    parent, (reader, writer) = os.getpid(), os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer)
    pending = b""
    while True:
        readable, _, _ = select.select([0, reader], [], [])
        if reader in readable:
            os.read(reader, 4096)
            _reap()
        if 0 in readable:
            chunk = os.read(0, 65_536)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _live(parent, request)
                _tell(pid=pid)


def _tell(**what: int) -> None:
    print(json.dumps(what), flush=True)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(pid=pid, code=os.waitstatus_to_exitcode(status))


def _live(parent: int, request: Mapping[str, Any]) -> None:
    """Be an operator, and never return."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    code = 1
    try:
        code = _operate(request["settings"])
    except BaseException:  # noqa: BLE001 - a fork must not go on as the nursery
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _operate(settings: Mapping[str, Any]) -> int:
    import asyncio

    from graft_operator.errors import GraftError
    from graft_operator.handlers.operator import run_operator
    from graft_operator.log import configure
    from graft_operator.settings import ControlSettings, OperatorSettings

    configure("text", verbose=False)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    control = ControlSettings(**given.pop("control", {}))
    kubeconfig = Path(given.pop("kubeconfig"))
    try:
        asyncio.run(run_operator(OperatorSettings(**given, kubeconfig=kubeconfig, control=control)))
    except GraftError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main()
