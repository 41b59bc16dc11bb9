"""The API server turns requests away, fails, contradicts, loses answers, lists half, or is slow."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from graft_operator.cluster.kubernetes_kinds import WATCHED
from tests.control_plane.faults.conftest import SLOW, Stand
from tests.control_plane.faults.scenarios import DELETE, UPDATE, serve
from tests.control_plane.manifests import adapter, service
from tests.support.proof.invariants import ALWAYS, writes_change_something
from tests.support.proof.script import READS, WRITES, Delay, Lose, Refuse, Rule

ALL = (*READS, *WRITES)
LOST = tuple(each for each in ALWAYS if each is not writes_change_something)
"""What was stored though its answer was lost is stored again, which changes nothing."""
NEWER = "s3://adapters/ok-0"


def serve_and_rest(stand: Stand) -> None:
    stand.start()
    serve(stand)
    stand.rest()


def change_everything(stand: Stand) -> None:
    stand.admin.apply(adapter("shout", NEWER), adapter("late"), service(replicas=2))
    stand.admin.delete("LoraAdapter", "pirate")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("code", [500, *(pytest.param(code, marks=SLOW) for code in (503, 504))])
def test_an_outage_is_lived_through(stand: Stand, code: int) -> None:
    serve_and_rest(stand)
    rule = Rule(Refuse(code), ALL)
    stand.proxy.play(rule)
    change_everything(stand)
    stand.until(lambda: rule.hits > 20, "the outage to be felt")
    stand.proxy.play()
    stand.settle()
    stand.until(lambda: stand.find("ConfigMap", "tiny-adapters-10"), "the shard")
    stand.rest()
    assert stand.news() == []


@pytest.mark.timeout(600)
def test_an_api_that_asks_for_patience_gets_it(stand: Stand) -> None:
    serve_and_rest(stand)
    rule = Rule(Refuse(429, retry_after=2), ALL)
    stand.proxy.play(rule)
    before = Counter(stand.proxy.counts)
    change_everything(stand)
    stand.until(lambda: rule.hits >= 12, "some refusals")
    asked = stand.proxy.counts - before
    stand.proxy.play()
    stand.settle()
    stand.rest()
    assert stand.news() == []
    # Each of them may ask again only after the pause that it was told: nobody hammers.
    assert max(asked[f"list {kind.plural}"] for kind in WATCHED) <= 8, asked


@pytest.mark.timeout(600)
@pytest.mark.parametrize("code", [409, 422, pytest.param(403, marks=SLOW)])
def test_writes_that_are_refused_are_made_again_from_what_is(stand: Stand, code: int) -> None:
    serve_and_rest(stand)
    rules = [Rule(Refuse(code), (verb,), times=3) for verb in ("apply", "status", "merge")]
    stand.proxy.play(*rules)
    change_everything(stand)
    stand.settle()
    assert rules[0].hits == 3
    assert rules[1].hits == 3
    stand.rest()
    assert stand.news() == []


@pytest.mark.timeout(600)
def test_answers_that_are_lost_cost_nothing_but_time(stand: Stand) -> None:
    serve_and_rest(stand)
    rule = Rule(Lose(), WRITES, times=12)
    stand.proxy.play(rule)
    change_everything(stand)
    stand.settle()
    stand.proxy.play()
    stand.rest()
    assert rule.hits
    assert stand.news(LOST) == []


@pytest.mark.timeout(600)
def test_others_who_write_all_the_time_lose_nothing(stand: Stand) -> None:
    serve_and_rest(stand)
    done = threading.Event()
    counts = Counter[str]()

    def write() -> None:
        while not done.is_set():
            for kind, name in (
                ("LoraAdapter", "shout"),
                ("Deployment", "tiny"),
                ("Service", "tiny"),
            ):
                counts[kind] += 1
                number = {"example.com/number": str(counts[kind])}
                stand.admin.merge(kind, name, {"metadata": {"annotations": number}})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(2):
            UPDATE.act(stand, number)
            stand.settle()
    finally:
        done.set()
        writer.join()
    stand.rest()
    for kind, name in (("LoraAdapter", "shout"), ("Deployment", "tiny"), ("Service", "tiny")):
        stored = stand.find(kind, name) or {}
        assert stored["metadata"]["annotations"]["example.com/number"] == str(counts[kind])
    assert stand.news() == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_running", [True, False], ids=["running", "starting"])
def test_a_list_that_fails_half_way_removes_nothing(stand: Stand, is_running: bool) -> None:
    stand.start(page_size=1)
    serve(stand)
    stand.rest()
    rule = Rule(Refuse(500), ("list",), later_pages=True)
    stand.proxy.play(rule)
    if not is_running:
        stand.end()
        stand.start()
    DELETE.act(stand, 0)
    stand.admin.apply(adapter("late"))
    stand.until(lambda: rule.hits > 6, "lists to fail")
    if is_running:
        # The watch tells what the lists do not.
        stand.settle()
    stand.proxy.play(Rule(Refuse(410), ("list",), later_pages=True, times=4))
    # Lists begin anew; the watches' own have no pages, and so nothing ends the process.
    assert stand.survive(stand.is_settled, "all to be done") == []
    stand.settle()
    stand.rest()
    assert stand.news() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plural", [kind.plural for kind in WATCHED])
def test_a_kind_that_cannot_be_listed_removes_nothing(stand: Stand, plural: str) -> None:
    serve_and_rest(stand)
    stand.end()
    rule = Rule(Refuse(500), ("list",), plural)
    stand.proxy.play(rule)
    stand.start()
    stand.until(lambda: rule.hits > 3, "lists to fail")
    DELETE.act(stand, 0)
    stand.admin.apply(adapter("late"))
    stand.proxy.play()
    stand.settle()
    stand.rest()
    assert stand.news() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_api_is_waited_for(stand: Stand) -> None:
    serve_and_rest(stand)
    stand.proxy.play(Rule(Delay(1.0), ("get", "list", *WRITES)))
    change_everything(stand)
    stand.settle()
    stand.proxy.play()
    stand.rest()
    assert stand.news() == []
