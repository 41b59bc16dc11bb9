"""Five things that users do, each of which can be done again and again in one namespace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.control_plane.faults.conftest import Stand
from tests.control_plane.manifests import adapter, keys, service


@dataclass(frozen=True)
class Scenario:
    """What is there before, what is done in a round, and how the next round is made possible."""

    name: str
    prepare: Callable[[Stand], None]
    act: Callable[[Stand, int], None]
    """With the number of the round. Rounds of equal parity end in the same state."""
    undo: Callable[[Stand, int], None] = lambda *_: None

    def __str__(self) -> str:
        return self.name


def serve(stand: Stand) -> None:
    """A service with two adapters, one of which belongs to somebody else's tools as well."""
    stand.admin.apply(keys(), service(), adapter("shout", "s3://adapters/ok-1"), adapter("pirate"))
    stand.settle()
    foreign = {"metadata": {"annotations": {"example.com/owner": "team-a"}}}
    for kind, name in (("Service", "tiny"), ("Deployment", "tiny"), ("LoraAdapter", "shout")):
        stand.admin.merge(kind, name, foreign)


def _create(stand: Stand, _: int) -> None:
    stand.admin.apply(service(), adapter("shout"), adapter("pirate", "s3://adapters/ok-2"))


def _remove_all(stand: Stand, _: int) -> None:
    for name in ("shout", "pirate"):
        stand.admin.delete("LoraAdapter", name)
    stand.admin.delete("InferenceService", "tiny")
    left = {"Secret/keys"}
    stand.until(lambda: stand.state().keys() <= left, "everything to be gone")
    pods = ("Pod", "ReplicaSet")
    stand.until(lambda: not [o for o in stand.objects() if o.key.kind in pods], "no pods")


def _update(stand: Stand, number: int) -> None:
    stand.admin.apply(adapter("shout", f"s3://adapters/ok-{number % 2}"))


def _scale(stand: Stand, number: int) -> None:
    stand.admin.apply(service(replicas=2 - number % 2))


def _delete(stand: Stand, _: int) -> None:
    stand.admin.delete("LoraAdapter", "pirate")


def _add(stand: Stand, _: int) -> None:
    stand.admin.apply(adapter("pirate"))


def _contend(stand: Stand) -> None:
    stand.admin.apply(keys(), service(), adapter("first", servedName="voice"))
    stand.settle()
    stand.admin.apply(adapter("second", servedName="voice"))


def _give_way(stand: Stand, number: int) -> None:
    stand.admin.delete("LoraAdapter", ("first", "second")[number % 2])


def _contend_again(stand: Stand, number: int) -> None:
    stand.admin.apply(adapter(("first", "second")[number % 2], servedName="voice"))


CREATE = Scenario("create", lambda stand: stand.admin.apply(keys()), _create, _remove_all)
UPDATE = Scenario("update", serve, _update)
SCALE = Scenario("scale", serve, _scale)
DELETE = Scenario("delete", serve, _delete, _add)
TAKEOVER = Scenario("takeover", _contend, _give_way, _contend_again)
SCENARIOS = (CREATE, UPDATE, SCALE, DELETE, TAKEOVER)
