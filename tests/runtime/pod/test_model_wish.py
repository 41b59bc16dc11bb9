"""When a base model that was refused is asked for again, and what is asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from pathlib import Path

import httpx
import pytest

from graft_protocol.config import ModelSettings, RuntimeConfig
from graft_protocol.naming import PodPaths
from graft_protocol.reasons import Reason
from graft_protocol.status import RuntimeStatus
from graft_runtime.ipc.messages import LoaderReady, ModelPrepared, ModelRefused, PrepareModel
from graft_runtime.metrics import Metrics
from graft_runtime.pod.model_wish import ModelWish
from graft_runtime.pod.pod import Pod
from tests.support.pod import RunningPod, run_pod

TINY = Path(__file__).parents[3] / "examples/models/tiny"
LONGEST = (1, 2, 4, 8, 16, 32, 60, 60, 60)
SETTINGS = ModelSettings(served_name="base", uri="s3://models/base", credential="k")
REFUSED = ModelRefused(Reason.SOURCE_UNAVAILABLE, "s3://models/base does not answer")
FOUND = ModelPrepared("/cache/models/x", "sha256:" + "7" * 64, 1)


def test_a_refused_model_is_asked_for_at_growing_intervals() -> None:
    wish = ModelWish(SETTINGS, "pod-0")
    now, pauses = 0.0, []
    for _ in LONGEST:
        wish.ask()
        assert not wish.is_due(now + 10**6), "it is under way"
        pauses.append(wish.refused(REFUSED, now))
        assert not wish.is_due(now + pauses[-1] - 0.01)
        now += pauses[-1]
        assert wish.is_due(now)
    assert all(most / 2 < pause <= most for pause, most in zip(pauses, LONGEST, strict=True))


def test_pods_whose_model_failed_together_do_not_come_back_together() -> None:
    wishes = [ModelWish(SETTINGS, f"pod-{number}") for number in range(20)]
    assert len({wish.refused(REFUSED, 0.0) for wish in wishes}) == 20


def test_a_model_that_was_found_is_asked_for_by_its_digest_and_its_pauses_begin_anew() -> None:
    wish = ModelWish(SETTINGS, "pod-0")
    assert wish.ask() == PrepareModel(SETTINGS.uri, None, "k")
    first = wish.refused(REFUSED, 0.0)
    wish.refused(REFUSED, 1.0)
    wish.fulfilled(FOUND)
    assert wish.refusal is None
    assert not wish.is_due(10**6)
    assert wish.ask() == PrepareModel(SETTINGS.uri, FOUND.digest, "k")
    assert wish.refused(REFUSED, 0.0) == first


@pytest.fixture
async def pod(tmp_path: Path) -> Pod:
    """Make a pod whose processes are not started."""
    config = RuntimeConfig.model_validate(
        {
            "service": {"namespace": "default", "name": "test"},
            "model": {"servedName": "base", "uri": "s3://models/base"},
        }
    )
    return Pod(config, PodPaths(tmp_path), "test-0", Metrics("base"))


async def test_each_attempt_that_fails_is_told_with_its_reason_and_its_pause(
    pod: Pod, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="graft_runtime.pod.pod"):
        for _ in range(3):
            pod._on_loader(REFUSED)
    told = [vars(record) for record in caplog.records]
    assert {(one["reason"], one["detail"]) for one in told} == {(REFUSED.reason, REFUSED.message)}
    pauses = [one["retry_seconds"] for one in told]
    assert sorted(pauses) == pauses
    assert pod.gateway.health().detail == REFUSED.message


async def test_what_a_new_loader_was_refused_is_no_failure_any_more_once_it_has_the_model(
    pod: Pod,
) -> None:
    for _ in range(2):
        pod._on_loader(LoaderReady())
        pod._on_loader(REFUSED)
        assert pod.gateway.health().detail == REFUSED.message
        pod._on_loader(FOUND)
        assert pod.gateway.health().detail == "Starting"


async def told(pod: RunningPod) -> RuntimeStatus | None:
    """Return what a pod reports; None while nothing listens there."""
    try:
        return await pod.status()
    except httpx.TransportError:
        return None


def pauses_in(log: Path) -> list[float]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line["retry_seconds"] for line in lines if "retry_seconds" in line]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_pod_whose_model_comes_late_says_why_it_waits_and_finds_it(tmp_path: Path) -> None:
    late = tmp_path / "model"
    async with run_pod(late, until_ready=False) as pod:
        status = await pod.until(
            lambda: told(pod), lambda found: found is not None and found.reason is not None
        )
        assert status is not None
        assert status.reason is Reason.SOURCE_NOT_FOUND

        async def asked() -> list[float]:
            return await asyncio.to_thread(pauses_in, pod.log)

        pauses = (await pod.until(asked, lambda found: len(found) >= 3))[:3]
        assert all(most / 2 < pause <= most for pause, most in zip(pauses, LONGEST, strict=False))
        assert not await pod.is_ready()
        assert pod.told[-1] == status.message
        shutil.copytree(TINY, late)
        await pod.until(pod.is_ready, bool)
        assert (await pod.status()).reason is None
