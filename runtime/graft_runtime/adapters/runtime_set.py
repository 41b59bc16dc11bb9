"""The adapters that clients have loaded over HTTP, beside the desired set. Pure.

They live as long as the pod, never take a declared name, and go through the same manager, loader
and engine as declared ones. Their revisions are in a namespace that Kubernetes cannot have, so that
a report tells them apart. `graft_runtime.pod.runtime_adapters` drives it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from graft_protocol.desired import AdapterEntry
from graft_protocol.digest import content_hash
from graft_protocol.reasons import Reason
from graft_protocol.revisions import RUNTIME_NAMESPACE, pending_revision, pinned_revision


@dataclass(frozen=True)
class Outcome:
    """How a revision stands, as far as it matters here."""

    serves: bool = False
    digest: str | None = None
    """Of a pending revision, once it is known."""
    failure: tuple[Reason, str] | None = None


Look = Callable[[str], Outcome]
"""Returns how a revision stands."""


@dataclass(eq=False)
class RuntimeName:
    """One name and what has been asked for under it."""

    name: str
    on_demand: bool = False
    """Whether a request named its source, so that it may go again when nobody uses it."""
    serving: AdapterEntry | None = None
    """The last version that has been available; None before the first."""
    coming: AdapterEntry | None = None
    """The version on its way: pending, then pinned."""
    failure: tuple[Reason, str] | None = None
    """Why the last version that was on its way did not come."""
    gone: bool = False
    """Whether it has been unloaded, or has yielded to a declared name."""
    last_used: int = 0

    def entries(self) -> tuple[AdapterEntry, ...]:
        """Return what the manager shall have: the one on its way, with the old one standing by."""
        if self.coming is None:
            return () if self.serving is None else (self.serving,)
        if self.serving is None or self.serving.revision == self.coming.revision:
            return (self.coming,)
        return (self.coming, self.serving.model_copy(update={"weight": 0}))


@dataclass
class RuntimeSet:
    """All of them."""

    pod: str
    _names: dict[str, RuntimeName] = field(default_factory=dict)
    _clock: int = 0

    def __len__(self) -> int:
        return len(self._names)

    def get(self, name: str) -> RuntimeName | None:
        """Return what is known of a name."""
        return self._names.get(name)

    def entries(self) -> tuple[AdapterEntry, ...]:
        """Return all entries for the manager."""
        return tuple(entry for one in self._names.values() for entry in one.entries())

    def load(self, name: str, uri: str, *, on_demand: bool = False) -> RuntimeName:
        """Want a name to mean what lies at a URI now; another version stays until it is there."""
        one = self._names.setdefault(name, RuntimeName(name, on_demand))
        self.touch(one)
        version = content_hash(f"{uri}\n{self._clock}".encode())[:12]
        one.failure = None
        one.coming = AdapterEntry(
            revision=pending_revision(RUNTIME_NAMESPACE, name, version),
            served_name=name,
            uri=uri,
            resolver=self.pod,
        )
        return one

    def touch(self, one: RuntimeName) -> None:
        """Note that a name is used."""
        self._clock += 1
        one.last_used = self._clock

    def unload(self, name: str) -> bool:
        """Forget a name; False if there is none."""
        one = self._names.pop(name, None)
        if one is not None:
            one.gone = True
        return one is not None

    def advance(self, look: Look) -> bool:
        """Follow what the manager found; tell whether `entries` changed."""
        waiting = [one for one in self._names.values() if one.coming is not None]
        changed = [one for one in waiting if self._advance(one, look)]
        return bool(changed)

    def yield_to(self, declared: AbstractSet[str]) -> list[str]:
        """Forget the names that are declared now, and return them."""
        taken = sorted(self._names.keys() & declared)
        for name in taken:
            self.unload(name)
        return taken

    def idle_on_demand(self, busy: AbstractSet[str]) -> str | None:
        """Return the longest unused name that may go, if any.

        Args:
            busy: Revisions with requests.
        """
        idle = [
            one
            for one in self._names.values()
            if one.on_demand
            and one.coming is None
            and busy.isdisjoint(entry.revision for entry in one.entries())
        ]
        return min(idle, key=lambda one: one.last_used).name if idle else None

    def _advance(self, one: RuntimeName, look: Look) -> bool:
        coming = one.coming
        if coming is None:
            return False
        found = look(coming.revision)
        if found.failure is not None:
            one.failure, one.coming = found.failure, None
            if one.serving is None:
                self.unload(one.name)
        elif found.serves:
            one.serving, one.coming = coming, None
        elif coming.digest is None and found.digest is not None:
            revision = pinned_revision(RUNTIME_NAMESPACE, one.name, found.digest)
            pinned = {"revision": revision, "digest": found.digest, "resolver": None}
            one.coming = coming.model_copy(update=pinned)
        else:
            return False
        return True
