"""From names to revisions."""

from __future__ import annotations

import pytest

from graft_protocol.desired import AdapterEntry
from graft_protocol.reasons import Reason
from graft_runtime.adapters.revision import Phase, Revision
from graft_runtime.adapters.routes import build_routes
from graft_runtime.errors import AdapterUnavailableError, ModelNotFoundError


def revision(
    version: int,
    phase: Phase = Phase.SERVING,
    *,
    weight: int = 100,
    reason: Reason = Reason.AVAILABLE,
    aliases: tuple[str, ...] = (),
) -> Revision:
    digest = f"sha256:{version:064d}"
    entry = AdapterEntry(
        revision=f"ns/a@{version:012d}",
        served_name="a",
        aliases=aliases,
        uri="s3://b/a",
        digest=digest,
        weight=weight,
    )
    return Revision(entry, phase, reason=reason)


def test_requests_are_shared_by_weight() -> None:
    route = build_routes([revision(1, weight=75), revision(2, weight=25)])["a"]
    chosen = [route.choose(str(key)).entry.revision[-1] for key in range(4000)]
    assert chosen.count("1") == pytest.approx(3000, abs=150)


def test_a_key_keeps_its_version_whatever_the_order_and_moves_only_with_the_weight() -> None:
    keys = [str(key) for key in range(1000)]

    def chosen(*revisions: Revision) -> set[str]:
        route = build_routes(revisions)["a"]
        return {key for key in keys if route.choose(key).entry.revision.endswith("2")}

    before = chosen(revision(1, weight=90), revision(2, weight=10))
    assert before == chosen(revision(2, weight=10), revision(1, weight=90))
    after = chosen(revision(1, weight=50), revision(2, weight=50))
    assert before < after < set(keys)
    assert chosen(revision(1, weight=0), revision(2, weight=100)) == set(keys)
    assert chosen(revision(1, weight=100), revision(2, weight=0)) == set(), "rolled back at once"


def test_a_standby_serves_only_while_nothing_else_of_the_name_does() -> None:
    old, new = revision(1, weight=0), revision(2, Phase.FETCHING)
    route = build_routes([old, new])["a"]
    assert route.choose("k") is old
    new.phase = Phase.SERVING
    assert route.choose("k") is new


def test_a_bad_new_version_leaves_the_old_one_serving() -> None:
    old = revision(1, weight=0)
    bad = revision(2, Phase.FAILED, reason=Reason.NON_FINITE_WEIGHTS)
    assert build_routes([old, bad])["a"].choose("k") is old


def test_a_name_on_its_way_is_unavailable_and_says_when_to_come_back() -> None:
    route = build_routes([revision(1, Phase.FETCHING)])["a"]
    with pytest.raises(AdapterUnavailableError) as caught:
        route.choose("k")
    assert caught.value.retry_after_seconds == 1


@pytest.mark.parametrize("reason", [Reason.CHECKSUM_MISMATCH, Reason.SOURCE_NOT_FOUND])
def test_a_failed_adapter_looks_like_an_absent_one_to_clients(reason: Reason) -> None:
    route = build_routes([revision(1, Phase.FAILED, reason=reason)])["a"]
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        route.choose("k")


def test_a_source_that_may_come_back_is_worth_waiting_for() -> None:
    route = build_routes([revision(1, Phase.FAILED, reason=Reason.SOURCE_UNAVAILABLE)])["a"]
    with pytest.raises(AdapterUnavailableError):
        route.choose("k")


def test_aliases_lead_to_the_same_route_and_draining_versions_to_none() -> None:
    routes = build_routes([revision(1, aliases=("b", "a")), revision(2, Phase.DRAINING)])
    assert set(routes) == {"a", "b"}
    assert routes["a"].revisions == routes["b"].revisions
    assert len(routes["a"].revisions) == 1
