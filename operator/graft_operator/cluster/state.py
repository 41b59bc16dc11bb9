"""What local mode leaves in `DIR/.graft`: a lock, and the state that other commands read."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from graft_operator.cluster.manifests import Problem
from graft_operator.errors import LocalModeError
from graft_operator.resources.meta import Manifest

FOLDER = ".graft"
EVENTS_MAX = 200
VERSION = 1
LOCK_TRIES = 4
LOCK_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class EventRecord:
    """One event, for people."""

    time: str
    about: str
    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class Snapshot:
    """Everything a reader learns."""

    objects: tuple[Manifest, ...] = ()
    events: tuple[EventRecord, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass
class LocalState:
    """The state of one manifest folder, held by at most one running local mode."""

    manifests: Path
    _lock_file: IO[bytes] | None = None
    _events: deque[EventRecord] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    _dirty: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return self.manifests.resolve() / FOLDER

    def lock(self) -> None:
        """Take the folder.

        Raises:
            LocalModeError: Another local mode has it, or it cannot be written.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            (self.folder / ".gitignore").write_text("*\n")
            self._lock_file = (self.folder / "lock").open("ab")
            try:
                _lock_patiently(self._lock_file)
            except BlockingIOError:
                self.unlock()
                raise
        except BlockingIOError as error:
            raise LocalModeError(f"graft is already up in {self.manifests}") from error
        except OSError as error:
            raise LocalModeError(f"cannot use {self.folder}: {error.strerror}") from error

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def touch(self) -> None:
        """Note that something changed."""
        self._dirty.set()

    async def touched(self) -> None:
        """Wait until something changed since the last call."""
        await self._dirty.wait()
        self._dirty.clear()

    def add_event(self, event: EventRecord) -> None:
        """Keep an event."""
        self._events.append(event)
        self.touch()

    def save(self, objects: Iterable[Manifest], problems: Iterable[Problem]) -> None:
        """Write the state in one piece."""
        document = {
            "version": VERSION,
            "objects": list(objects),
            "events": [asdict(event) for event in self._events],
            "problems": [problem._asdict() for problem in problems],
        }
        partial = self.folder / "state.json.tmp"
        partial.write_text(json.dumps(document))
        partial.replace(self.folder / "state.json")

    def restore(self, kinds: Iterable[str]) -> list[Manifest]:
        """Return the objects of an earlier run; none if it left nothing readable."""
        wanted = frozenset(kinds)
        document = _read(self.folder / "state.json") or {}
        return [item for item in document.get("objects", []) if item.get("kind") in wanted]


def read_snapshot(manifests: Path) -> Snapshot:
    """Read the state of a running local mode.

    Raises:
        LocalModeError: None is running there.
    """
    folder = manifests.resolve() / FOLDER
    document = _read(folder / "state.json") if _is_held(folder / "lock") else None
    if document is None:
        raise LocalModeError(
            f"graft is not up in {manifests} (start it with: graft up {manifests})"
        )
    return Snapshot(
        tuple(document["objects"]),
        tuple(EventRecord(**event) for event in document["events"]),
        tuple(Problem(**problem) for problem in document["problems"]),
    )


def _lock_patiently(file: IO[bytes]) -> None:
    """Take a lock that a reader of the state may hold for an instant."""
    for _ in range(LOCK_TRIES - 1):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_SECONDS)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    is_ours = isinstance(document, dict) and document.get("version") == VERSION
    return document if is_ours else None
