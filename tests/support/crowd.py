"""Clients of one pod with very many adapters, who know what every answer must be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from graft_protocol.desired import AdapterEntry, Tier
from graft_protocol.reasons import AdapterState
from tests.support.golden_adapters import GoldenAdapter
from tests.support.pod import RunningPod, entry_for

T = TypeVar("T")
Tokens = tuple[int, ...]

POLL_SECONDS = 0.5
"""Between looks at a report of a thousand adapters, which costs what it tells of."""
DEADLINE_SECONDS = 1200.0
MOST_ASKS = 150


class LoopThread:
    """An event loop beside the tests' own thread, so that requests go on between two rules."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(eq=False)
class Ask:
    """One request, and what may be answered to it."""

    name: str
    allowed: set[Tokens]
    """Of the versions that the name has had since it was sent."""
    may_miss: bool
    """Whether the name has not been there for certain all the time."""


@dataclass(frozen=True)
class Version:
    """One version of a name."""

    adapter: GoldenAdapter
    weight: int = 100


@dataclass
class Crowd:
    """The desired set as it is written, and the requests under way."""

    pod: RunningPod
    prompt: str
    length: int
    versions: dict[str, tuple[Version, ...]] = field(default_factory=dict)
    uncertain: set[str] = field(default_factory=set)
    """Names that may not serve yet, or may still serve."""
    asks: dict[asyncio.Task[None], Ask] = field(default_factory=dict)
    num_answers: int = 0
    device_names: frozenset[str] = frozenset()
    """Names that are brought to the device ahead of requests."""
    _past: dict[str, set[Tokens]] = field(default_factory=dict)
    _entries: dict[tuple[str, int], AdapterEntry] = field(default_factory=dict)

    # What is desired

    def put(self, name: str, *versions: Version) -> None:
        """Let a name mean these versions from now on; none removes it."""
        said = {one.adapter.tokens[: self.length] for one in versions}
        for ask in self.asks.values():
            if ask.name == name:
                ask.allowed |= said
                ask.may_miss |= not versions
        if not versions or name not in self.versions:
            self.uncertain.add(name)
        # Until the pod has read the new set it may answer as before.
        self._past.setdefault(name, set()).update(said)
        self.versions[name] = versions
        if not versions:
            del self.versions[name]

    def write(self) -> None:
        self.pod.desire(self.entries())

    def entries(self) -> list[AdapterEntry]:
        return [
            self._entry(name, version)
            for name, versions in self.versions.items()
            for version in versions
        ]

    def _entry(self, name: str, version: Version) -> AdapterEntry:
        key = name, version.adapter.number
        if key not in self._entries:
            self._entries[key] = entry_for(name, version.adapter.folder)
        tier = Tier.DEVICE if name in self.device_names else Tier.DISK
        return self._entries[key].model_copy(update={"weight": version.weight, "tier": tier})

    async def until_settled(self) -> None:
        """Wait until the pod serves exactly what is desired."""
        wanted = {entry.revision: entry.weight for entry in self.entries()}

        def same(states: dict[str, AdapterState]) -> bool:
            available = {one for one, state in states.items() if state is AdapterState.AVAILABLE}
            return available == states.keys() == wanted.keys()

        await self.pod.until(self.pod.states, same, DEADLINE_SECONDS, POLL_SECONDS)
        self.uncertain.clear()
        self._past = {
            name: {one.adapter.tokens[: self.length] for one in versions}
            for name, versions in self.versions.items()
        }

    # What is asked

    async def ask(self, names: Iterable[str]) -> None:
        """Send requests and go on, unless there are so many that some would be turned away."""
        if len(self.asks) > MOST_ASKS:
            await self.all_answered()
        for name in names:
            self._launch(name, self._answered)

    async def ask_and_leave(self, names: Iterable[str], num_events: int) -> None:
        """Send requests whose clients leave after some tokens."""
        if len(self.asks) > MOST_ASKS:
            await self.all_answered()

        async def left(ask: Ask) -> None:
            body = self._body(ask.name)
            request = self.pod.client.stream("POST", f"{self.pod.url}/generate_stream", json=body)
            async with request as answer:
                if answer.status_code != 200:
                    assert ask.may_miss, await answer.aread()
                    return
                lines = answer.aiter_lines()
                for _ in range(num_events):
                    await anext(lines, "")

        for name in names:
            self._launch(name, left)

    async def all_answered(self) -> None:
        """Wait for every request that is under way; each has checked its answer."""
        await asyncio.gather(*self.asks)

    def _launch(self, name: str, work: Any) -> None:
        ask = Ask(name, set(self._past.get(name, ())), self._may_miss(name))
        task = asyncio.create_task(work(ask))
        self.asks[task] = ask
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            del self.asks[task]  # a failed one stays for `all_answered`

    def _may_miss(self, name: str) -> bool:
        return name in self.uncertain or name not in self.versions

    async def _answered(self, ask: Ask) -> None:
        body = self._body(ask.name)
        answer = await self.pod.client.post(f"{self.pod.url}/generate", json=body)
        if answer.status_code in (404, 503):
            assert ask.may_miss, f"{ask.name}: {answer.text}"
            return
        assert answer.status_code == 200, f"{ask.name}: {answer.text}"
        tokens = tuple(token["id"] for token in answer.json()["details"]["tokens"])
        assert tokens in ask.allowed, f"{ask.name} said {tokens}, not one of {ask.allowed}"
        self.num_answers += 1

    def _body(self, name: str) -> dict[str, Any]:
        parameters = {
            "adapter_id": name,
            "max_new_tokens": self.length,
            "ignore_eos_token": True,
            "details": True,
        }
        return {"inputs": self.prompt, "parameters": parameters}
