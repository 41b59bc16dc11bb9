"""The work queue: each key once, one worker per key, nothing lost."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_operator.reconcile.queue import Backoff, WorkQueue

QUICK = Backoff(0.001, 0.01)
DEADLINE_SECONDS = 5.0


async def until_idle(queue: WorkQueue[str]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not queue.is_idle:
            await asyncio.sleep(0)


async def test_a_key_added_many_times_is_worked_on_once() -> None:
    seen: list[str] = []

    async def handle(key: str) -> None:
        seen.append(key)

    queue = WorkQueue(handle, workers=2, backoff=QUICK)
    for _ in range(10):
        queue.add("a")
    queue.add("b")
    queue.start()
    await until_idle(queue)
    assert seen == ["a", "b"]
    await queue.stop()


async def test_a_key_added_while_it_is_worked_on_is_worked_on_again() -> None:
    started, release, seen = asyncio.Event(), asyncio.Event(), Counter[str]()

    async def handle(key: str) -> None:
        seen[key] += 1
        started.set()
        await release.wait()

    queue = WorkQueue(handle, workers=4, backoff=QUICK)
    queue.start()
    queue.add("a")
    await started.wait()
    queue.add("a")
    queue.add("a")
    assert seen["a"] == 1
    release.set()
    await until_idle(queue)
    assert seen["a"] == 2
    await queue.stop()


async def test_a_failing_key_is_tried_again_and_holds_up_no_other() -> None:
    attempts, done = Counter[str](), asyncio.Event()

    async def handle(key: str) -> None:
        attempts[key] += 1
        if key == "bad" and attempts[key] < 4:
            raise ValueError("not yet")
        if key == "bad":
            done.set()

    queue = WorkQueue(handle, workers=1, backoff=QUICK)
    queue.start()
    queue.add("bad")
    queue.add("good")
    async with asyncio.timeout(DEADLINE_SECONDS):
        await done.wait()
    assert attempts == {"bad": 4, "good": 1}
    await queue.stop()


async def test_a_new_event_ends_the_pause_of_a_failed_key() -> None:
    attempts: list[str] = []
    second = asyncio.Event()

    async def handle(key: str) -> None:
        attempts.append(key)
        if len(attempts) == 1:
            raise ValueError("once")
        second.set()

    queue = WorkQueue(handle, workers=1, backoff=Backoff(3600, 3600))
    queue.start()
    queue.add("a")
    await until_idle(queue)
    queue.add("a")
    async with asyncio.timeout(DEADLINE_SECONDS):
        await second.wait()
    await queue.stop()


async def test_a_handler_may_ask_to_be_called_again() -> None:
    calls = 0
    done = asyncio.Event()

    async def handle(_key: str) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 3:
            done.set()
            return None
        return 0.001

    queue = WorkQueue(handle, workers=1, backoff=QUICK)
    queue.start()
    queue.add("a")
    async with asyncio.timeout(DEADLINE_SECONDS):
        await done.wait()
    await until_idle(queue)
    assert calls == 3
    await queue.stop()


@pytest.mark.parametrize(("failures", "pause"), [(1, 0.5), (2, 1.0), (4, 4.0), (20, 60.0)])
def test_pauses_double_up_to_a_limit(failures: int, pause: float) -> None:
    assert Backoff(0.5, 60.0).pause(failures) == pause


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abcd")),
        st.tuples(st.just("later"), st.sampled_from("abcd")),
        st.tuples(st.just("release"), st.sampled_from("abcd")),
        st.tuples(st.just("fail"), st.sampled_from("abcd")),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 3))
def test_whatever_happens_every_change_is_seen_by_a_later_run(
    steps: list[tuple[str, str]], workers: int
) -> None:
    """Each `add` is a change; a run that starts after it sees it. No key runs twice at a time."""

    async def run() -> None:
        changes, seen, running = Counter[str](), Counter[str](), Counter[str]()
        gates: dict[str, asyncio.Future[None]] = {}

        async def handle(key: str) -> None:
            running[key] += 1
            assert running[key] == 1, "two workers on one key"
            looked_at = changes[key]
            gates[key] = asyncio.get_running_loop().create_future()
            try:
                await gates[key]
                seen[key] = max(seen[key], looked_at)
            finally:
                running[key] -= 1

        queue = WorkQueue(handle, workers=workers, backoff=QUICK)
        queue.start()
        for verb, key in steps:
            if verb == "add":
                changes[key] += 1
                queue.add(key)
            elif verb == "later":
                queue.add_after(key, 0.001)
            elif key in gates and not gates[key].done():
                gate = gates[key]
                gate.set_result(None) if verb == "release" else gate.set_exception(OSError("x"))
            for _ in range(3):
                await asyncio.sleep(0)
            queue.check_integrity()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while any(seen[key] < changes[key] for key in changes):
                for gate in list(gates.values()):
                    if not gate.done():
                        gate.set_result(None)
                await asyncio.sleep(0)
                queue.check_integrity()
        await queue.stop()

    asyncio.run(run())
