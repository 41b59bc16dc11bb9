"""Starts and stops the cluster's long-running programs; pid files remember them between commands.

Knows nothing of what the programs do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from e2e.cluster.errors import LabError
from e2e.cluster.paths import Lab

POLL_SECONDS = 0.1
STOP_SECONDS = 10.0
"""How long a program may take to end before it is killed."""
DEAD = "dead"


def wait_until(condition: Callable[[], object], what: str, *, seconds: float) -> None:
    """Return as soon as the condition holds.

    Raises:
        LabError: It does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(POLL_SECONDS)


class Processes:
    """The programs of one cluster."""

    _children: ClassVar[dict[str, subprocess.Popen[bytes]]] = {}
    """What this Python process has started, by name: to be reaped by it, so not to be forgotten."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._pids = lab.state / "pids"
        self._logs = lab.state / "log"

    def start(self, name: str, program: str, *flags: str | Path) -> None:
        """Run a program in a session of its own, unless it runs already."""
        if self.runs(name):
            return
        for folder in (self._pids, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        with self._log(name).open("ab") as log:
            child = subprocess.Popen(
                [self._lab.program(program), *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._lab.environment,
                cwd=self._lab.state,
                start_new_session=True,
            )
        self._children[name] = child
        self._pid_file(name).write_text(f"{child.pid} {_started_at(child.pid)}\n")

    def wait(self, condition: Callable[[], object], what: str, names: Sequence[str]) -> None:
        """Wait for a condition that the named programs bring about.

        Raises:
            LabError: One of them ended, or it took more than a minute and a half.
        """

        def holds_or_died() -> bool:
            for name in names:
                if not self.runs(name):
                    raise LabError(f"{name} ended while starting; its log ends:\n{self.tail(name)}")
            return bool(condition())

        wait_until(holds_or_died, what, seconds=90)

    def stop(self, name: str) -> None:
        """End a program, by force if it does not listen, and forget it."""
        if self.runs(name):
            pid = self._pid(name)
            os.kill(pid, signal.SIGTERM)
            try:
                wait_until(lambda: not self.runs(name), f"{name} to end", seconds=STOP_SECONDS)
            except LabError:
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not self.runs(name), f"{name} to die", seconds=STOP_SECONDS)
        self._pid_file(name).unlink(missing_ok=True)

    def runs(self, name: str) -> bool:
        """Tell whether the program that was started still runs, and not another with its pid."""
        try:
            pid, started_at = self._pid_file(name).read_text().split()
        except (FileNotFoundError, ValueError):
            return False
        child = self._children.get(name)
        if child is not None and child.pid == int(pid):
            # Only its parent can tell: the first thread of a program that ends is a zombie before
            # the others have ended, and until then its ports are taken.
            return child.poll() is None
        return _started_at(int(pid)) == started_at != DEAD

    def running(self) -> list[str]:
        """Return the names of all that run."""
        return [path.name for path in sorted(self._pids.glob("*")) if self.runs(path.name)]

    def tail(self, name: str, num_lines: int = 20) -> str:
        """Return the end of a program's log."""
        try:
            return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-num_lines:])
        except FileNotFoundError:
            return ""

    def _pid(self, name: str) -> int:
        return int(self._pid_file(name).read_text().split()[0])

    def _pid_file(self, name: str) -> Path:
        return self._pids / name

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def _started_at(pid: int) -> str:
    """Return the start time of a process in clock ticks; a zombie counts as dead."""
    try:
        # The second field, the command's name, may hold anything: count from its closing bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return DEAD
    return DEAD if fields[0] == "Z" else fields[19]


def require_commands(*names: str) -> None:
    """Check that the machine has these commands.

    Raises:
        LabError: It lacks one.
    """
    lacking = [name for name in names if shutil.which(name) is None]
    if lacking:
        raise LabError(f"not on this machine: {', '.join(lacking)}")
