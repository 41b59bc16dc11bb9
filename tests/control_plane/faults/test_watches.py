"""Watches break, drop and repeat: nothing is lost, or the process ends and says so by its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any

import pytest

from graft_operator.cluster.kubernetes_kinds import WATCHED, Kind
from graft_operator.constants import ANNOTATION_APPLIED
from tests.control_plane.faults.conftest import SLOW, Stand
from tests.control_plane.faults.scenarios import DELETE, UPDATE, serve
from tests.control_plane.manifests import adapter, keys, service
from tests.support.proof.history import Json, status_of
from tests.support.proof.invariants import ALWAYS, pods_are_not_replaced
from tests.support.proof.script import Break, Breakage, Refuse, Rule, Skip, Twice

EVERY_CHILD: Json = {
    "replicas": 2,
    "autoscaling": {"minReplicas": 2, "maxReplicas": 2, "targetRequests": 4},
    "networkPolicy": {"enabled": True},
    "runtime": {"serviceAccount": {"annotations": {"cloud.example/role": "reader"}}},
}
NEVER_SECONDS = 3600
"""Between two audits: what a watch loses, nothing else would find."""
QUIET_SECONDS = 3
"""After which a silent watch is opened anew; 70 s outside of tests."""
DEADLY = (
    Breakage.HTTP_GONE,
    Breakage.ERROR_500,
    Breakage.ERROR_504,
    Breakage.GARBAGE,
    Breakage.HALF_LINE,
)
"""What a watch may fail for; the process then has to end."""

Effect = Callable[[], Any]


def serve_everything(stand: Stand) -> None:
    stand.start(audit_seconds=NEVER_SECONDS, watch_quiet_seconds=QUIET_SECONDS)
    stand.admin.apply(keys(), service(**EVERY_CHILD), adapter("shout"))
    stand.settle()


def change(stand: Stand, kind: Kind, number: int) -> Effect:
    """Change something that only a watch of the kind tells of; return how its effect is seen."""
    if kind.name == "InferenceService":
        rollout = {"progressDeadlineSeconds": 2000 + number}
        stand.admin.apply(service(**EVERY_CHILD, rollout=rollout))
        return stand.is_settled
    if kind.name == "LoraAdapter":
        stand.admin.apply(adapter("shout", f"s3://adapters/ok-{number}"))
        return stand.is_settled
    names = [
        one.key.name for one in stand.objects() if one.key.kind == kind.name and ours(one.object)
    ]
    name = min(names)
    if kind.name == "Pod":
        stand.admin.delete("Pod", name)
        return lambda: addresses(stand) == set(told_addresses(stand)) and len(addresses(stand)) == 2
    spoil(stand, kind.name, name)
    return lambda: mark(stand, kind.name, name) not in ("", "x")


def spoil(stand: Stand, kind: str, name: str) -> None:
    """Edit a child so that the operator has to put it right."""
    stand.admin.merge(kind, name, {"metadata": {"annotations": {ANNOTATION_APPLIED: "x"}}})


def ours(manifest: Json) -> bool:
    labels = manifest["metadata"].get("labels") or {}
    return bool(labels.get("app.kubernetes.io/managed-by") == "graft")


def mark(stand: Stand, kind: str, name: str) -> str:
    found = stand.find(kind, name) or {"metadata": {}}
    return str((found["metadata"].get("annotations") or {}).get(ANNOTATION_APPLIED, ""))


def addresses(stand: Stand) -> set[str]:
    pods = (one.object for one in stand.objects() if one.key.kind == "Pod")
    return {f"http://{(pod.get('status') or {}).get('podIP')}:8000" for pod in pods}


def told_addresses(stand: Stand) -> list[str]:
    found = stand.find("InferenceService", "tiny") or {}
    return list(status_of(found).get("endpoints", ()))


def break_and_change(stand: Stand, kind: Kind, how: Breakage, number: int) -> None:
    rule = Rule(Break(how), ("watch",), kind.plural, times=1)
    stand.proxy.play(rule)
    stand.survive(lambda: rule.hits, f"{how} on {kind.plural}")
    if kind.name == "Pod" and how is Breakage.GONE:
        # What is deleted before the list that follows is an audit's to find, and there is none.
        opened = stand.proxy.counts["watch pods"]
        stand.survive(lambda: stand.proxy.counts["watch pods"] > opened, "the watch to begin anew")
    effect = change(stand, kind, number)
    codes = stand.survive(effect, f"{how} on {kind.plural} to be got over")
    assert all(code == 1 for code in codes), codes
    assert not codes or how in DEADLY, f"{how} on {kind.plural} has ended the process"


def faults(kinds: Iterable[Kind], ways: Iterable[Breakage]) -> list[tuple[Kind, Breakage]]:
    return list(zip(kinds, cycle(ways), strict=False))


@pytest.mark.timeout(600)
def test_a_watch_of_each_kind_may_break_in_one_way_or_another(stand: Stand) -> None:
    serve_everything(stand)
    for number, (kind, how) in enumerate(faults(WATCHED, Breakage)):
        break_and_change(stand, kind, how, number)
    stand.settle()
    assert stand.news(UNTOUCHED) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", Breakage, ids=lambda how: how.name.lower())
def test_a_watch_of_each_kind_may_break_in_any_way(stand: Stand, how: Breakage) -> None:
    serve_everything(stand)
    for number, kind in enumerate(WATCHED):
        break_and_change(stand, kind, how, number)
    stand.settle()
    assert stand.news(UNTOUCHED) == []


UNTOUCHED = tuple(each for each in ALWAYS if each is not pods_are_not_replaced)


@pytest.mark.timeout(600)
def test_events_that_are_told_twice_change_nothing(stand: Stand) -> None:
    stand.proxy.play(Rule(Twice(), ("event",)))
    stand.start()
    serve(stand)
    for number in range(2):
        UPDATE.act(stand, number)
        stand.settle()
    stand.rest()
    assert stand.news() == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "plural",
    ["", *(pytest.param(kind.plural, marks=SLOW, id=kind.plural) for kind in WATCHED[:4])],
)
def test_events_that_are_dropped_are_made_good_or_end_the_process(
    stand: Stand, plural: str
) -> None:
    stand.start(dead_watch_seconds=3)
    serve(stand)
    stand.rest()
    stand.proxy.play(Rule(Skip(), ("event",), plural))
    stand.admin.apply(adapter("shout", "s3://adapters/ok-0"), adapter("late"))
    stand.admin.delete("LoraAdapter", "pirate")
    stand.admin.apply(service(replicas=2))
    if plural == "secrets":
        # None of this changes one, and what has nothing to tell cannot be found silent.
        spoil(stand, "Secret", "tiny-internal")
    codes = stand.survive(stand.is_settled, "all to be done without events")
    codes += stand.survive(lambda: stand.proxy.operator > 1, "the silent watch to be found out")
    assert set(codes) == {1}
    stand.proxy.play()
    stand.survive(stand.is_settled, "all to be done")
    assert stand.news() == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("is_again", "is_down"),
    [
        pytest.param(True, False, id="made again, watch down"),
        pytest.param(False, True, id="gone, operator down"),
        pytest.param(False, False, id="gone, watch down", marks=SLOW),
        pytest.param(True, True, id="made again, operator down", marks=SLOW),
    ],
)
def test_what_goes_in_a_gap_of_the_watch_is_gone(
    stand: Stand, is_again: bool, is_down: bool
) -> None:
    stand.start()
    serve(stand)
    old = (stand.find("LoraAdapter", "pirate") or {})["metadata"]["uid"]
    if is_down:
        stand.end()
    else:
        cut = Rule(Break(Breakage.CUT), ("watch",), "loraadapters", times=1)
        stand.proxy.play(cut, Rule(Refuse(503), ("watch", "list"), "loraadapters"))
        stand.until(lambda: cut.hits, "the cut")
    DELETE.act(stand, 0)
    if is_again:
        stand.admin.apply(adapter("pirate", "s3://adapters/ok-again"))
    # The server has forgotten the time of the gap, as one does that was started anew.
    stand.proxy.play(Rule(Break(Breakage.GONE), ("watch",), "loraadapters", times=1))
    if is_down:
        stand.start()
    stand.settle()
    stand.until(lambda: registered(stand) == 1 + is_again, "the deleted to be let go")
    stand.settle()
    stand.rest()
    found = stand.find("LoraAdapter", "pirate")
    assert (found is not None) == is_again
    assert found is None or found["metadata"]["uid"] != old
    assert stand.news() == []


def registered(stand: Stand) -> int:
    status = status_of(stand.find("InferenceService", "tiny") or {})
    return int((status.get("adapters") or {}).get("registered", -1))
