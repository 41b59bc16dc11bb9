"""A thousand adapters in one pod: whatever goes on, each answer is its own adapter's.

What an adapter must say is known from transformers (`tests.support.golden_adapters`), and no two
say the same.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from tokenizers import Tokenizer

from graft_protocol.desired import Tier
from tests.support.crowd import Crowd, LoopThread, Version
from tests.support.golden_adapters import GoldenAdapter, make_golden_adapters
from tests.support.pod import run_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
PROMPT = "Once upon a time"
NUM_NAMES = 1000
NUM_TOGETHER = 64
NUM_PAGES = 16
LENGTH = 12
"""Tokens of an answer while the set changes."""
LONG_LENGTH = 120
"""Tokens of an answer where all must be in one batch."""
MOVING = tuple(f"moving-{index}" for index in range(6))


@dataclass(frozen=True)
class Library:
    """All adapters of the tests and the cache they share."""

    standing: list[GoldenAdapter]
    moving: list[GoldenAdapter]
    together: list[GoldenAdapter]
    cache_dir: Path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    prompt = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(PROMPT).ids
    folder = tmp_path_factory.mktemp("adapters")
    count = NUM_NAMES + 24
    short = make_golden_adapters(TINY, folder / "short", prompt, count=count, length=LENGTH)
    together = make_golden_adapters(
        TINY, folder / "long", prompt, count=NUM_TOGETHER, length=LONG_LENGTH, beside=short
    )
    everything = [one.tokens[:LENGTH] for one in short + together]
    assert len(set(everything)) == len(everything), "two adapters say the same"
    cache_dir = tmp_path_factory.mktemp("cache")
    return Library(short[:NUM_NAMES], short[NUM_NAMES:], together, cache_dir)


@contextmanager
def crowded_pod(
    library: Library, length: int, **sections: Any
) -> Iterator[tuple[LoopThread, Crowd]]:
    """Run a pod in which a thousand adapters are registered."""
    loop = LoopThread()
    pods = run_pod(TINY, cache_dir=library.cache_dir, **sections)
    try:
        crowd = Crowd(loop.run(pods.__aenter__()), PROMPT, length)
        for index, adapter in enumerate(library.standing):
            crowd.put(f"standing-{index}", Version(adapter))
        yield loop, crowd
        status = loop.run(crowd.pod.status())
        assert status.engine_restarts == status.loader_restarts == 0, crowd.pod.log_tail()
    finally:
        loop.run(pods.__aexit__(None, None, None))
        loop.close()


async def ask_all_at_once(crowd: Crowd, names: Sequence[str]) -> None:
    """Let requests gather in front of the engine, so that all are active together."""
    engine, _ = crowd.pod.children()["engine"]
    os.kill(engine, signal.SIGSTOP)
    try:
        await crowd.ask(names)
        await crowd.pod.until(
            crowd.pod.status,
            lambda status: sum(one.active_requests > 0 for one in status.revisions) == len(names),
            poll_seconds=0.1,
        )
    finally:
        os.kill(engine, signal.SIGCONT)


def test_sixty_four_adapters_of_a_thousand_speak_in_one_batch(library: Library) -> None:
    names = [f"together-{index}" for index in range(NUM_TOGETHER)]
    sections = {"adapters": {"devicePages": 128}, "engine": {"maxRunning": NUM_TOGETHER}}
    with crowded_pod(library, LONG_LENGTH, **sections) as (loop, crowd):
        crowd.device_names = frozenset(names)
        for name, adapter in zip(names, library.together, strict=True):
            crowd.put(name, Version(adapter))
        crowd.write()
        loop.run(crowd.until_settled())

        loop.run(ask_all_at_once(crowd, names))
        running = crowd.pod.until(
            crowd.pod.status, lambda status: status.load.running >= NUM_TOGETHER
        )
        loop.run(running)
        loop.run(crowd.all_answered())
        assert crowd.num_answers == NUM_TOGETHER
        assert len(crowd.versions) > NUM_NAMES


class Changes(RuleBasedStateMachine):
    """Requests, cancellations, loads, version changes, weights and removals in any order."""

    loop: LoopThread
    crowd: Crowd
    library: list[GoldenAdapter]
    happened: ClassVar[Counter[str]] = Counter()

    @initialize()
    def bring_all_moving_ones(self) -> None:
        for name, adapter in zip(MOVING, self.library, strict=False):
            if name not in self.crowd.versions:
                self.crowd.put(name, Version(adapter))
        self.crowd.write()

    def pairs(self) -> list[str]:
        """Return the names that have two versions."""
        return [name for name in MOVING if len(self.crowd.versions.get(name, ())) == 2]

    @rule(first=st.integers(0, NUM_NAMES - 1), count=st.integers(1, 64), stride=st.integers(1, 40))
    def ask_standing_ones(self, first: int, count: int, stride: int) -> None:
        numbers = [(first + index * stride) % NUM_NAMES for index in range(count)]
        self.loop.run(self.crowd.ask(f"standing-{number}" for number in numbers))

    @rule(names=st.lists(st.sampled_from(MOVING), min_size=1, max_size=20))
    def ask_moving_ones(self, names: list[str]) -> None:
        self.loop.run(self.crowd.ask(names))

    @rule(
        number=st.integers(0, NUM_NAMES - 1),
        moving=st.sampled_from(MOVING),
        num_events=st.integers(0, LENGTH),
    )
    def leave_early(self, number: int, moving: str, num_events: int) -> None:
        names = [f"standing-{number}", moving] * 3
        self.loop.run(self.crowd.ask_and_leave(names, num_events))
        self.happened["left"] += 1

    @rule(name=st.sampled_from(MOVING), version=st.integers(0, 23))
    def change_version(self, name: str, version: int) -> None:
        """Put a version beside the one before it, which stands by, as the operator does."""
        new = Version(self.library[version])
        before = [one for one in self.crowd.versions.get(name, ()) if one.weight]
        standby = [Version(one.adapter, 0) for one in before[:1] if one.adapter != new.adapter]
        self.crowd.put(name, new, *standby)
        self.crowd.write()
        if standby:
            self.happened["replaced"] += 1

    @rule(
        index=st.integers(0, len(MOVING) - 1),
        weights=st.sampled_from([(50, 50), (90, 10), (0, 100)]),
    )
    def share(self, index: int, weights: tuple[int, int]) -> None:
        """Move weight between two versions, also back.

        Without a precondition: the pod outlives the example, and whether a rule may be drawn must
        not depend on what an earlier example left.
        """
        if pairs := self.pairs():
            self.shift(pairs[index % len(pairs)], weights)
            self.crowd.write()

    def shift(self, name: str, weights: tuple[int, int]) -> None:
        pairs = zip(self.crowd.versions[name], weights, strict=True)
        self.crowd.put(name, *(Version(one.adapter, weight) for one, weight in pairs))
        self.happened["shifted"] += 1

    @rule(name=st.sampled_from(MOVING))
    def remove(self, name: str) -> None:
        if name in self.crowd.versions:
            self.crowd.put(name)
            self.crowd.write()
            self.happened["removed"] += 1

    @rule()
    def settle(self) -> None:
        """Wait for all versions; then bring changes a step further, as the operator does."""
        self.loop.run(self.crowd.until_settled())
        for index, name in enumerate(self.pairs()):
            if index % 2:
                self.crowd.put(name, max(self.crowd.versions[name], key=lambda one: one.weight))
            else:
                self.shift(name, (80, 20))
        self.crowd.write()

    @rule()
    def hear_everybody_out(self) -> None:
        self.loop.run(self.crowd.all_answered())

    def teardown(self) -> None:
        self.loop.run(self.crowd.all_answered())
        self.loop.run(self.crowd.until_settled())
        self.loop.run(self.crowd.ask(self.crowd.versions.keys() & set(MOVING)))
        self.loop.run(self.crowd.all_answered())
        idle = self.crowd.pod.until(self.crowd.pod.gauges, lambda found: not any(found.values()))
        self.loop.run(idle)


def test_a_thousand_adapters_on_room_for_sixteen_never_mix_whatever_changes(
    library: Library,
) -> None:
    sections = {"adapters": {"devicePages": NUM_PAGES, "maxRank": 64}, "engine": {"maxRunning": 64}}
    with crowded_pod(library, LENGTH, **sections) as (loop, crowd):
        crowd.write()
        loop.run(crowd.until_settled())
        names = [f"standing-{index * 15}" for index in range(NUM_TOGETHER)]
        loop.run(ask_all_at_once(crowd, names))
        loop.run(crowd.all_answered())
        assert crowd.num_answers == NUM_TOGETHER
        # Each took a page or two; where there is room for sixteen, the others have been evicted.
        tiers = [one.tier for one in loop.run(crowd.pod.status()).revisions]
        assert 0 < tiers.count(Tier.DEVICE) <= NUM_PAGES

        Changes.loop, Changes.crowd, Changes.library = loop, crowd, library.moving
        run_state_machine_as_test(
            Changes,
            settings=settings(
                max_examples=8,
                stateful_step_count=25,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],  # what has gone wrong once stays so: nothing to shrink
            ),
        )
        assert crowd.num_answers > 2 * NUM_TOGETHER
        assert Changes.happened.keys() == {"left", "replaced", "shifted", "removed"}
