"""Adapters by API in one pod: asks the manager for them, waits, and answers in errors of requests.

Implements `graft_runtime.server.adapter_port.RuntimeAdapters`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from graft_protocol.config import RuntimeConfig
from graft_protocol.desired import SERVED_NAME_MAX, AdapterEntry
from graft_protocol.reasons import Reason
from graft_protocol.source_rules import is_uri_allowed
from graft_runtime.adapters.blends import Blends, blend
from graft_runtime.adapters.manager import AdapterManager
from graft_runtime.adapters.revision import Phase, Revision
from graft_runtime.adapters.runtime_set import Outcome, RuntimeName, RuntimeSet
from graft_runtime.errors import (
    AdapterLoadError,
    AdapterUnavailableError,
    DuplicateAdapterError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
)
from graft_runtime.pod.state import PodState
from graft_runtime.server.adapter_port import Blend
from graft_runtime.server.backend import BASE_ALIASES
from graft_runtime.server.caller import may_use

logger = logging.getLogger(__name__)


class PodRuntimeAdapters:
    """What clients have loaded, and the manager that carries it out."""

    def __init__(
        self,
        config: RuntimeConfig,
        state: PodState,
        manager: AdapterManager,
        pod: str,
        busy: Callable[[], Iterable[str]],
    ) -> None:
        """Start with none.

        Args:
            config: The pod's.
            state: Whoever changes it wakes those who wait here.
            manager: Carries out what is wanted here.
            pod: The pod's name.
            busy: Returns the revisions with requests.
        """
        self._config = config
        self._state = state
        self._manager = manager
        self._busy = busy
        self.changed: Callable[[], None] = lambda: None
        """Called when the manager is to hear of `entries` again."""
        self._set = RuntimeSet(pod)
        self._blends = Blends(config.adapters.max_runtime_adapters)
        self._declared: frozenset[str] = frozenset()

    # What the pod calls

    def entries(self) -> tuple[AdapterEntry, ...]:
        """Return what the manager shall have beside the declared set."""
        return self._set.entries()

    def declare(self, entries: Iterable[AdapterEntry]) -> None:
        """Hear of the declared names: they are never shadowed."""
        names = frozenset(name for one in entries for name in (one.served_name, *one.aliases))
        self._declared = names
        for name in self._set.yield_to(names):
            logger.warning("a declared adapter takes the name", extra={"adapter": name})

    def advance(self) -> bool:
        """Follow what the manager found; tell whether `entries` changed."""
        return self._set.advance(self._look)

    # What clients ask

    async def load(self, name: str, uri: str, *, in_place: bool) -> None:
        """Make a name serve what lies at a URI; returns when it does.

        Raises:
            RequestError: It cannot; which one says why. Whatever served before serves on.
        """
        self._check_name(name, in_place=in_place)
        self._check_uri(uri)
        if self._set.get(name) is None:
            self._make_room()
        one = self._set.load(name, uri)
        self.changed()
        await self._until_there(one, self._config.server.request_timeout_seconds)

    async def unload(self, name: str) -> None:
        """Let a name that was loaded by API go; its running requests end with it.

        Raises:
            ModelNotFoundError: No such name was loaded by API.
        """
        if not self._set.unload(name):
            message = f"The lora adapter '{name}' cannot be found."
            raise ModelNotFoundError(message, param="lora_name")
        self.changed()

    async def demand(self, uri: str) -> str:
        """Return the name under which the adapter at a URI serves, after loading it if need be.

        Raises:
            RequestError: It cannot be loaded, or not in time.
        """
        self._check_uri(uri)
        one = self._set.get(uri)
        if one is None:
            self._check_name(uri, in_place=False)
            self._make_room()
            one = self._set.load(uri, uri, on_demand=True)
            self.changed()
        else:
            self._set.touch(one)
        if one.serving is None:
            await self._until_there(one, self._config.adapters.hold_timeout_seconds)
        return uri

    async def blend(self, wanted: Blend) -> str:
        """Return the name under which the weighted sum of adapters serves.

        Raises:
            RequestError: One of them does not serve, or the sum does not fit.
        """
        parts = [self._serving(name) for name in wanted.names]
        pages = self._config.adapters.device_pages
        merged = blend(parts, wanted.weights, pages)
        gone = self._blends.use(merged.entry.revision, frozenset(self._busy()))
        if gone is not None:
            self._manager.forget_derived(gone, time.monotonic())
        self._manager.derive(merged.entry, merged.parts)
        self.changed()
        return merged.entry.served_name

    def _serving(self, name: str) -> Revision:
        found = [
            one
            for one in self._manager.revisions()
            if one.serves
            and one.answers_to(name)
            and one.prepared is not None
            and may_use(one.entry.access)
        ]
        if not found:
            message = f"The model `{name}` does not exist."
            raise ModelNotFoundError(message, param="merged_adapters.ids")
        return max(found, key=lambda one: (one.entry.weight, one.entry.revision))

    def _check_name(self, name: str, *, in_place: bool) -> None:
        base = self._config.model.served_name
        if not name or len(name) > SERVED_NAME_MAX or "\n" in name:
            message = f"a name has between 1 and {SERVED_NAME_MAX} characters"
            raise InvalidRequestError(message, param="lora_name")
        if name in BASE_ALIASES or name == base or name in self._declared:
            message = f"The lora adapter '{name}' has already been loaded: the name is declared."
            raise DuplicateAdapterError(message, param="lora_name")
        if self._set.get(name) is not None and not in_place:
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
            raise DuplicateAdapterError(message, param="lora_name")

    def _check_uri(self, uri: str) -> None:
        """Refuse what the service does not list: with no list, nothing is loaded by API."""
        allowed = self._config.adapters.allowed_uris
        if not allowed or not is_uri_allowed(uri, allowed):
            message = "the service does not allow adapters from this URI"
            raise InvalidRequestError(message, param="lora_path")

    def _make_room(self) -> None:
        limit = self._config.adapters.max_runtime_adapters
        if len(self._set) < limit:
            return
        idle = self._set.idle_on_demand(frozenset(self._busy()))
        if idle is None:
            message = f"{limit} adapters have been loaded by API: unload one first"
            raise OverloadedError(message, retry_after_seconds=1)
        self._set.unload(idle)

    async def _until_there(self, one: RuntimeName, timeout_seconds: float) -> None:
        """Wait until what is on its way serves or has failed."""
        if not await self._state.wait_for(lambda: _is_settled(one), timeout_seconds):
            message = f"The model `{one.name}` is being loaded."
            raise AdapterUnavailableError(message, param="model", retry_after_seconds=1)
        if one.failure is not None:
            reason, text = one.failure
            if reason is Reason.SOURCE_NOT_FOUND:
                raise ModelNotFoundError(f"{reason}: {text}", param="lora_path")
            raise AdapterLoadError(f"{reason}: {text}")
        if one.gone:
            raise AdapterLoadError(f"`{one.name}` was unloaded while it was loaded")

    def _look(self, name: str) -> Outcome:
        revision = self._manager.get(name)
        if revision is None:
            return Outcome()
        if revision.phase is Phase.FAILED:
            return Outcome(failure=(revision.reason, revision.message))
        resolved = revision.phase is Phase.RESOLVED and revision.prepared is not None
        digest = revision.prepared.digest if resolved and revision.prepared else None
        return Outcome(serves=revision.serves, digest=digest)


def _is_settled(one: RuntimeName) -> bool:
    return one.coming is None or one.gone
