"""The operator dies before and after every single write of five scenarios, and starts again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from tests.control_plane.faults.conftest import QUIET_AUDITS, Stand
from tests.control_plane.faults.scenarios import SCENARIOS, Scenario
from tests.support.proof.history import Json, Write
from tests.support.proof.script import WRITES, Kill, Rule

SIDES = ("before", "after")
MORE_WRITES = 4
"""What a crash may cost beside the same writes once more: a status of each object in between."""
REPEATED = ("pods", "events")
"""Nudges repeat until they are heeded, and Events are for people; neither is counted."""


@dataclass(frozen=True)
class Clean:
    """How rounds go in which nothing fails."""

    bases: tuple[Json, Json]
    """What a round begins with, by its parity."""
    ends: tuple[Json, Json]
    writes: tuple[tuple[Write, ...], tuple[Write, ...]]


def clean_rounds(stand: Stand, scenario: Scenario) -> Clean:
    """Play each parity once, undisturbed, and return what there was to write."""
    stand.start()
    scenario.prepare(stand)
    stand.settle()
    stand.rest()
    bases, ends, writes = [], [], []
    for number in (0, 1):
        bases.append(stand.state())
        before = len(stand.proxy.writes)
        scenario.act(stand, number)
        stand.settle()
        stand.rest()
        ends.append(stand.state())
        writes.append(tuple(stand.proxy.writes[before:]))
        scenario.undo(stand, number)
        stand.settle()
        stand.rest()
    assert stand.news() == []
    print(scenario, [[str(w.call) for w in part] for part in writes])
    return Clean((bases[0], bases[1]), (ends[0], ends[1]), (writes[0], writes[1]))


def crash(stand: Stand, scenario: Scenario, number: int, k: int, side: str, clean: Clean) -> str:
    """Play a round in which the operator dies at its k-th write; return what was wrong."""
    before = len(stand.proxy.writes)
    rule = Rule(Kill(side), WRITES, nth=k, times=1)  # type: ignore[arg-type]  # one of SIDES
    stand.proxy.play(rule)
    operator = stand.operator
    assert operator is not None
    scenario.act(stand, number)
    killed = until_killed(stand, rule, clean.ends[number % 2])
    stand.proxy.play()
    where = "never"
    if killed:
        where = str(stand.proxy.writes[before + k - 1].call)
        operator.wait(30)
        stand.start()
    stand.settle(clean.ends[number % 2])
    found = [f"{v.invariant}: {v.where}: {v.what}" for v in stand.news()]
    count = len(counted(stand.proxy.writes[before:]))
    most = 2 * len(counted(clean.writes[number % 2])) + MORE_WRITES
    if count > most:
        found.append(f"{count} writes, at most {most} are right: {summary(stand, before)}")
    scenario.undo(stand, number)
    stand.settle(clean.bases[(number + 1) % 2])
    print(scenario, number, side, k, where, count, found)
    return f"{side} write {k} ({where}): {found}" if found else ""


def until_killed(stand: Stand, rule: Rule, wanted: Json) -> bool:
    """Wait until the operator was killed; tell whether it was, or all was done before."""
    stand.until(lambda: rule.hits or stand.is_at(wanted), "the operator to be done or dead")
    # What comes after the end may still be the write.
    last = stand.proxy.counts["list pods"] + QUIET_AUDITS
    stand.until(lambda: rule.hits or stand.proxy.counts["list pods"] > last, "audits")
    return bool(rule.hits)


def summary(stand: Stand, before: int) -> Counter[str]:
    """Return what was written, by verb, object and answer."""
    return Counter(f"{w.call} {w.code}" for w in stand.proxy.writes[before:])


def counted(writes: Iterable[Write]) -> list[Write]:
    return [w for w in writes if w.call.plural not in REPEATED and w.is_done]


def representative(writes: tuple[Write, ...]) -> Iterator[int]:
    """Return the first write of each sort, and the last: by verb and kind."""
    known = set()
    for k, write in enumerate(writes, 1):
        sort = (write.call.verb, write.call.plural)
        if sort not in known or k == len(writes):
            known.add(sort)
            yield k


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_an_operator_that_dies_at_a_write_of_each_sort_is_made_good(
    stand: Stand, scenario: Scenario
) -> None:
    clean = clean_rounds(stand, scenario)
    found = []
    for number, k in enumerate(representative(clean.writes[0]), 2):
        found.append(crash(stand, scenario, number, k, SIDES[number % 2], clean))
    assert [line for line in found if line] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_an_operator_that_dies_before_or_after_any_write_is_made_good(
    stand: Stand, scenario: Scenario
) -> None:
    clean = clean_rounds(stand, scenario)
    most = max(len(writes) for writes in clean.writes)
    found, number = [], 2
    for side in SIDES:
        for k in range(1, most + 1):
            found.append(crash(stand, scenario, number, k, side, clean))
            number += 1
    assert [line for line in found if line] == []
