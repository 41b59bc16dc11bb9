"""A whole pod under load: cancellation, crashes, version changes, shutdown; all of it real."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graft_protocol.desired import AdapterEntry
from graft_protocol.reasons import AdapterState, Reason
from graft_runtime.adapters.loader import MEMORY_BYTES, NICENESS
from tests.support.peft_adapters import make_adapter
from tests.support.pod import RunningPod, entry_for, run_pod, stream_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(TINY, folder / name, rank=rank, seed=seed)
        for seed, (name, rank) in enumerate({"v1": 4, "v2": 8, "other": 20}.items(), start=1)
    }


@pytest.fixture
async def pod() -> AsyncIterator[RunningPod]:
    async with run_pod(TINY) as running:
        yield running


async def test_a_thousand_cancelled_requests_leave_nothing_behind(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    entry = entry_for("a", adapters["v1"])
    pod.desire([entry])
    await pod.until_available(entry)
    chance = random.Random(7)

    async def ask_and_leave(number: int) -> None:
        body = {
            "model": "a" if number % 2 else "base",
            "prompt": PROMPT * chance.choice([1, 4, 30]),
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": number % 3 > 0,
        }
        patience = chance.choice([0.001, 0.01, 0.05, 0.2, 0.5])
        try:
            async with asyncio.timeout(patience):
                answer = await pod.client.post(f"{pod.url}/v1/completions", json=body)
                assert answer.status_code in (200, 429), answer.text
        except TimeoutError:
            pass

    for start in range(0, 1000, 100):
        await asyncio.gather(*(ask_and_leave(start + number) for number in range(100)))
    gauges = await pod.until(pod.gauges, lambda found: not any(found.values()))
    assert set(gauges.values()) == {0.0}
    assert await pod.complete(PROMPT) == await pod.complete(PROMPT, model="base")
    assert (await pod.status()).engine_restarts == 0


async def test_killing_the_engine_under_load_loses_no_later_request(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    entry = entry_for("a", adapters["v1"])
    pod.desire([entry])
    await pod.until_available(entry)
    expected = {model: await pod.complete(PROMPT, model=model) for model in ("base", "a")}
    assert len(set(expected.values())) == 2
    long = {"prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True}

    async def ask_long() -> httpx.Response:
        return await pod.client.post(f"{pod.url}/v1/completions", json=long)

    doomed = [asyncio.create_task(ask_long()) for _ in range(6)]
    await pod.until(pod.status, lambda status: status.load.running == 6)
    before = pod.children()
    os.kill(before["engine"][0], signal.SIGKILL)
    for task in doomed:
        answer = await task
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "engine_failed"
    later = await asyncio.gather(
        *(pod.complete(PROMPT, model=model) for model in ["base", "a"] * 5)
    )
    assert later == [expected["base"], expected["a"]] * 5
    status = await pod.status()
    assert status.engine_restarts == 1
    assert pod.children()["server"] == before["server"]
    assert pod.children()["loader"] == before["loader"]
    await pod.until(pod.gauges, lambda found: not any(found.values()))


async def test_a_slot_file_that_is_damaged_on_disk_is_made_anew_and_disturbs_no_other(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    entries = [entry_for("a", adapters["v1"]), entry_for("b", adapters["v2"])]
    pod.desire(entries)
    await pod.until_available(*entries)
    expected = {model: await pod.complete(PROMPT, model=model) for model in ("a", "b")}
    (slot,) = pod.paths.cache_dir.glob(
        f"adapters/{str(entries[0].digest).removeprefix('sha256:')}/*.slot"
    )
    slot.write_bytes(slot.read_bytes()[:1000])
    os.kill(pod.children()["engine"][0], signal.SIGKILL)
    await pod.until(pod.status, lambda status: status.engine_restarts == 1)
    assert await pod.complete(PROMPT, model="b") == expected["b"]

    async def ask() -> httpx.Response:
        body = {"model": "a", "prompt": PROMPT, "max_tokens": 1}
        return await pod.client.post(f"{pod.url}/v1/completions", json=body)

    await pod.until(ask, lambda answer: answer.status_code == httpx.codes.OK)
    assert await pod.complete(PROMPT, model="a") == expected["a"]
    assert slot.stat().st_size > 1000


async def test_a_dead_loader_comes_back_and_goes_on(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    before = pod.children()
    os.kill(before["loader"][0], signal.SIGKILL)
    entry = entry_for("a", adapters["v1"])
    pod.desire([entry])
    await pod.until_available(entry)
    assert pod.children()["engine"] == before["engine"]
    assert (await pod.status()).loader_restarts == 1


async def test_the_loader_gives_way_and_cannot_take_the_pods_memory(pod: RunningPod) -> None:
    loader, _ = pod.children()["loader"]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, loader) == min(own + NICENESS, 19)
    limits = Path(f"/proc/{loader}/limits").read_text().splitlines()
    (data,) = [line.split() for line in limits if line.startswith("Max data size")]
    assert int(data[3]) == MEMORY_BYTES


async def test_a_version_change_under_load_gives_each_request_exactly_one_version(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    old, new = entry_for("a", adapters["v1"]), entry_for("a", adapters["v2"])
    pod.desire([old])
    await pod.until_available(old)
    length = {"model": "a", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    golden_old = await pod.complete(PROMPT, **length)
    before = pod.children()
    outputs: list[str] = []
    enough = asyncio.Event()

    async def keep_asking() -> None:
        while not enough.is_set():
            outputs.append(await pod.complete(PROMPT, **length))

    async def stream_one() -> str:
        body = {"prompt": PROMPT, "model": "a", "max_tokens": 800, "ignore_eos": True}
        body["temperature"] = 0
        return "".join([text async for text in stream_tokens(pod.client, pod.url, body)])

    golden_stream = await stream_one()
    askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
    running = asyncio.create_task(stream_one())
    await pod.until(pod.status, lambda status: status.load.running == 5)
    pod.desire([new, old.model_copy(update={"weight": 0})])
    await pod.until_available(new)
    pod.desire([new])
    await pod.until(pod.states, lambda states: set(states) == {new.revision})
    golden_new = await pod.complete(PROMPT, **length)
    enough.set()
    await asyncio.gather(*askers)
    assert await running == golden_stream, "the running stream was disturbed"
    assert golden_old != golden_new
    assert set(outputs) == {golden_old, golden_new}
    assert pod.children() == before, "something restarted"


async def test_an_adapter_that_does_not_drain_ends_its_requests_alone(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    gone = entry_for("gone", adapters["v1"], drain_timeout_seconds=0)
    stays = entry_for("stays", adapters["other"])
    pod.desire([gone, stays])
    await pod.until_available(gone, stays)
    body = {"prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True, "temperature": 0}

    async def stream_what_stays() -> str:
        asked = body | {"model": "stays", "max_tokens": 400}
        return "".join([text async for text in stream_tokens(pod.client, pod.url, asked)])

    async def ask_what_goes(**fields: object) -> httpx.Response:
        asked = body | {"model": "gone"} | fields
        return await pod.client.post(f"{pod.url}/v1/completions", json=asked)

    golden = await stream_what_stays()
    undisturbed = asyncio.create_task(stream_what_stays())
    whole = asyncio.create_task(ask_what_goes())
    streamed = asyncio.create_task(ask_what_goes(stream=True))
    await pod.until(pod.status, lambda status: status.load.running == 3)
    pod.desire([stays])
    answer = await whole
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "draining"
    events = (await streamed).text.strip().split("\n\n")
    (error,) = [event for event in events if '"error"' in event]
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "draining"
    await pod.until(pod.states, lambda states: set(states) == {stays.revision})
    assert await undisturbed == golden


async def test_a_bad_new_version_leaves_the_old_one_serving(
    pod: RunningPod, adapters: dict[str, Path], tmp_path: Path
) -> None:
    old = entry_for("a", adapters["v1"])
    pod.desire([old])
    await pod.until_available(old)
    expected = await pod.complete(PROMPT, model="a")
    broken = tmp_path / "broken"
    shutil.copytree(adapters["v2"], broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    new = entry_for("a", broken)
    good = entry_for("b", adapters["other"])
    pod.desire([new, old.model_copy(update={"weight": 0}), good])
    await pod.until(pod.states, lambda found: found.get(new.revision) is AdapterState.FAILED)
    await pod.until_available(good)
    reports = {one.revision: one for one in (await pod.status()).revisions}
    assert reports[new.revision].reason is Reason.MALFORMED_ARTIFACT
    assert await pod.complete(PROMPT, model="a") == expected


async def test_bytes_that_are_not_those_of_the_digest_are_refused(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    wrong = entry_for("a", adapters["v1"]).model_copy(
        update={"uri": adapters["v2"].resolve().as_uri()}
    )
    pod.desire([wrong])
    await pod.until(pod.states, lambda found: found.get(wrong.revision) is AdapterState.FAILED)
    (report,) = (await pod.status()).revisions
    assert report.reason is Reason.CHECKSUM_MISMATCH
    answer = await pod.client.post(
        f"{pod.url}/v1/completions", json={"model": "a", "prompt": PROMPT}
    )
    assert answer.status_code == 404


async def test_an_entry_without_digest_is_resolved_but_never_served(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    pinned = entry_for("a", adapters["v1"])
    pending = AdapterEntry(
        revision="default/a@pending-0123456789ab",
        served_name="a",
        uri=pinned.uri,
        resolver="test-0",
    )
    pod.desire([pending])
    status = await pod.until(pod.status, lambda found: any(one.digest for one in found.revisions))
    (report,) = status.revisions
    assert report.digest == pinned.digest
    answer = await pod.client.post(
        f"{pod.url}/v1/completions", json={"model": "a", "prompt": PROMPT}
    )
    assert answer.status_code == 503
    pod.desire([pinned])
    await pod.until_available(pinned)
    await pod.complete(PROMPT, model="a")


async def test_sigterm_lets_running_streams_finish_and_takes_no_new_ones(pod: RunningPod) -> None:
    body = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "temperature": 0}
    golden = await pod.complete(PROMPT, **{k: v for k, v in body.items() if k != "prompt"})

    async def stream_one() -> str:
        return "".join([text async for text in stream_tokens(pod.client, pod.url, body)])

    running = [asyncio.create_task(stream_one()) for _ in range(3)]
    await pod.until(pod.status, lambda status: status.load.running == 3)
    pod.process.send_signal(signal.SIGTERM)

    async def refused() -> int:
        answer = await pod.client.post(f"{pod.url}/v1/completions", json={"prompt": PROMPT})
        return answer.status_code

    await pod.until(refused, lambda status: status == 503)
    assert await asyncio.gather(*running) == [golden] * 3
    assert await pod.process.wait() == 0


async def test_adapters_of_different_rank_in_one_batch_each_speak_as_when_alone(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    entries = {name: entry_for(name, folder) for name, folder in adapters.items()}
    pod.desire(entries.values())
    await pod.until_available(*entries.values())
    models = ["base", *entries]
    alone = {model: await pod.complete(PROMPT, model=model, max_tokens=40) for model in models}
    assert len(set(alone.values())) == len(models)
    mixed = [model for model in models for _ in range(6)]
    together = await asyncio.gather(
        *(pod.complete(PROMPT, model=model, max_tokens=40) for model in mixed)
    )
    assert together == [alone[model] for model in mixed]


async def test_models_are_listed_with_their_parent_and_leave_with_their_entry(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    entry = entry_for("a", adapters["v1"])
    pod.desire([entry])
    await pod.until_available(entry)

    async def listed() -> dict[str, str | None]:
        answer = await pod.client.get(f"{pod.url}/v1/models")
        return {one["id"]: one["parent"] for one in json.loads(answer.text)["data"]}

    assert await listed() == {"base": None, "a": "base"}
    pod.desire([])
    await pod.until(listed, lambda found: found == {"base": None})
