"""An operator that is shown the past after a restart, one that has slept, and two at a time."""

from __future__ import annotations

import os
import signal

import pytest

from tests.control_plane.faults.conftest import SLOW, Stand
from tests.control_plane.faults.scenarios import UPDATE, serve
from tests.control_plane.manifests import adapter
from tests.support.proof.invariants import ALWAYS, writes_change_something
from tests.support.proof.script import Replay, Rule

ALL_KINDS = ""
HARMLESS = tuple(each for each in ALWAYS if each is not writes_change_something)
"""Who does not know what is stored may store it again."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "plural", [ALL_KINDS, *(pytest.param(kind, marks=SLOW) for kind in ("configmaps", "pods"))]
)
def test_an_operator_that_is_shown_the_past_undoes_nothing(stand: Stand, plural: str) -> None:
    stand.start()
    serve(stand)
    stand.rest()
    stand.proxy.remember()
    stand.admin.delete("LoraAdapter", "shout")
    stand.admin.apply(adapter("shout", "s3://adapters/ok-again"), adapter("late"))
    stand.settle()
    stand.rest()
    stand.end()

    past = Rule(Replay(), ("list", "watch"), plural)
    stand.proxy.play(past)
    stand.start(dead_watch_seconds=600)
    stand.audited(stand.proxy.counts["list pods"] + 5)
    assert past.hits
    assert stand.news(HARMLESS) == []

    stand.proxy.release()
    stand.settle()
    stand.rest()
    assert stand.news(HARMLESS) == []


@pytest.mark.timeout(600)
def test_an_operator_that_wakes_up_behind_another_undoes_nothing(stand: Stand) -> None:
    stand.start()
    serve(stand)
    stand.rest()
    sleeper = stand.operator
    assert sleeper is not None
    os.kill(sleeper.pid, signal.SIGSTOP)
    stand.start()
    for number in range(2):
        UPDATE.act(stand, number)
        stand.settle()
    stand.admin.delete("LoraAdapter", "shout")
    stand.admin.apply(adapter("shout", "s3://adapters/ok-again"), adapter("late"))
    stand.settle()
    os.kill(sleeper.pid, signal.SIGCONT)
    stand.rest()
    UPDATE.act(stand, 0)
    stand.settle()
    stand.rest()
    sleeper.kill()
    assert stand.news(HARMLESS) == []
