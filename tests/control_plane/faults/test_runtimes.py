"""A pod that does not say how it is: others go on, it is told of as it is, and asked seldom."""

from __future__ import annotations

import time

import pytest

from graft_operator.settings import ControlSettings
from tests.control_plane.faults.conftest import Stand
from tests.control_plane.manifests import adapter, keys, service
from tests.support.fake_runtime import FakeRuntime, Trouble, digest_of
from tests.support.proof.history import short, status_of

NEWER = "s3://adapters/ok-0"
NEWEST = "s3://adapters/ok-1"
LATE = tuple(f"late-{number}" for number in range(4))
"""So many that whichever pod is in trouble would be asked to resolve one of them."""
CONTROL = {"report_timeout_seconds": 1.0, "unreachable_seconds": 3.0}
LONGEST_PAUSE_SECONDS = ControlSettings().poll_idle_seconds
GROWING = 6
"""Questions until the pauses between them are as long as they get."""
AUDITS = 20
TOLD = (2, 3, ("False", "Degraded"), ("False", "RuntimeUnreachable"))
"""Pods that serve an adapter, pods that take requests, and the conditions Ready and Loaded."""


@pytest.mark.timeout(600)
def test_a_pod_that_hangs_and_then_fails_holds_nobody_up_and_comes_back(stand: Stand) -> None:
    stand.start(control=CONTROL)
    stand.admin.apply(keys(), service(replicas=3), adapter("shout"))
    stand.settle()
    sick, *others = stand.runtimes()

    sick.trouble = Trouble.HANGS
    stand.admin.apply(adapter("shout", NEWER), *(adapter(name) for name in LATE))
    expect_degraded(stand, others, NEWER)
    expect_few_questions(stand, sick)

    sick.trouble = Trouble.FAILS
    stand.admin.apply(adapter("shout", NEWEST))
    expect_degraded(stand, others, NEWEST)
    expect_few_questions(stand, sick)

    sick.trouble = None
    stand.settle()
    stand.rest()
    assert stand.news() == []


def expect_degraded(stand: Stand, others: list[FakeRuntime], uri: str) -> None:
    """Wait until the others serve everything, and every status counts them and no more."""
    stand.until(lambda: all(serves(one, uri) for one in others), "the others to go on")
    stand.until(lambda: all(told(stand, name) == TOLD for name in ("shout", *LATE)), str(TOLD))
    stand.until(lambda: in_sync(stand) == 2, "the service to say so")


def expect_few_questions(stand: Stand, sick: FakeRuntime) -> None:
    """Nothing is written for a while, and the pod in trouble is asked at the longest pauses."""
    stand.rest()
    began, asked = time.monotonic(), sick.asked
    stand.audited(stand.proxy.counts["list pods"] + AUDITS)
    most = GROWING + (time.monotonic() - began) / LONGEST_PAUSE_SECONDS
    assert sick.asked - asked <= most


def serves(runtime: FakeRuntime, uri: str) -> bool:
    answering = {"shout": uri} | dict.fromkeys(LATE, "s3://adapters/ok")
    return all(
        short(digest_of(source)) in (runtime.which(name) or "")
        for name, source in answering.items()
    )


def told(stand: Stand, name: str) -> tuple[object, ...]:
    status = status_of(stand.find("LoraAdapter", name) or {})
    found = {one["type"]: (one["status"], one["reason"]) for one in status.get("conditions", ())}
    counts = status.get("readyReplicas"), status.get("desiredReplicas")
    return *counts, found.get("Ready"), found.get("Loaded")


def in_sync(stand: Stand) -> int:
    status = status_of(stand.find("InferenceService", "tiny") or {})
    return int(status["adapters"]["podsInSync"])
